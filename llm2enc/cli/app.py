"""The command line. Heavy imports stay inside the commands, so that `--help` and a wrong recipe answer at once.

Exit codes: 0 done, 1 failed (also for a disk that is full or closed), 2 usage or bad input, 3 refused (cannot be converted
or exported), 130 interrupted (Ctrl-C or SIGTERM); the same command goes on from there.
"""

import sys

import typer

from llm2enc.cli.compare import compare
from llm2enc.cli.convert import convert
from llm2enc.cli.data import data
from llm2enc.cli.encode import encode
from llm2enc.cli.evaluate import evaluate
from llm2enc.cli.export import export
from llm2enc.cli.inspect import inspect
from llm2enc.cli.interruption import interruptible
from llm2enc.cli.merge import merge
from llm2enc.cli.messages import say
from llm2enc.cli.mine import mine
from llm2enc.cli.plan import plan
from llm2enc.cli.recipes import recipes
from llm2enc.cli.verify import verify
from llm2enc.errors import Llm2encError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback as Python writes it, without the values of variables
    rich_markup_mode=None,  # help in plain text: rich takes three times as long to import as all the rest
    help="Turn a decoder-only language model into a proven text encoder.",
)
_GOES_ON = "What is finished is kept: the same command goes on from here."
_NOTHING_HALF = "Nothing half-written stands in its place: run the same command again."
COMMANDS = {  # and what is kept when something from outside ends it
    convert: "Finished stages and the last checkpoint are kept: the same command with --resume goes on from there.",
    encode: "Finished rows are kept in OUT.partial: the same command goes on from there.",
    evaluate: _GOES_ON,
    compare: _GOES_ON,
    data: "Nothing was written.",
    mine: "Finished rows are kept in OUT.partial: the same command goes on from there.",
    verify: _NOTHING_HALF,
    export: f"{_NOTHING_HALF} What a push has sent already is not sent again.",
    merge: f"{_NOTHING_HALF} Scores that are finished are kept.",
    inspect: "",
    plan: "",
    recipes: "",
}
for command, kept in COMMANDS.items():
    app.command()(interruptible(command, kept))


def main() -> None:
    """Entry point: errors of llm2enc and of files become one line and an exit code; any other keeps its traceback."""
    try:
        app()
    except KeyboardInterrupt:  # before a command has begun, which knows what is kept
        say("Interrupted.")
        sys.exit(130)
    except (Llm2encError, OSError) as error:
        say(f"error: {error}")
        sys.exit(error.exit_code if isinstance(error, Llm2encError) else 2)

"""The command line. Heavy imports stay inside the commands, so that `--help` and a wrong recipe answer at once.

Exit codes: 0 done, 1 failed, 2 usage or bad input, 3 refused (can't be converted or exported), 130 interrupted with a
checkpoint.
"""

import sys

import typer

from llm2enc.cli.delivering import export, merge, verify
from llm2enc.cli.encoding import encode
from llm2enc.cli.making import convert, inspect, recipes
from llm2enc.cli.measuring import compare, evaluate
from llm2enc.cli.shared import say

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # help in plain text: rich takes three times as long to import as all the rest
    help="Turn a decoder-only language model into a proven text encoder.",
)
for command in (convert, encode, evaluate, compare, verify, export, merge, inspect, recipes):
    app.command()(command)


def main() -> None:
    """Entry point: user errors become one message and an exit code, never a traceback."""
    try:
        app()
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        say(f"error: {error}")
        sys.exit(code)


def _exit_code(error: Exception) -> int | None:
    """2 for bad input, 3 for a refused model, 1 for a failed run; None for our own faults, which keep their traceback."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {"CannotConvert", "CannotExport"}:
        return 3
    if "NotFinite" in names:
        return 1
    return 2 if isinstance(error, ValueError | TypeError | OSError) else None

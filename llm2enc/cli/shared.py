"""What the commands share: options, messages, names of folders."""

import errno
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

Set = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a field of the recipe.")]
Model = Annotated[str | None, typer.Option(help="Hub id, directory or `pocket`, instead of the recipe's model.")]
Data = Annotated[str | None, typer.Option(help="Pairs to train on instead of the recipe's: file, folder or hub id.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Push = Annotated[str | None, typer.Option("--push", metavar="USER/NAME", help="Send the directory to the hub.")]
Private = Annotated[bool, typer.Option("--private", help="Make the hub's repository private.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no vectors on disk.")]


def check_choice(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ValueError(f"{option} is {given!r}; expected one of {', '.join(known)}")


def cache(off: bool) -> Path | None:
    """The folder of vectors, unless it is switched off."""
    from llm2enc.evaluation import default_cache

    return None if off else default_cache() / "vectors"


def label(model: str) -> str:
    """A folder name for a model: the last part of its name, with the one above where that is only `model`."""
    path = Path(model)
    parts = path.resolve().parts if path.exists() else path.parts
    last = parts[-2:] if parts[-1] == "model" else parts[-1:]
    name = "-".join("".join(c if c.isalnum() or c in "-_." else "-" for c in part) for part in last)
    return name.strip(".") or "model"  # `..` would be the folder above


def ending_well(command: Callable[..., None], kept: str) -> Callable[..., None]:
    """The command with an end for what comes from outside: a message and an exit code, never a traceback.

    Ctrl-C and SIGTERM end it with 130; a disk that is full, closed or broken with 1.

    kept  what is kept, and how to go on
    """

    @functools.wraps(command)  # whose options typer reads
    def run(*arguments, **options) -> None:
        with _stoppable():
            try:
                command(*arguments, **options)
            except KeyboardInterrupt:
                say(f"Interrupted. {kept}")
                raise typer.Exit(130) from None
            except Exception as error:
                from llm2enc.storage import refusal

                found = refusal(error)
                if found is None:
                    raise
                said = (
                    f"{found.filename}: {found.strerror}"
                    if found.filename and not isinstance(error, ValueError)
                    else error
                )
                say(f"error: {said}. {_REMEDIES.get(found.errno, _CLOSED)} {kept}")
                raise typer.Exit(1) from None

    return run


_FULL = "Make room there, or choose another place."
_CLOSED = "Look at the rights, and whether the disk is mounted read-only, or choose another place."
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "Files may not be that large here (see `ulimit -f`): raise the limit, or choose another place.",
    errno.EIO: "The disk is broken or gone: choose another place.",
}


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM, by which schedulers and containers stop a program, is taken for Ctrl-C, and no Ctrl-C is lost.

    Python drops an exception that reaches it in a destructor or in the callback of a weak reference.
    """
    if threading.current_thread() is not threading.main_thread():  # where no handler may be set
        yield
        return
    former, hook = signal.signal(signal.SIGTERM, signal.default_int_handler), sys.unraisablehook
    repeated: list[threading.Timer] = []

    def notice(dropped: "sys.UnraisableHookArgs") -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            hook(dropped)
            return
        repeated.append(threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)))  # when that code has returned
        repeated[-1].start()

    sys.unraisablehook = notice
    try:
        yield
    finally:
        for timer in repeated:
            timer.cancel()
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, former)


@contextmanager
def status(show: bool, opening: str = "opening the model", unit: str = "texts") -> Iterator[Callable[[str, int], None]]:
    """A line that says what is being looked at and how many of its texts are done, and the function that moves it."""
    if not show:
        yield lambda name, count: None
        return
    from rich.console import Console

    done: dict[str, int] = {}
    with Console(stderr=True).status(opening) as status:

        def advance(name: str, count: int) -> None:
            done[name] = done.get(name, 0) + count
            status.update(f"{name}: {done[name]:,} {unit}")

        yield advance


def say(text: str) -> None:
    """Print to the people's channel; a secret that a library put into its message is not passed on."""
    from llm2enc.storage import redacted

    print(redacted(text), file=sys.stderr)


def quiet() -> None:
    """Libraries' progress bars and notices make way for our own."""
    from llm2enc.model import quiet

    quiet()


def narrate() -> None:
    """Let the main process say what the library logs: which rows are read, how, and what is wrong with them."""
    from llm2enc import distributed

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if distributed.is_main():
                say(f"{'warning: ' * (record.levelno >= logging.WARNING)}{record.getMessage()}")

    logger = logging.getLogger("llm2enc")
    logger.handlers = [Handler()]
    logger.setLevel(logging.INFO)


def check_push(repo: str) -> None:
    """ValueError, before anything heavy, for a name or a login that the hub would refuse."""
    from llm2enc.export import check_login, check_repo

    check_repo(repo)
    check_login()


def send(folder: Path, repo: str, private: bool) -> None:
    """Push a directory and say where it is."""
    from llm2enc.export import push

    say(f"pushed: {push(folder, repo, private=private)}")

"""How a command ends that something from outside ends: Ctrl-C, SIGTERM, a disk that takes no more."""

import errno
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from llm2enc.cli.messages import say


def interruptible(command: Callable[..., None], kept: str) -> Callable[..., None]:
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
                from llm2enc.storage import storage_error

                found = storage_error(error)
                if found is None:
                    raise
                said = (
                    f"{found.filename}: {found.strerror}"
                    if found.filename and not isinstance(error, ValueError)
                    else error
                )
                say(f"error: {said}. {_REMEDIES.get(found.errno or 0, _CLOSED)} {kept}")
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

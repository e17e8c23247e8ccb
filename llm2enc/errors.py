"""Every error that llm2enc raises on purpose, as one tree, with the exit code that the command line gives it.

Llm2encError                    1
├── InputError                  2    what was given cannot be used; also a ValueError
│   ├── RecipeError             2    a recipe, an override or a recipe's name
│   ├── DataError               2    training or evaluation data
│   ├── Locked                  2    a directory that another process is writing
│   ├── CannotConvert           3    a model that cannot become an encoder
│   └── CannotExport            3    an encoder that a format cannot hold
│       └── NoGGUF              3
├── TrainingError               1    a run that must not go on; also a RuntimeError
│   ├── NotFinite               1
│   ├── NothingLearnt           1
│   └── Unreachable             1    a process of the run cannot reach the others
└── Interrupted                 130  stopped on request; the same command goes on from there

`except ValueError` catches an InputError. Any other exception is a fault of llm2enc or of a library: the command line
shows its traceback, except for an OSError (exit code 2), whose message names the file.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager


class Llm2encError(Exception):
    """An error whose message is for the user: what was given, what was expected, and what to do."""

    exit_code = 1


class InputError(Llm2encError, ValueError):
    """An argument, option, file or directory that cannot be used as it was given."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe, override or recipe name that cannot be used; the message lists every fault with its path."""


class DataError(InputError):
    """Training or evaluation data that cannot be read, or not used for what it was given for."""


class Locked(InputError):
    """A directory that another process is writing."""


class CannotConvert(InputError):
    """A model that cannot become an encoder: its attention stays causal in the layer that the message names, or its weights
    are quantised."""

    exit_code = 3


class CannotExport(InputError):
    """An encoder that a format cannot hold; the message says why, and what can be done."""

    exit_code = 3


class NoGGUF(CannotExport):
    """An encoder that llama.cpp cannot run; the message says what it lacks, and what would change that."""


class TrainingError(Llm2encError, RuntimeError):
    """A training run that must not go on; its last checkpoint is kept."""


class NotFinite(TrainingError):
    """A loss, vector or gradient is not a number."""


class NothingLearnt(TrainingError):
    """A step cannot change the model."""


class Unreachable(TrainingError):
    """A process of a run cannot reach process 0."""


class Interrupted(Llm2encError):
    """The run was asked to stop and has written a checkpoint; every process raises it after the same step."""

    exit_code = 130


@contextmanager
def explained(what: str, remedy: str, kinds: tuple[type[Exception], ...] = (ValueError,)) -> Iterator[None]:
    """Turns a library's error about what it was given into an InputError.

    what    was given, the subject of the message
    remedy  what to do
    kinds   errors that mean bad input in there; those of JSON, UTF-8 and pydantic are ValueErrors
    """
    try:
        yield
    except Llm2encError:
        raise
    except kinds as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{what} cannot be used ({type(error).__name__}: {reason}); {remedy}") from error


def require(*packages: str, extra: str) -> None:
    """InputError, with the line that installs them, if one of the packages is not there.

    extra  of llm2enc's pyproject.toml that brings them; empty for those of every install
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        target = f"llm2enc[{extra}]" if extra else "llm2enc"
        raise InputError(f'this needs {" and ".join(missing)}, not installed here: pip install "{target}"')

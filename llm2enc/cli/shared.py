"""What the commands share: options, messages, names of folders."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

Set = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a field of the recipe.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Push = Annotated[str | None, typer.Option("--push", metavar="USER/NAME", help="Send the directory to the hub.")]
Private = Annotated[bool, typer.Option("--private", help="Make the hub's repository private.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no vectors on disk.")]


def check_choice(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ValueError(f"{option} is {given!r}; expected one of {', '.join(known)}")


def cache(off: bool) -> Path | None:
    """The folder of vectors, unless it is switched off."""
    from llm2enc.evaluation.cache import default_cache

    return None if off else default_cache() / "vectors"


def label(model: str) -> str:
    """A folder name for a model: the last part of its name, with the one above where that is only `model`."""
    path = Path(model)
    parts = path.resolve().parts if path.exists() else path.parts
    last = parts[-2:] if parts[-1] == "model" else parts[-1:]
    return "-".join("".join(c if c.isalnum() or c in "-_." else "-" for c in part) for part in last)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends with a message and code 130 instead of a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        say("Interrupted. What is finished is kept: the same command goes on from here.")
        raise typer.Exit(130) from None


@contextmanager
def status(show: bool) -> Iterator[Callable[[str, int], None]]:
    """A line that says what is being measured and how many of its texts are done, and the function that moves it."""
    if not show:
        yield lambda name, count: None
        return
    from rich.console import Console

    done: dict[str, int] = {}
    with Console(stderr=True).status("opening the model") as status:

        def advance(name: str, count: int) -> None:
            done[name] = done.get(name, 0) + count
            status.update(f"{name}: {done[name]:,} texts")

        yield advance


def say(text: str) -> None:
    print(text, file=sys.stderr)


def quiet() -> None:
    """Libraries' progress bars and notices make way for our own."""
    from llm2enc.backbone import quiet

    quiet()


def check_push(repo: str) -> None:
    """ValueError, before anything heavy, for a name or a login that the hub would refuse."""
    from llm2enc.hub import check_login, check_repo

    check_repo(repo)
    check_login()


def send(folder: Path, repo: str, private: bool) -> None:
    """Push a directory and say where it is."""
    from llm2enc.hub import push

    say(f"pushed: {push(folder, repo, private=private)}")

"""Options that several commands share, and what they do with them."""

from pathlib import Path
from typing import Annotated

import typer

from llm2enc.cli.messages import say
from llm2enc.errors import InputError

Set = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a field of the recipe.")]
Model = Annotated[
    str | None, typer.Option(help="Hub id, directory, GGUF file, package or `pocket`, instead of the recipe's model.")
]
Data = Annotated[str | None, typer.Option(help="Pairs to train on instead of the recipe's: file, folder or hub id.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Push = Annotated[str | None, typer.Option("--push", metavar="USER/NAME", help="Send the directory to the hub.")]
Private = Annotated[bool, typer.Option("--private", help="Make the hub's repository private.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no vectors on disk.")]


def check_choice(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise InputError(f"{option} is {given!r}; expected one of {', '.join(known)}")


def cache(off: bool) -> Path | None:
    """The folder of vectors, unless it is switched off."""
    from llm2enc.storage import default_cache

    return None if off else default_cache() / "vectors"


def label(model: str) -> str:
    """A folder name for a model: the last part of its name, with the one above where that is only `model`."""
    path = Path(model)
    parts = path.resolve().parts if path.exists() else path.parts
    last = parts[-2:] if parts[-1] == "model" else parts[-1:]
    name = "-".join("".join(c if c.isalnum() or c in "-_." else "-" for c in part) for part in last)
    return name.strip(".") or "model"  # `..` would be the folder above


def check_push(repo: str) -> None:
    """ValueError, before anything heavy, for a name or a login that the hub would refuse."""
    from llm2enc.export import check_login, check_repo

    check_repo(repo)
    check_login()


def send(folder: Path, repo: str, private: bool) -> None:
    """Push a directory and say where it is."""
    from llm2enc.export import push

    say(f"pushed: {push(folder, repo, private=private)}")

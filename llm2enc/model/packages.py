"""Python packages that bring a model's weights, so that a package index is all a user needs.

`packages.json` says of each module which distributions hold it, which of their files make the GGUF file, its SHA-256, its
licence, and what on the hub it was made from. Nothing of a package is imported: its code may need more than the weights do.
"""

import importlib.util
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from llm2enc.errors import InputError


@dataclass(frozen=True)
class Package:
    """One model that installs from a package index."""

    model: str
    hub: str
    """The repository that it was made from."""
    license: str
    release: str
    distributions: list[str]
    parts: list[str]
    """MODULE/FILE of each piece of the GGUF file, in order."""
    sha256: str
    notice: list[str]
    """MODULE/FILE of what the licence wants beside every copy."""

    @property
    def install(self) -> str:
        """The line that installs it, without what its own code would need."""
        return f"pip install --no-deps {' '.join(self.distributions)}"


@lru_cache
def packages() -> dict[str, Package]:
    """The packages that are known, by module."""
    table = json.loads((Path(__file__).parent / "packages.json").read_text(encoding="utf-8"))
    return {name: Package(**fields) for name, fields in table.items()}


def package(name: str) -> Package:
    """The package of a module. InputError, which lists those that are known."""
    if name not in packages():
        raise InputError(f"no package {name!r} with a model is known; known are {', '.join(packages())}")
    return packages()[name]


def installed(name: str) -> bool:
    """Whether every piece of a package's model is here."""
    return all(path is not None and path.is_file() for path in map(_place, package(name).parts))


def files(name: str) -> tuple[Path, ...]:
    """The pieces of a package's model. InputError, with the line that installs it, if it is not here."""
    if not installed(name):
        raise InputError(f"the package {name} ({package(name).model}) is not installed here: {package(name).install}")
    return tuple(path for path in map(_place, package(name).parts) if path is not None)


def notices(name: str) -> tuple[Path, ...]:
    """Files that go with every copy of a package's model, and with what is made of it."""
    return tuple(path for path in map(_place, package(name).notice) if path is not None)


def _place(part: str) -> Path | None:
    """Where MODULE/FILE is; None without the module."""
    module, _, file = part.partition("/")
    found = importlib.util.find_spec(module)
    return (
        None
        if found is None or not found.submodule_search_locations
        else Path(found.submodule_search_locations[0], file)
    )

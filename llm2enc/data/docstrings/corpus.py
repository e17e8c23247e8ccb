"""Docstrings of the installed packages: prose that every machine has, without a download.

The source files are read as text; no package is imported and nothing of it runs. Modules are split into `train` and
`heldout` by a hash of their top two names, so that evaluation never sees a text that was trained on.
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal

from llm2enc.data.docstrings.prose import num_words, paragraphs, sentences
from llm2enc.data.docstrings.scan import scan_docstrings
from llm2enc.errors import DataError

_NO_PROSE = {
    "__pycache__", "_vendor", "antigravity", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test",
    "testing", "tests", "this", "third_party", "turtledemo", "vendor",
}  # fmt: skip

DEFAULT_PACKAGES: tuple[str, ...] = (
    *sorted(name for name in sys.stdlib_module_names if name not in _NO_PROSE),
    # What llm2enc requires, directly or through torch, datasets and wandb: there whichever extras are installed.
    *(
        "accelerate",
        "click",
        "datasets",
        "dateutil",
        "dill",
        "filelock",
        "fsspec",
        "httpx",
        "huggingface_hub",
        "jinja2",
    ),
    *("markdown_it", "mpmath", "multiprocess", "networkx", "numpy", "packaging", "pandas", "peft", "platformdirs"),
    *("psutil", "pyarrow", "pydantic", "pygments", "regex", "requests", "rich", "safetensors", "scipy", "sympy"),
    *("tokenizers", "torch", "tqdm", "transformers", "typer", "wandb", "yaml"),
)

_MAX_FILE_BYTES = 400_000  # longer files are generated
_MAX_BODY_WORDS = 150


@dataclass(frozen=True, slots=True)
class Docstring:
    """The prose of one docstring."""

    module: str
    name: str
    """Qualified name inside the module; empty for the module itself."""
    summary: str
    """First sentence of at least three words."""
    body: str
    """The prose after the summary, never repeating it; may be empty."""
    paragraphs: tuple[str, ...]
    """Every prose paragraph of at least five words, the summary's included."""


def read_docstrings(
    packages: tuple[str, ...] | None = None, split: Literal["train", "heldout"] = "train"
) -> list[Docstring]:
    """Docstrings of the packages that belong to the split, sorted by module and name, without exact duplicates.

    packages  import names; by default those of DEFAULT_PACKAGES that are installed
    """
    train, heldout = _splits(packages)
    return list(train if split == "train" else heldout)


def paragraph_view(found: list[Docstring]) -> list[str]:
    """Every paragraph once."""
    return list(dict.fromkeys(text for docstring in found for text in docstring.paragraphs))


def sentence_view(found: list[Docstring]) -> list[str]:
    """Every sentence of 5 to 60 words once."""
    split = (sentence for text in paragraph_view(found) for sentence in sentences(text))
    return list(dict.fromkeys(sentence for sentence in split if 5 <= num_words(sentence) <= 60))


def pair_view(found: list[Docstring]) -> list[tuple[str, str]]:
    """(summary, body cut at 150 words) of docstrings whose body has 8 words or more; no query or document twice."""
    pairs: list[tuple[str, str]] = []
    queries: set[str] = set()
    documents: set[str] = set()
    for docstring in found:
        body = " ".join(docstring.body.split()[:_MAX_BODY_WORDS])
        # One text on both sides of two pairs would make a right answer count as a wrong one.
        if num_words(body) >= 8 and docstring.summary not in queries and body not in documents:
            pairs.append((docstring.summary, body))
            queries.add(docstring.summary)
            documents.add(body)
    return pairs


@lru_cache(maxsize=4)
def _splits(packages: tuple[str, ...] | None) -> tuple[tuple[Docstring, ...], tuple[Docstring, ...]]:
    """(train, heldout); cached because a run asks for both, and reading takes seconds."""
    train: dict[tuple[str, ...], Docstring] = {}
    heldout: dict[tuple[str, ...], Docstring] = {}
    for module, file in sorted(_files(packages)):
        target = heldout if is_heldout(module) else train
        for docstring in _read_file(module, file):
            target.setdefault((docstring.summary, docstring.body, *docstring.paragraphs), docstring)
    seen = {sentence for docstring in train.values() for sentence in _all_sentences(docstring)}
    unseen = (docstring for docstring in heldout.values() if seen.isdisjoint(_all_sentences(docstring)))
    return tuple(train.values()), tuple(unseen)


def is_heldout(module: str) -> bool:
    """Whether a module is kept for evaluation: one in ten, by the hash of its top two names."""
    top = ".".join(module.split(".")[:2])
    return int(hashlib.sha256(top.encode()).hexdigest(), 16) % 10 == 0


def _all_sentences(docstring: Docstring) -> Iterator[str]:
    yield docstring.summary
    for text in docstring.paragraphs:
        yield from sentences(text)


def _files(packages: tuple[str, ...] | None) -> set[tuple[str, Path]]:
    """(module name, source file) of every module of the packages."""
    found: set[tuple[str, Path]] = set()
    for package in DEFAULT_PACKAGES if packages is None else packages:
        # PathFinder looks at sys.path only: it never imports, and it finds the files of frozen modules such as `os`.
        spec = PathFinder.find_spec(package) if "." not in package else None
        if spec is None:
            if packages is not None:
                raise DataError(
                    f"docstrings: no installed package {package!r}; give top-level import names such as 'numpy', "
                    "or leave `packages` out to use what is installed"
                )
            continue
        for root in spec.submodule_search_locations or ():
            found.update(_package_files(package, Path(root)))
        if spec.submodule_search_locations is None and spec.origin and spec.origin.endswith(".py"):
            found.add((package, Path(spec.origin)))
    return found


def _package_files(package: str, root: Path) -> Iterator[tuple[str, Path]]:
    for file in root.rglob("*.py"):
        parts = file.relative_to(root).with_suffix("").parts
        if _NO_PROSE.isdisjoint(parts):
            yield ".".join((package, *(part for part in parts if part != "__init__"))), file


def _read_file(module: str, file: Path) -> list[Docstring]:
    """The docstrings of one source file, sorted by name; none of a generated or unreadable file."""
    source = file.read_bytes()
    if len(source) > _MAX_FILE_BYTES:
        return []
    try:
        text = source.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return []  # a few old files declare another encoding
    read = (_read_docstring(module, name, docstring) for name, docstring in sorted(scan_docstrings(text)))
    return [docstring for docstring in read if docstring is not None]


def _read_docstring(module: str, name: str, text: str) -> Docstring | None:
    """The prose of one docstring, or None if it has no sentence of three words."""
    found = paragraphs(text)
    if not found:
        return None
    opening = sentences(found[0])
    summary = next((sentence for sentence in opening if num_words(sentence) >= 3 and sentence[-1] != ":"), None)
    if summary is None:
        return None
    after = opening[opening.index(summary) + 1 :] + [sentence for text in found[1:] for sentence in sentences(text)]
    # A document that quotes its query would make retrieval a string search.
    bare = summary.rstrip(".!?:").casefold()
    body = " ".join(sentence for sentence in after if bare not in sentence.casefold())
    return Docstring(module, name, summary, body, tuple(text for text in found if num_words(text) >= 5))

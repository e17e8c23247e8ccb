"""The header of a GGUF file, read as plain data: what the file holds, before any of its weights are.

The `gguf` package parses every token of a vocabulary into arrays of its own, which takes half a minute for 262,144 of
them; this takes a second and needs no package. Format: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm2enc.errors import InputError, explained

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Header:
    """What stands before the weights."""

    metadata: dict[str, Any]
    """By key, such as `general.architecture`."""
    tensors: dict[str, int]
    """Numbers that each tensor holds, by name."""

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the family; empty if the file does not say."""
        return str(self.metadata.get("general.architecture", ""))

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        """What stands under `tokenizer.ggml.`."""
        start = "tokenizer.ggml."
        return {key.removeprefix(start): value for key, value in self.metadata.items() if key.startswith(start)}


def read_header(path: Path) -> Header:
    """The header of a file. InputError if it is no GGUF file, or damaged."""
    with (
        explained(str(path), "give a whole GGUF file of version 2 or 3", (ValueError, KeyError, struct.error)),
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return _parse(_Cursor(data), path)


def _parse(cursor: "_Cursor", path: Path) -> Header:
    magic, version = cursor.take("4s"), cursor.take("I")
    if magic != b"GGUF" or version not in (2, 3):
        raise InputError(f"{path} is no GGUF file of version 2 or 3: it begins with {magic!r} and {version}")
    count, keys = cursor.take("Q"), cursor.take("Q")
    metadata = {}
    for _ in range(keys):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.take("I"))
    tensors = {}
    for _ in range(count):
        name = cursor.text()
        tensors[name] = math.prod(cursor.take("Q") for _ in range(cursor.take("I")))
        cursor.take("I")  # type
        cursor.take("Q")  # place
    return Header(metadata, tensors)


class _Cursor:
    """A place in the file, which every value that is taken moves on. struct.error at the end of the file."""

    def __init__(self, data: mmap.mmap):
        self.data, self.place = data, 0

    def take(self, kind: str) -> Any:
        return self.many(kind)[0]

    def many(self, kind: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{kind}", self.data, self.place)
        self.place += struct.calcsize(f"<{kind}")
        return values

    def text(self) -> str:
        return self.take(f"{self.take('Q')}s").decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.take("I"), self.take("Q")
            if inner == _STRING:
                return [self.text() for _ in range(count)]
            return list(self.many(f"{count}{_SCALARS[inner]}"))
        return self.take(_SCALARS[kind])

"""Encode many texts into a file, alone or as one of several processes."""

import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from llm2enc import distributed
from llm2enc.data import Rows
from llm2enc.encoding import encoder as encoding
from llm2enc.encoding.encoder import Encoder
from llm2enc.encoding.partial_file import Facts, Unfinished
from llm2enc.encoding.quantization import Precision, layout

FORMAT = 1
_PACKAGES = ("llm2enc", "torch", "transformers", "tokenizers", "numpy")  # whose releases may change a vector's last bit
_SLICE = 4096  # texts read at a time for the digest


def text_digest(texts: Sequence[str]) -> str:
    """SHA-256 of the texts."""
    digest = hashlib.sha256()
    for start in range(0, len(texts), _SLICE):
        coded = [text.encode("utf-8", "surrogatepass") for text in texts[start : start + _SLICE]]
        digest.update(np.array([len(text) for text in coded], dtype="<i8").tobytes())
        digest.update(b"".join(coded))
    return digest.hexdigest()


def encoder_facts(encoder: Encoder, precision: Precision, truncate_dim: int | None, reading: str) -> Facts:
    """What vectors depend on besides the texts and the ranges, to the last bit, and their layout.

    reading  `Encoder.reading` of what is asked
    """
    entries, kind = layout(truncate_dim or encoder.dimensions, precision)
    device = encoder.device
    return {
        "format": FORMAT,
        "encoder": encoder.fingerprint(),
        "reading": reading,
        "width": entries,
        "dtype": kind.newbyteorder("<").str,
        "windows": [encoding.PIECE, encoding.PIECE_CHARACTERS, encoding.WINDOW, encoding.WINDOW_TOKENS],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "float32 products": torch.get_float32_matmul_precision(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def encode_file(
    encoder: Encoder,
    texts: Rows[str],
    unfinished: Unfinished,
    facts: Facts,
    *,
    ranges: np.ndarray | None = None,
    show_progress: bool = False,
    **asked: Any,
) -> None:
    """Write the vectors of all texts: none is missing then. Under torchrun each process writes a part of them.

    facts   what the vectors depend on; `unfinished.check` has allowed them
    asked   `instruction`, `prompt_name`, `truncate_dim` and `precision` of `Encoder.encode`
    raises  OSError with the file's name if it can't be written; what is on the disk stays, and a later call goes on
    """
    if distributed.is_main():
        unfinished.begin(facts)
    distributed.barrier()
    stretches = unfinished.missing(facts)
    distributed.barrier()  # every process has looked before one writes
    if distributed.world_size() > 1:
        reading = {name: asked.get(name) for name in ("instruction", "prompt_name")}
        stretches = _own(encoder.windows(texts, **reading), stretches)
    with unfinished.writer(facts, distributed.rank()) as write:
        for stretch in stretches:
            first = stretch.start
            some = Rows(texts.name, len(stretch), lambda rows, start=first: texts.take(rows + start))
            for block in encoder.encode_blocks(some, ranges=ranges, show_progress=show_progress, first=first, **asked):
                write(first, block)
                first += len(block)
    distributed.barrier()


def _own(windows: list[range], stretches: list[range]) -> list[range]:
    """This process's share of the windows in the stretches, joined where they touch."""
    todo = [
        window
        for window in windows
        if any(stretch.start <= window.start and window.stop <= stretch.stop for stretch in stretches)
    ]
    mine: list[range] = []
    for number in distributed.share(len(todo)):
        window = todo[number]
        if mine and mine[-1].stop == window.start:
            window = range(mine.pop().start, window.stop)
        mine.append(window)
    return mine


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a source tree that was never installed
        return "unknown"

"""Encode many texts into a file, alone or as one of several processes."""

import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch

from llm2enc import distributed
from llm2enc.data import Rows
from llm2enc.encoding import pipeline
from llm2enc.encoding.encoder import Encoder
from llm2enc.encoding.options import DEFAULT, EncodeOptions
from llm2enc.encoding.partial_file import PartialFile
from llm2enc.encoding.quantization import layout
from llm2enc.errors import InputError
from llm2enc.storage import Facts

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


def encoder_facts(encoder: Encoder, options: EncodeOptions) -> Facts:
    """What vectors depend on besides the texts and the ranges, to the last bit, and their layout."""
    if not isinstance(options.instruction, str | None):
        raise InputError("a file of texts is encoded with one instruction, got several")
    entries, kind = layout(options.truncate_dim or encoder.dimensions, options.precision)
    return {
        "format": FORMAT,
        "encoder": encoder.fingerprint(),
        "cache_key": encoder.cache_key(
            instruction=options.instruction, prompt_name=options.prompt_name, examples=options.examples
        ),
        "width": entries,
        "dtype": kind.newbyteorder("<").str,
        "buffers": [pipeline.CHUNK_TEXTS, pipeline.CHUNK_CHARACTERS, pipeline.BUFFER_TEXTS, pipeline.BUFFER_TOKENS],
        **machine_facts(encoder.device),
    }


def machine_facts(device: torch.device) -> Facts:
    """What the last bit of a vector depends on besides the encoder and the texts."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "float32 products": torch.get_float32_matmul_precision(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def encode_file(
    encoder: Encoder,
    texts: Rows[str],
    partial: PartialFile,
    facts: Facts,
    options: EncodeOptions = DEFAULT,
) -> None:
    """Write the vectors of all texts: none is missing then. Under torchrun each process writes a part of them.

    facts   what the vectors depend on; `partial.check` has allowed them
    raises  OSError with the file's name if it cannot be written; what is on the disk stays, and a later call goes on
    """
    if distributed.is_main():
        partial.begin(facts)
    distributed.barrier()
    ranges = partial.missing(facts)
    distributed.barrier()  # every process has looked before one writes
    if distributed.world_size() > 1:
        ranges = _own(encoder.block_rows(texts, options), ranges)
    with partial.writer(facts, distributed.rank()) as write:
        for gap in ranges:
            first = gap.start
            some = Rows(texts.name, len(gap), lambda rows, start=first: texts.take(rows + start))
            for block in encoder.encode_blocks(some, options, first):
                write(first, block)
                first += len(block)
    distributed.barrier()


def _own(blocks: list[range], ranges: list[range]) -> list[range]:
    """This process's share of the blocks in the row ranges, joined where they touch."""
    todo = [block for block in blocks if any(rows.start <= block.start and block.stop <= rows.stop for rows in ranges)]
    mine: list[range] = []
    for number in distributed.rank_slice(len(todo)):
        block = todo[number]
        if mine and mine[-1].stop == block.start:
            block = range(mine.pop().start, block.stop)
        mine.append(block)
    return mine


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a source tree that was never installed
        return "unknown"

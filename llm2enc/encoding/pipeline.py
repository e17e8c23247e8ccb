"""From texts to sort buffers of tokens: chunks are tokenized ahead of the model, and joined until a buffer is full.

    texts -> pairs (text, instruction) -> chunks -> tokenized by a thread -> sort buffers -> micro-batches of like length

What the tokenizer returns takes 40 times the memory of the ids alone, so only a chunk of texts is tokenized at a time.
The ids of many chunks make a sort buffer, whose texts are sorted by length. Both are bounded for short texts and for long
ones. A buffer gives one block of vectors, and no bit of a block depends on other blocks.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm2enc.errors import InputError
from llm2enc.text import Tokens, concatenate

CHUNK_TEXTS, CHUNK_CHARACTERS = 256, 2**17
BUFFER_TEXTS, BUFFER_TOKENS = 8192, 2**20

Chunk = tuple[int, list[tuple[str, str]]]
"""Number of the first text, and texts with their instructions."""


def pairs(texts: Iterable[str], instruction: str | Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each text with its instruction. ValueError, at once where both sizes are known, if one side ends early."""
    if isinstance(instruction, str):
        return ((text, instruction) for text in _items(texts))
    if isinstance(texts, Sized) and isinstance(instruction, Sized) and len(texts) != len(instruction):
        raise InputError(f"{len(texts)} texts but {len(instruction)} instructions; give one, or one per text")
    return _zip_strict(_items(texts), _items(instruction))


def _zip_strict(texts: Iterator[str], instructions: Iterator[str]) -> Iterator[tuple[str, str]]:
    end: Any = object()
    for number, (text, instruction) in enumerate(zip_longest(texts, instructions, fillvalue=end)):
        if text is end or instruction is end:
            short, long = ("texts", "instructions") if text is end else ("instructions", "texts")
            raise InputError(f"the {short} end after {number}, but there are more {long}; give one per text")
        yield text, instruction


def _items(rows: Iterable[str]) -> Iterator[str]:
    """The rows one by one, read by slices where possible: a column on disk takes 100 times as long row by row."""
    if not isinstance(rows, Sequence):
        yield from rows
        return
    for start in range(0, len(rows), CHUNK_TEXTS):
        yield from rows[start : start + CHUNK_TEXTS]


def chunks(texts: Iterator[tuple[str, str]], first: int = 0) -> Iterator[Chunk]:
    """Neighbours to tokenize together, with the number of the first."""
    chunk, characters = [], 0
    for pair in texts:
        chunk.append(pair)
        characters += len(pair[0]) if isinstance(pair[0], str) else 0  # what is no str is refused where it is packed
        if len(chunk) >= min(CHUNK_TEXTS, BUFFER_TEXTS) or characters >= CHUNK_CHARACTERS:
            yield first, chunk
            first, chunk, characters = first + len(chunk), [], 0
    if chunk:
        yield first, chunk


def packed_ahead(worker: ThreadPoolExecutor, pack: Callable[..., Tokens], todo: Iterable[Chunk]) -> Iterator[Tokens]:
    """`pack(*chunk)` of every chunk, made by `worker` while the model works: the tokenizer needs no Python lock.

    `todo` itself is read here, in the caller's thread, because a database cursor may refuse any other.
    """
    waiting: deque[Future[Tokens]] = deque()
    for chunk in todo:
        waiting.append(worker.submit(pack, *chunk))
        if len(waiting) > BUFFER_TEXTS // CHUNK_TEXTS:  # the buffer that comes next
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def sort_buffers(packed: Iterable[Tokens]) -> Iterator[Tokens]:
    """Chunks joined until there are BUFFER_TEXTS texts or BUFFER_TOKENS tokens."""
    parts: list[Tokens] = []
    for part in packed:
        parts.append(part)
        if is_full(sum(map(len, parts)), sum(len(part.ids) for part in parts)):
            joined, parts = concatenate(parts), []
            yield joined
            del joined  # or it would live beside the next one
    if parts:
        yield concatenate(parts)


def is_full(texts: int, tokens: int) -> bool:
    """Whether a sort buffer of so many ends here."""
    return texts >= BUFFER_TEXTS or tokens >= BUFFER_TOKENS


def distinct(tokens: Tokens) -> tuple[np.ndarray, Tensor]:
    """For each text the first row with its tokens (B,), and those first rows in an order of their own (U,).

    The order depends on the texts alone, so that shuffled input gives bit-equal vectors.
    """
    ids, pool = tokens.ids.numpy(), tokens.pool.numpy()
    first: dict[bytes, int] = {}
    original = np.empty(len(tokens), dtype=np.int64)
    end = 0
    for row, length in enumerate(tokens.lengths.tolist()):
        start, end = end, end + length
        # 128 bits: of two inputs with one key the second would get the vector of the first.
        digest = hashlib.blake2b(ids[start:end].tobytes(), digest_size=16)
        digest.update(pool[start:end].tobytes())
        original[row] = first.setdefault(digest.digest(), row)
    return original, torch.tensor([first[key] for key in sorted(first)], dtype=torch.int64)

"""Batches: an endless, shuffled sequence in which batch k depends on sources, batch size, seed and k alone.

Nothing here knows about processes, and no state is kept: an epoch is a function of its number, so a run that resumes at
step k computes the epoch that k falls in and goes on as if it had never stopped.
"""

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import numpy as np

from llm2enc.data.rows import RowKind, Rows, Stream
from llm2enc.data.sources import read_rows, read_texts
from llm2enc.errors import DataError
from llm2enc.recipe import DataSpec

_log = logging.getLogger(__name__)

Tokenize = Callable[[list[str]], list[list[int]]]

_CHUNK = 1000  # texts that are tokenized at once
_SHUFFLE_BUFFER = 10_000  # rows of a stream that are held to be drawn from


@dataclass(frozen=True, slots=True)
class RowBatch:
    """The rows of one optimizer step, over all processes."""

    step: int
    """0-based number of the optimizer step."""
    rows: list[Any]
    """Texts, `Pair`s, `ScoredPair`s, or int32 token blocks of shape (block_tokens,)."""
    source: str
    """Name of the data set; `mixed` for blocks that come from several."""
    in_batch_negatives: bool
    """Whether another row's positive may serve as a negative."""
    unique_ids: bool = False
    """Whether every row's texts get a number of their own."""


@dataclass(frozen=True)
class _Source:
    rows: Rows[Any] | Stream[Any]
    weight: float
    in_batch_negatives: bool
    unique_ids: bool = False

    def batch(self, step: int, rows: list[Any]) -> RowBatch:
        return RowBatch(step, rows, self.rows.name, self.in_batch_negatives, self.unique_ids)


def row_batches(
    row: RowKind,
    specs: Sequence[DataSpec],
    batch_size: int,
    seed: int,
    start: int = 0,
    alpha: float | None = None,
    scores: bool = False,
) -> Iterator[RowBatch]:
    """Endless batches of rows of one kind from batch `start` on, each from one source.

    row     `str` (nonempty texts), `Pair` or `ScoredPair`
    scores  give `Pair`s the scores of their documents, where the source has them
    raises  ValueError for a source that has no such rows
    """
    sources = [
        _Source(read_rows(row, spec, scores), spec.weight, spec.in_batch_negatives, spec.unique_ids) for spec in specs
    ]
    return _batches(sources, batch_size, seed, start, alpha)


def block_batches(
    specs: Sequence[DataSpec],
    tokenize: Tokenize,
    block_tokens: int,
    batch_size: int,
    seed: int,
    start: int = 0,
    alpha: float | None = None,
) -> Iterator[RowBatch]:
    """Endless batches of token blocks (block_tokens,) int32 from batch `start` on, mixed over the sources.

    tokenize  token ids of each text; what stands between two texts is its decision
    """
    sources = [_block_source(read_texts(spec), spec, tokenize, block_tokens) for spec in specs]
    if any(isinstance(source.rows, Stream) for source in sources):
        return _batches(sources, batch_size, seed, start, alpha)
    return _mixed(_shared(sources, alpha), batch_size, seed, start)


# ---------------------------------------------------------------------------------------------------------- known size


def _batches(sources: list[_Source], batch_size: int, seed: int, start: int, alpha: float | None) -> Iterator[RowBatch]:
    sources = _shared(sources, alpha)
    if any(isinstance(source.rows, Stream) for source in sources):
        return _interleaved(sources, batch_size, seed, start)
    for source in sources:
        _check_size(source.rows.name, len(source.rows), source.weight, batch_size)
    return _epochs(sources, batch_size, seed, start)


def _shared(sources: list[_Source], alpha: float | None) -> list[_Source]:
    """The sources with the weights that make rows per epoch, size x weight, proportional to weight x size^alpha.

    Temperature sampling of mixtures (multilingual BERT's n^0.7, arXiv 1911.02116 section 3.1). Of the factors that are
    left free, the one is taken that shows every row at least once an epoch, and those of the source that is seen most
    rarely (with equal weights the largest one) exactly once.
    """
    if alpha is None:
        return sources
    streams = [source.rows.name for source in sources if isinstance(source.rows, Stream)]
    if streams:
        raise DataError(
            f"`mixture_alpha` needs the sizes of all sources, and {', '.join(streams)} streams; remove it, and give "
            "shares of the batches by `weight`"
        )
    often = [source.weight * len(source.rows) ** (alpha - 1) for source in sources]  # each row of it, relatively
    return [replace(source, weight=rate / min(often)) for source, rate in zip(sources, often, strict=True)]


def _epochs(sources: list[_Source], batch_size: int, seed: int, start: int) -> Iterator[RowBatch]:
    """Batches of sources of known size; the groups of all sources are shuffled together in every epoch."""
    per_source = [_rows_per_epoch(len(source.rows), source.weight) // batch_size for source in sources]
    origin = np.repeat(np.arange(len(sources)), per_source)  # (G,) source of each group of an epoch
    within = np.concatenate([np.arange(number) for number in per_source])  # (G,) its number within the source
    first_epoch, first = divmod(start, len(origin))
    for epoch in count(first_epoch):
        orders = [_order(source, batch_size, seed, epoch, index) for index, source in enumerate(sources)]
        groups = _generator(seed, epoch, len(sources)).permutation(len(origin))
        for position in range(first, len(origin)):
            group = groups[position]
            source = sources[origin[group]]
            chosen = orders[origin[group]][within[group] * batch_size :][:batch_size]
            step = epoch * len(origin) + position
            yield source.batch(step, source.rows.take(chosen))
        first = 0


def _mixed(sources: list[_Source], batch_size: int, seed: int, start: int) -> Iterator[RowBatch]:
    """Batches from one pool of all sources."""
    names = [source.rows.name for source in sources]
    pool: list[np.ndarray] = [source.rows.take(np.arange(len(source.rows))) for source in sources]
    size = sum(_rows_per_epoch(len(source.rows), source.weight) for source in sources)
    _check_size(", ".join(names), size, 1.0, batch_size)
    name = names[0] if len(names) == 1 else "mixed"
    per_epoch = size // batch_size
    first_epoch, first = divmod(start, per_epoch)
    for epoch in count(first_epoch):
        orders = [_order(source, 1, seed, epoch, index) for index, source in enumerate(sources)]
        members = np.concatenate([np.stack([np.full(len(o), i), o], axis=1) for i, o in enumerate(orders)])  # (N, 2)
        members = members[_generator(seed, epoch, len(sources)).permutation(len(members))]
        for position in range(first, per_epoch):
            chosen = members[position * batch_size :][:batch_size]
            rows = [pool[source][row] for source, row in chosen]
            yield RowBatch(epoch * per_epoch + position, rows, name, True)
        first = 0


def _generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    # A recipe's seed may be negative, numpy's may not.
    return np.random.default_rng((seed % 2**63, epoch, index))


def _rows_per_epoch(size: int, weight: float) -> int:
    return round(size * weight)


def _order(source: _Source, batch_size: int, seed: int, epoch: int, index: int) -> np.ndarray:
    """Row numbers of one epoch (round(size x weight),): permutations one after another, the last one cut.

    A batch that reaches over the end of a permutation would meet rows twice, and a row is a false negative of itself;
    rows of that batch therefore move to the end of the next permutation.
    """
    wanted = _rows_per_epoch(len(source.rows), source.weight)
    generator = _generator(seed, epoch, index)
    order = np.zeros(0, dtype=np.int64)
    while len(order) < wanted:
        tail = order[len(order) - len(order) % batch_size :]
        following = generator.permutation(len(source.rows))
        again = np.isin(following, tail)
        order = np.concatenate([order, following[~again], following[again]])
    return order[:wanted]


def _check_size(name: str, size: int, weight: float, batch_size: int) -> None:
    available = min(size, _rows_per_epoch(size, weight))
    if available < batch_size:
        weighted = f" (size {size}, weight {weight})" if weight != 1 else ""
        raise DataError(
            f"data source {name!r} has {available} rows{weighted}, fewer than the batch size of {batch_size}; "
            f"set batch_size to {available} or less, or give it more data"
        )


# ----------------------------------------------------------------------------------------------------------- streaming


def _interleaved(sources: list[_Source], batch_size: int, seed: int, start: int) -> Iterator[RowBatch]:
    """Batches where at least one source streams: its size is not known, so weights are shares of the batches."""
    turns = _turns([source.weight for source in sources])
    passed = [0] * len(sources)
    for index in islice(turns, start):
        passed[index] += 1
    streams = [
        _single(source, batch_size, seed, index, begin)
        for index, (source, begin) in enumerate(zip(sources, passed, strict=True))
    ]
    return (sources[index].batch(step, next(streams[index])) for step, index in enumerate(turns, start))


def _turns(weights: Sequence[float]) -> Iterator[int]:
    """Source of each batch: the one that is furthest behind its share."""
    given = np.zeros(len(weights))
    shares = np.array(weights) / sum(weights)
    for step in count(1):
        index = int(np.argmax(step * shares - given))
        given[index] += 1
        yield index


def _single(source: _Source, batch_size: int, seed: int, index: int, start: int) -> Iterator[list[Any]]:
    """Row groups of one source from group `start` on."""
    if isinstance(source.rows, Rows):
        _check_size(source.rows.name, len(source.rows), source.weight, batch_size)
        return (batch.rows for batch in _epochs([source], batch_size, seed, start))
    return _stream_groups(source.rows, batch_size, seed, index, start)


def _stream_groups(
    stream: Stream[Any], batch_size: int, seed: int, index: int, start: int
) -> Generator[list[Any], None, None]:
    """Row groups of pass after pass, from group `start` on."""
    epoch = 0
    while True:
        groups = yield from _pass(stream, batch_size, _generator(seed, epoch, index), start)
        if start >= groups:  # this pass was only counted; all passes are alike
            epoch, start = divmod(start, groups)
        else:
            epoch, start = epoch + 1, 0


def _pass(
    stream: Stream[Any], batch_size: int, generator: np.random.Generator, start: int
) -> Generator[list[Any], None, int]:
    """Row groups of one pass from group `start` on; returns how many the whole pass has."""
    size = 0

    def blocks() -> Iterator[Rows[Any]]:
        nonlocal size
        for block in stream.blocks():
            size += len(block)
            yield block

    rows = _shuffled(blocks(), generator, start * batch_size)
    while len(group := list(islice(rows, batch_size))) == batch_size:
        yield group
    if size < batch_size:
        _check_size(stream.name, size, 1.0, batch_size)
    return size // batch_size


@dataclass(frozen=True, slots=True)
class _Unread:
    """A row that has not been converted."""

    block: Rows[Any]
    position: int


def _shuffled(blocks: Iterator[Rows[Any]], generator: np.random.Generator, skip: int) -> Iterator[Any]:
    """One pass without its first `skip` rows, each row drawn from a buffer over the stream.

    The order depends on the number of rows alone: what is skipped is drawn too, but only what is left is converted.

    Not `IterableDataset.shuffle`: it reads with threads, waits seconds at the end of every pass, and its order depends
    on the version of `datasets`, while a resumed run must see the order of the run it continues.
    """
    buffer: list[Any] = []
    for block in blocks:
        rows = [_Unread(block, position) for position in range(len(block))] if skip else block[:]
        fitting = _SHUFFLE_BUFFER - len(buffer)
        buffer += rows[:fitting]
        for row, place in zip(rows[fitting:], _draws(generator, len(rows) - fitting), strict=True):
            drawn, buffer[place] = buffer[place], row
            if skip:
                skip -= 1
                buffer = buffer if skip else _converted(buffer)
            else:
                yield drawn if not isinstance(drawn, _Unread) else drawn.block[drawn.position]
    order = generator.permutation(len(buffer))
    yield from _converted([buffer[place] for place in order[skip:]])


def _draws(generator: np.random.Generator, number: int) -> list[int]:
    return generator.integers(_SHUFFLE_BUFFER, size=max(0, number)).tolist()


def _converted(rows: list[Any]) -> list[Any]:
    """The rows, those of one block converted together."""
    unread: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        if isinstance(row, _Unread):
            unread.setdefault(id(row.block), []).append(place)
    for places in unread.values():
        positions = np.array([rows[place].position for place in places])
        for place, row in zip(places, rows[places[0]].block.take(positions), strict=True):
            rows[place] = row
    return rows


# -------------------------------------------------------------------------------------------------------------- blocks


def _block_source(texts: Rows[str] | Stream[str], spec: DataSpec, tokenize: Tokenize, block_tokens: int) -> _Source:
    if isinstance(texts, Stream):
        stream = Stream(
            texts.name, lambda: (_held(texts.name, rows) for rows in _blocks(iter(texts), tokenize, block_tokens))
        )
        return _Source(stream, spec.weight, True)
    pool = [block for rows in _blocks(_in_order(texts), tokenize, block_tokens) for block in rows]
    if not pool:
        raise DataError(
            f"data source {texts.name!r}: its {len(texts)} texts together have fewer than {block_tokens} tokens, "
            "which is one block; lower block_tokens or give it more text"
        )
    _log.info("%s: %d blocks of %d tokens", texts.name, len(pool), block_tokens)
    return _Source(_held(texts.name, pool), spec.weight, True)


def _held(name: str, rows: Sequence[np.ndarray]) -> Rows[np.ndarray]:
    return Rows(name, len(rows), lambda chosen: [rows[i] for i in chosen])


def _in_order(texts: Rows[str]) -> Iterator[str]:
    for begin in range(0, len(texts), _CHUNK):
        yield from texts[begin : begin + _CHUNK]


def _blocks(texts: Iterator[str], tokenize: Tokenize, block_tokens: int) -> Iterator[np.ndarray]:
    """Blocks (N, block_tokens) int32 of the joined texts; what does not fill the last block is dropped."""
    left = np.zeros(0, dtype=np.int32)
    while chunk := list(islice(texts, _CHUNK)):
        ids = np.concatenate([left, *(np.asarray(text, dtype=np.int32) for text in tokenize(chunk))])
        whole = len(ids) // block_tokens * block_tokens
        yield ids[:whole].reshape(-1, block_tokens)
        left = ids[whole:]

"""How the batch of a step is cut into work: the same cuts, and the same dropout, for any number of processes.

    batch of B rows  ->  shards, consecutive stretches of rows  ->  micro-batches of at most so many tokens

A process takes whole shards, and a shard is cut by the lengths of its own rows. Each micro-batch draws its dropout from a
seed made of (seed of the run, step, shard, number in the shard). So neither cuts nor noise know how many processes there
are, a resumed run needs no random state, and the second pass of a gradient cache repeats the noise of the first.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm2enc import distributed
from llm2enc.text import micro_batches


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together."""

    rows: Tensor
    """(R,) which of this process's rows."""
    seed: int

    def seed_dropout(self) -> None:
        """Let dropout draw this micro-batch's numbers from now on."""
        torch.manual_seed(self.seed)

    def rng_was_used(self, device: torch.device) -> bool:
        """Whether anything has been drawn on `device` since `seed_dropout`."""
        generator = (
            torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
        )
        untouched = torch.Generator(device).manual_seed(self.seed)
        return not torch.equal(generator.get_state(), untouched.get_state())


def idle(processes: int, rows: int, shards: int) -> str:
    """Why some of the processes would have nothing to do with a batch; empty if each has a shard of it."""
    if processes <= min(shards, rows):
        return ""
    return f"{processes} processes share a batch of {rows} rows in {shards} shards: some would have nothing to do"


def pad_to_same_count(parts: list[MicroBatch], device: torch.device) -> list[MicroBatch]:
    """As many micro-batches as the process with most of them has: processes that share layers run them together.

    What is added repeats this process's last one, with the same noise, and must count for nothing.
    """
    return parts + parts[-1:] * (distributed.all_reduce_max(len(parts), device) - len(parts))


@dataclass(frozen=True)
class BatchPartition:
    """The cuts of one batch."""

    total: int
    """Rows over all processes."""
    shards: int
    """Pieces it is cut into; as many as there are rows if there are fewer of them."""
    seed: int
    step: int

    def rows(self, process: int | None = None) -> range:
        """The rows of a process, this one by default."""
        own = distributed.rank_slice(self._count, process)
        return range(self._start(own.start), self._start(own.stop))

    def counts(self) -> list[int]:
        """Rows of every process."""
        return [len(self.rows(process)) for process in range(distributed.world_size())]

    def micro_batches(self, lengths: Tensor, max_tokens: int) -> Iterator[MicroBatch]:
        """The work of this process.

        lengths     (R,) tokens of each of this process's rows
        max_tokens  of a micro-batch; a longer row is one by itself
        """
        own = distributed.rank_slice(self._count)
        first = self._start(own.start)
        for shard in own:
            start, end = self._start(shard) - first, self._start(shard + 1) - first
            for number, rows in enumerate(micro_batches(lengths[start:end], max_tokens)):
                key = np.random.SeedSequence((self.seed % 2**63, self.step, shard, number))
                yield MicroBatch(rows + start, int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    @property
    def _count(self) -> int:
        return min(self.shards, self.total)

    def _start(self, shard: int) -> int:
        """First row of a shard: lengths differ by one at most."""
        return shard * self.total // self._count

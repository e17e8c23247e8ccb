"""The batch of a step: how long its texts are, and which of them go through the model together."""

from dataclasses import dataclass
from glob import glob
from itertools import accumulate
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from llm2enc.recipe import ClmStage, FilesData, HubData, InputSpec, MntpStage, Stage
from llm2enc.text import InputFormat
from llm2enc.training import OBJECTIVES, BatchPartition

SAMPLE = "numpy"  # every installation has its docstrings
CHEAP = 2**28  # bytes of local files that are read to see how long texts are


@dataclass(frozen=True)
class Workload:
    """One step of a stage, over all processes."""

    lengths: Tensor
    """(B,) tokens of every text or block."""
    basis: str
    """Where the lengths come from."""
    shards: int

    @property
    def texts(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def pairs(self) -> int:
        """Sum of squared lengths: what attention's work grows with."""
        return int((self.lengths**2).sum())

    def micro_batches(self, max_tokens: int) -> list[Tensor]:
        """The lengths (R,) of each micro-batch, shard by shard."""
        parts = self._split.micro_batches(self.lengths, max_tokens)
        return [self.lengths[part.rows] for part in parts]

    def busiest(self, max_tokens: int, processes: int) -> list[Tensor]:
        """The micro-batches of the first process, which has as many shards as any."""
        wanted = -(-self._count // processes) * self.texts // self._count
        parts = self.micro_batches(max_tokens)
        before = accumulate(map(len, parts), initial=0)  # texts in the micro-batches before each
        return [part for part, texts in zip(parts, before, strict=False) if texts < wanted]

    def share(self, processes: int) -> float:
        """Of the work, what the busiest process has: processes take whole shards."""
        return -(-self._count // processes) / self._count

    @property
    def largest_shard(self) -> int:
        """Tokens of the largest shard: no micro-batch is larger."""
        return max(int(part.sum()) for part in self.micro_batches(2**62))

    @property
    def _count(self) -> int:
        return min(self.shards, self.texts)

    @property
    def _split(self) -> BatchPartition:
        return BatchPartition(self.texts, self.shards, 0, 0)


def of_stage(stage: Stage, spec: InputSpec, input_format: InputFormat | None, seed: int) -> Workload:
    """The first batch of the stage if its data are local and cheap to read, else as many texts of the largest size.

    input_format  None if the tokenizer is not at hand
    """
    objective = OBJECTIVES[stage.objective]
    if objective.row == "block":
        block_tokens = cast("ClmStage | MntpStage", stage).block_tokens
        lengths = torch.full((stage.batch_size,), block_tokens)
        return Workload(lengths, f"exact: {stage.batch_size} blocks of {block_tokens}", stage.rng_shards)
    obstacle = "the tokenizer is not at hand" if input_format is None else _obstacle(stage)
    if input_format is not None and not obstacle:
        sampled = _sampled(stage)
        try:
            rows = next(objective.batches(sampled, input_format, seed, 0))
            batch = objective.collate(rows, sampled, input_format, seed)
            return Workload(batch.tokens.lengths, "the first batch, tokenized", stage.rng_shards)
        except (ValueError, OSError) as error:  # data that training would refuse, with the same words
            obstacle = str(error).splitlines()[0][:200]
    per_row = objective.vectors_per_row
    texts = stage.batch_size if per_row is None else per_row(stage) * stage.batch_size
    longest = stage.max_tokens or spec.max_tokens
    basis = f"upper bound, every text at {longest} tokens ({obstacle})"
    return Workload(torch.full((texts,), longest), basis, stage.rng_shards)


def _sampled(stage: Stage) -> Stage:
    """The stage on the docstrings of one package where it would read those of all, which takes minutes."""
    sample = [
        source.model_copy(update={"packages": source.packages or (SAMPLE,)}) if source.kind == "docstrings" else source
        for source in stage.data
    ]
    return stage.model_copy(update={"data": tuple(sample)})


def _obstacle(stage: Stage) -> str:
    """Why the data of a stage are not read to plan it; empty if they are."""
    if any(isinstance(source, HubData) for source in stage.data):
        return "the data are on a hub"
    patterns = [source.path for source in stage.data if isinstance(source, FilesData)]
    flat = [pattern for some in patterns for pattern in ([some] if isinstance(some, str) else some)]
    size = sum(Path(path).stat().st_size for pattern in flat for path in glob(pattern, recursive=True))
    return f"{size / 2**30:.1f} GiB of files" if size > CHEAP else ""

"""GRIT (arXiv 2402.09906): a contrastive and a generative batch in every step, for one model that encodes and writes.

    loss = contrastive loss, in the encoder's own direction  +  weight x loss of the responses, causally

Both halves are stages of their own (`GritStage.parts`), and their gradients are added in the parameters: each has its own
forward, so that neither the cache of the one nor the slices of logits of the other know of their neighbour.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from llm2enc.data import RowBatch
from llm2enc.encoding import Encoder
from llm2enc.recipe import GritStage, TeacherSpec
from llm2enc.text import InputFormat, Tokens
from llm2enc.training.microbatch import BatchPartition
from llm2enc.training.objectives import contrastive, sft
from llm2enc.training.objectives.contrastive import ContrastiveBatch
from llm2enc.training.objectives.sft import DialogueBatch
from llm2enc.training.teachers import Teachers


@dataclass(frozen=True)
class GritBatch:
    """One process's part of both batches. Texts and passes of the table before step 1 are those of the pairs."""

    pairs: ContrastiveBatch
    dialogues: DialogueBatch

    @property
    def tokens(self) -> Tokens:
        return self.pairs.tokens

    @property
    def partition(self) -> BatchPartition:
        return self.pairs.partition

    @property
    def source(self) -> str:
        return f"{self.pairs.source} + {self.dialogues.source}"

    @property
    def num_tokens(self) -> int:
        return self.pairs.num_tokens + self.dialogues.num_tokens

    def describe(self) -> dict[str, str]:
        """What the table before step 1 shows of both."""
        return self.pairs.describe() | self.dialogues.describe()


def batches(stage: GritStage, input_format: InputFormat, seed: int, start: int) -> Iterator[tuple[RowBatch, RowBatch]]:
    """Pairs and dialogues."""
    pairs, dialogues = stage.parts
    return zip(
        contrastive.batches(pairs, input_format, seed, start),
        sft.batches(dialogues, input_format, seed, start),
        strict=True,
    )


def collate(rows: tuple[RowBatch, RowBatch], stage: GritStage, input_format: InputFormat, seed: int) -> GritBatch:
    """Both batches, as each half makes its own."""
    pairs, dialogues = stage.parts
    return GritBatch(
        contrastive.collate(rows[0], pairs, input_format, seed), sft.collate(rows[1], dialogues, input_format, seed)
    )


def backward(encoder: Encoder, batch: GritBatch, stage: GritStage) -> dict[str, Tensor]:
    """Gradient of both losses together."""
    pairs, dialogues = stage.parts
    found = contrastive.backward(encoder, batch.pairs, pairs)
    weight = stage.generation.weight
    written = sft.backward(encoder, batch.dialogues, dialogues, weight)
    both = {"loss_contrastive": found["loss"], "loss_generative": written["loss"]}
    return {**found, **written, **both, "loss": found["loss"] + weight * written["loss"]}


def teachers(stage: GritStage) -> tuple[TeacherSpec, ...]:
    """Those of the pairs."""
    return contrastive.teachers(stage.parts[0])


def taught(batch: GritBatch, teachers: Teachers, device: torch.device) -> GritBatch:
    """The batch with what they say of the pairs."""
    return replace(batch, pairs=contrastive.taught(batch.pairs, teachers, device))


def auxiliary(encoder: Encoder, stage: GritStage, teachers: Teachers, seed: int) -> dict[str, nn.Module]:
    """What the loss of the pairs trains besides."""
    return contrastive.auxiliary(encoder, stage.parts[0], teachers, seed)


def predicted_share(stage: GritStage) -> float:
    """Of the dialogues' tokens."""
    return sft.predicted_share(stage.parts[1])


def vectors_per_row(stage: GritStage) -> int:
    """Of a pair."""
    return contrastive.vectors_per_row(stage.parts[0])

"""What a stage trains for. An objective is a few functions and one record in `OBJECTIVES`; the rest of llm2enc asks the
record, never the name of an objective or the class of a stage or batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from llm2enc.data import RowBatch
from llm2enc.encoding import Encoder
from llm2enc.losses import Layout
from llm2enc.recipe import ClmStage, ContrastiveStage, LossSpec, MntpStage, PairScoresStage, SimcseStage, TeacherSpec
from llm2enc.text import InputFormat, Tokens
from llm2enc.training.microbatch import BatchPartition
from llm2enc.training.objectives import clm, contrastive, mntp, pair_scores, simcse
from llm2enc.training.objectives.denominator import Term, contrastive_term
from llm2enc.training.teachers import Teachers


class Batch(Protocol):
    """One process's part of a global batch, on the CPU, as the trainer sees it."""

    @property
    def tokens(self) -> Tokens: ...
    @property
    def partition(self) -> BatchPartition: ...
    @property
    def source(self) -> str: ...
    @property
    def num_tokens(self) -> int: ...

    def describe(self) -> dict[str, str]:
        """Rows of the table before step 1."""
        ...


@dataclass(frozen=True)
class Objective:
    """How an objective trains, and what trainer, planner and data audit must know of it."""

    batches: Callable[[Any, InputFormat, int, int], Iterator[RowBatch]]
    """(stage, input_format, seed, start) -> the rows of each global batch, from step `start` on."""
    collate: Callable[[RowBatch, Any, InputFormat, int], Batch]
    """(rows, stage, input_format, seed) -> this process's part of a batch; runs in a background thread."""
    backward: Callable[[Encoder, Any, Any], dict[str, Tensor]]
    """(encoder, batch, stage) -> what to log; `loss` is the value of the global batch. Leaves this process's part of the
    gradient of the GLOBAL batch in the trained parameters (`distributed.reduce_gradients` completes it)."""
    row: Literal["block", "text", "pair", "scored pair"]
    """A row of a batch: a block of `block_tokens` tokens of joined texts, a text, a `Pair`, or a `ScoredPair`."""
    predicted_share: Callable[[Any], float] | None = None
    """(stage) -> expected share of the tokens that are predicted; None: none is, and no language-model head is needed."""
    vectors_per_row: Callable[[Any], int] | None = None
    """(stage) -> the most vectors that a row brings into the loss; None: it brings none."""
    similarities: Callable[[Any, Layout], Term] = lambda stage, layout: contrastive_term(LossSpec(), layout, 1.0)
    """(stage, layout) -> of an objective that compares vectors, the part of the loss that takes most memory."""
    teachers: Callable[[Any], tuple[TeacherSpec, ...]] = lambda stage: ()
    """(stage) -> the frozen models that it asks."""
    taught: Callable[[Any, Teachers, torch.device], Any] = lambda batch, teachers, device: batch
    """(batch, teachers, device) -> the batch with what they say of it."""
    auxiliary: Callable[[Encoder, Any, Teachers, int], dict[str, nn.Module]] = lambda encoder, stage, teachers, seed: {}
    """(encoder, stage, teachers, seed) -> what the loss trains besides the encoder, by name, float32 and untrained.
    InputError for teachers that the stage cannot use."""
    causal: bool | None = None
    """Direction of attention in training; None: the encoder's own."""
    trains_head: bool = False
    """Whether full training includes an untied language-model head."""

    @property
    def predicts_tokens(self) -> bool:
        """Whether the loss is over tokens, through the language-model head; otherwise it is over vectors."""
        return self.predicted_share is not None


OBJECTIVES: dict[str, Objective] = {
    "clm": Objective(
        clm.batches, clm.collate, clm.backward, ClmStage.row,
        predicted_share=clm.predicted_share, causal=ClmStage.causal, trains_head=True,
    ),
    "mntp": Objective(
        mntp.batches, mntp.collate, mntp.backward, MntpStage.row,
        predicted_share=mntp.predicted_share, causal=MntpStage.causal,
    ),
    "simcse": Objective(
        simcse.batches, simcse.collate, simcse.backward, SimcseStage.row,
        vectors_per_row=simcse.vectors_per_row, auxiliary=contrastive.auxiliary, similarities=contrastive.similarities,
    ),
    "contrastive": Objective(
        contrastive.batches, contrastive.collate, contrastive.backward, ContrastiveStage.row,
        vectors_per_row=contrastive.vectors_per_row, teachers=contrastive.teachers, taught=contrastive.taught,
        auxiliary=contrastive.auxiliary, similarities=contrastive.similarities,
    ),
    "pair_scores": Objective(
        pair_scores.batches, pair_scores.collate, pair_scores.backward, PairScoresStage.row,
        vectors_per_row=pair_scores.vectors_per_row, auxiliary=pair_scores.auxiliary,
    ),
}  # fmt: skip

"""What a stage trains for. An objective is a few functions and one record in `OBJECTIVES`; the rest of llm2enc asks the
record, never the name of an objective or the class of a stage or batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from llm2enc.encoding import Encoder
from llm2enc.losses import Layout
from llm2enc.recipe import (
    ClmStage,
    ContrastiveStage,
    GritStage,
    LayersSpec,
    LossSpec,
    MntpStage,
    PairScoresStage,
    RetromaeStage,
    SftStage,
    SimcseStage,
    TeacherSpec,
)
from llm2enc.text import InputFormat, Tokens
from llm2enc.training.microbatch import BatchPartition
from llm2enc.training.objectives import clm, contrastive, grit, mntp, pair_scores, retromae, sft, simcse
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

    batches: Callable[[Any, InputFormat, int, int], Iterator[Any]]
    """(stage, input_format, seed, start) -> the rows of each global batch, from step `start` on: a `RowBatch`, or one for
    each of the stage's parts."""
    collate: Callable[[Any, Any, InputFormat, int], Batch]
    """(rows, stage, input_format, seed) -> this process's part of a batch; runs in a background thread."""
    backward: Callable[[Encoder, Any, Any], dict[str, Tensor]]
    """(encoder, batch, stage) -> what to log; `loss` is the value of the global batch. Leaves this process's part of the
    gradient of the GLOBAL batch in the trained parameters (`distributed.reduce_gradients` completes it)."""
    row: Literal["block", "text", "pair", "scored pair", "dialogue"]
    """A row of a batch: a block of `block_tokens` tokens of joined texts, a text, a `Pair`, a `ScoredPair`, a `Dialogue`."""
    predicted_share: Callable[[Any], float] | None = None
    """(stage) -> expected share of the tokens that are predicted from the backbone's states; None: none is, and no
    language-model head is needed."""
    rebuild: Callable[[Encoder, Tensor, Tokens], Tensor] | None = None
    """(encoder, states, tokens) -> further states that predict, made of the backbone's by what trains beside it; for the
    planner, with the most that it may be given."""
    vectors_per_row: Callable[[Any], int] | None = None
    """(stage) -> the most vectors of a row that are compared with others; None: none is."""
    similarities: Callable[[Any, Layout], Term] = lambda stage, layout: contrastive_term(LossSpec(), layout, 1.0)
    """(stage, layout) -> of an objective that compares vectors, the part of the loss that takes most memory."""
    teachers: Callable[[Any], tuple[TeacherSpec, ...]] = lambda stage: ()
    """(stage) -> the frozen models that it asks."""
    taught: Callable[[Any, Teachers, torch.device], Any] = lambda batch, teachers, device: batch
    """(batch, teachers, device) -> the batch with what they say of it."""
    auxiliary: Callable[[Encoder, Any, Teachers, int], dict[str, nn.Module]] = lambda encoder, stage, teachers, seed: {}
    """(encoder, stage, teachers, seed) -> what the loss trains besides the encoder, by name, float32 and untrained.
    InputError for teachers that the stage cannot use."""
    layers: Callable[[Any], LayersSpec | None] = lambda stage: None
    """(stage) -> which prior layers' vectors its loss reads; None: it reads those of the last layer alone."""
    causal: bool | None = None
    """Direction of attention in training; None: the encoder's own, or that of each of the stage's parts."""
    trains_head: bool = False
    """Whether full training includes an untied language-model head."""

    @property
    def predicts_tokens(self) -> bool:
        """Whether tokens are predicted through the language-model head."""
        return self.predicted_share is not None

    @property
    def compares_vectors(self) -> bool:
        """Whether vectors are compared with each other, as the encoder's own head makes them."""
        return self.vectors_per_row is not None


def layers_of(stage: SimcseStage | ContrastiveStage | PairScoresStage) -> LayersSpec | None:
    """`loss.layers` of a stage that compares vectors."""
    return stage.loss.layers


OBJECTIVES: dict[str, Objective] = {
    "clm": Objective(
        clm.batches, clm.collate, clm.backward, ClmStage.row,
        predicted_share=clm.predicted_share, causal=ClmStage.causal, trains_head=True,
    ),
    "mntp": Objective(
        mntp.batches, mntp.collate, mntp.backward, MntpStage.row,
        predicted_share=mntp.predicted_share, causal=MntpStage.causal,
    ),
    "retromae": Objective(
        retromae.batches, retromae.collate, retromae.backward, RetromaeStage.row,
        predicted_share=retromae.predicted_share, rebuild=retromae.rebuild,
        causal=RetromaeStage.causal, auxiliary=retromae.auxiliary,
    ),
    "simcse": Objective(
        simcse.batches, simcse.collate, simcse.backward, SimcseStage.row,
        vectors_per_row=simcse.vectors_per_row, layers=layers_of, auxiliary=contrastive.auxiliary,
        similarities=contrastive.similarities,
    ),
    "contrastive": Objective(
        contrastive.batches, contrastive.collate, contrastive.backward, ContrastiveStage.row,
        vectors_per_row=contrastive.vectors_per_row, layers=layers_of, teachers=contrastive.teachers,
        taught=contrastive.taught, auxiliary=contrastive.auxiliary, similarities=contrastive.similarities,
    ),
    "pair_scores": Objective(
        pair_scores.batches, pair_scores.collate, pair_scores.backward, PairScoresStage.row,
        vectors_per_row=pair_scores.vectors_per_row, layers=layers_of, auxiliary=pair_scores.auxiliary,
    ),
    "sft": Objective(
        sft.batches, sft.collate, sft.backward, SftStage.row,
        predicted_share=sft.predicted_share, causal=SftStage.causal, trains_head=True,
    ),
    "grit": Objective(
        grit.batches, grit.collate, grit.backward, GritStage.row,
        predicted_share=grit.predicted_share, vectors_per_row=grit.vectors_per_row,
        teachers=grit.teachers, taught=grit.taught, auxiliary=grit.auxiliary, trains_head=True,
    ),
}  # fmt: skip

"""What a stage trains for. An objective is a few functions and one record in `OBJECTIVES`; the rest of llm2enc asks the
record, never the name of an objective or the class of a stage or batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from llm2enc.encoding import Encoder
from llm2enc.model import Backbone
from llm2enc.recipe import ClmStage, ContrastiveStage, GritStage, MntpStage, RetromaeStage, SftStage, SimcseStage
from llm2enc.text import InputFormat, Tokens
from llm2enc.training.microbatch import BatchPartition
from llm2enc.training.objectives import clm, contrastive, grit, mntp, retromae, sft, simcse


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
    row: Literal["block", "text", "pair", "dialogue"]
    """A row of a batch: a block of `block_tokens` tokens of joined texts, a text, a `Pair`, or a `Dialogue`."""
    predicted_share: Callable[[Any], float] | None = None
    """(stage) -> expected share of the tokens that are predicted; None: none is, and no language-model head is needed."""
    vectors_per_row: Callable[[Any], int] | None = None
    """(stage) -> the most vectors that a row brings into the loss; None: it brings none."""
    causal: bool | None = None
    """Direction of attention in training; None: the encoder's own, or that of each of the stage's parts."""
    trains_head: bool = False
    """Whether full training includes an untied language-model head."""
    auxiliary: Callable[[Backbone, int], nn.Module] | None = None
    """(backbone, seed) -> a fresh module that trains beside the encoder and is thrown away when the stage is done."""

    @property
    def predicts_tokens(self) -> bool:
        """Whether tokens are predicted through the language-model head."""
        return self.predicted_share is not None

    @property
    def compares_vectors(self) -> bool:
        """Whether vectors are compared with each other, as the encoder's own head makes them."""
        return self.vectors_per_row is not None and self.auxiliary is None


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
        predicted_share=retromae.predicted_share, vectors_per_row=retromae.vectors_per_row,
        causal=RetromaeStage.causal, auxiliary=retromae.auxiliary,
    ),
    "simcse": Objective(
        simcse.batches, simcse.collate, simcse.backward, SimcseStage.row,
        vectors_per_row=simcse.vectors_per_row,
    ),
    "contrastive": Objective(
        contrastive.batches, contrastive.collate, contrastive.backward, ContrastiveStage.row,
        vectors_per_row=contrastive.vectors_per_row,
    ),
    "sft": Objective(
        sft.batches, sft.collate, sft.backward, SftStage.row,
        predicted_share=sft.predicted_share, causal=SftStage.causal, trains_head=True,
    ),
    "grit": Objective(
        grit.batches, grit.collate, grit.backward, GritStage.row,
        predicted_share=grit.predicted_share, vectors_per_row=grit.vectors_per_row, trains_head=True,
    ),
}  # fmt: skip

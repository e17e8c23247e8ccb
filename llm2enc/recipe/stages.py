"""What is trained, and how."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from llm2enc.recipe.base import PositiveInt, Rate, Strict
from llm2enc.recipe.data import DataSpec
from llm2enc.recipe.loss import LossSpec, SimcseLossSpec
from llm2enc.recipe.pair_scores import PairScoresLossSpec


class LoraSpec(Strict):
    """LoRA (arXiv 2106.09685), by PEFT: a fresh adapter, merged in float32 when the last stage that trains it is done."""

    r: PositiveInt = 16
    alpha: Annotated[float, Field(gt=0)] = 32
    dropout: Rate = 0.05
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """`all-linear` or module names such as `q_proj`; a name that matches nothing is an error."""
    dora: bool = False
    """DoRA (arXiv 2402.09353): the length of every row of a weight is trained beside its direction."""
    rslora: bool = False
    """rsLoRA (arXiv 2312.03732): the adapter counts alpha / sqrt(r) instead of alpha / r."""


def _lora_tag(value: Any) -> str:
    return "continue" if isinstance(value, str) else "shape"


class BaseStage(Strict):
    row: ClassVar[Literal["block", "text", "pair", "scored pair"]]
    """What a batch is made of: blocks of `block_tokens` tokens of joined texts, texts, pairs, or pairs with a score."""
    causal: ClassVar[bool | None] = None
    """Direction of attention in training; None: the model's own."""

    data: Annotated[tuple[DataSpec, ...], Field(min_length=1)]
    mixture_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """Rows of a source per epoch in proportion to weight x size^alpha (0: all sources alike, 1: by size); no row less than
    once an epoch. None: size x weight rows each."""
    steps: PositiveInt
    """Optimizer steps after which the stage stops."""
    schedule_steps: PositiveInt | None = None
    """Length of the learning-rate schedule; `steps` by default. Published 1000-step runs stop early on a longer one."""
    batch_size: PositiveInt
    """What the loss sees per step over all processes: sequences, or query-document pairs."""
    lr: Annotated[float, Field(gt=0)]
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's, of the weights that `weight_decay_on` names."""
    weight_decay_on: Literal["matrices", "all"] = "matrices"
    """`matrices`: no decay of norms and biases, which have no large values to lose. `all`: of every trained weight."""
    adam_betas: tuple[Rate, Rate] = (0.9, 0.999)
    adam_eps: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    trainable: Literal["lora", "full"] = "lora"
    lora: (
        Annotated[
            Annotated[LoraSpec, Tag("shape")] | Annotated[Literal["continue"], Tag("continue")],
            Discriminator(_lora_tag),
        ]
        | None
    ) = None
    """The shape of a fresh adapter if `trainable: lora`; PEFT's usual r 16, alpha 32 by default. `continue`: train the
    adapter of the stage before instead, which is then not merged between the two; the optimizer starts afresh."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the matrix products in forward and backward; weights that train and the loss stay float32."""
    micro_batch_tokens: PositiveInt = 16384
    """Tokens that go through the model at once, per process: this is gradient accumulation. Memory and speed only: a
    step is made of all of `batch_size`, and its gradient does not change."""
    rng_shards: PositiveInt = 8
    """Pieces that a batch is cut into. Each is computed by one process, with dropout of its own (hence the name): a step
    is the same on any number of processes up to this one. More processes need more shards."""
    activation_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens per step and process whose activations are kept instead of being computed again (contrastive, SimCSE)."""
    strategy: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    """What several processes share while this stage trains. `ddp`: nothing, each has all. `fsdp`: each has a part of each
    layer, of its gradient and of its moments (FSDP2). `deepspeed`: each has a part of the moments, and updates a part of
    the weights (ZeRO-1 and 2, with the launcher's settings). Memory and speed only: the gradient does not change."""
    gradient_checkpointing: bool = False
    attention_dropout: Rate = 0.0
    """Dropout on attention weights while this stage trains."""
    max_tokens: PositiveInt | None = None
    """Longest input of this stage, where it differs from `input.max_tokens`."""
    save_every: PositiveInt = 200
    log_every: PositiveInt = 10

    @model_validator(mode="after")
    def _consistent(self) -> "BaseStage":
        if self.schedule_steps is not None and self.schedule_steps < self.steps:
            raise ValueError(f"schedule_steps ({self.schedule_steps}) is shorter than steps ({self.steps})")
        if self.warmup_steps > (self.schedule_steps or self.steps):
            raise ValueError(f"warmup_steps ({self.warmup_steps}) is longer than the schedule")
        if self.trainable == "full" and self.lora is not None:
            raise ValueError("`lora` is set but `trainable` is full; remove one of them")
        if self.row != "pair" and any(source.unique_ids for source in self.data):
            raise ValueError("`unique_ids` tells pairs apart, and this stage reads none; take it out of its data")
        return self


class ClmStage(BaseStage):
    """Next-token prediction with causal attention: pre-training, or continued on one's own text."""

    row, causal = "block", True
    objective: Literal["clm"]
    block_tokens: PositiveInt = 512
    """Texts are joined and cut into sequences of this many tokens."""
    logit_rows: PositiveInt = 1024
    """Rows of the vocabulary-wide logits that exist at a time."""


class MntpStage(BaseStage):
    """Masked next-token prediction (LLM2Vec, arXiv 2404.05961): a masked token is predicted one position earlier."""

    row, causal = "block", False
    objective: Literal["mntp"]
    block_tokens: PositiveInt = 512
    """Texts are joined and cut into sequences of this many tokens."""
    mask_rate: Annotated[float, Field(gt=0, lt=1)]
    """Probability that a token is chosen; special tokens never are."""
    mask_policy: Literal["bert", "all"]
    """`bert`: of the chosen 80 % are masked, 10 % replaced at random, 10 % kept. `all`: every chosen one is masked."""
    mask_token: Literal["blank", "eos", "mask"] = "blank"
    """`blank`: the token `_`; `eos`: the EOS token; `mask`: the tokenizer's own mask token."""
    logit_rows: PositiveInt = 1024
    """Rows of the vocabulary-wide logits that exist at a time."""


class SimcseStage(BaseStage):
    """Unsupervised SimCSE (arXiv 2104.08821): two dropout passes of one text are each other's positive."""

    row = "text"
    objective: Literal["simcse"]
    loss: SimcseLossSpec = SimcseLossSpec()


class ContrastiveStage(BaseStage):
    """A query is drawn to its positive and away from negatives, one data set per batch."""

    row = "pair"
    objective: Literal["contrastive"]
    hard_negatives: Annotated[int, Field(ge=0)] = 1
    """Hard negatives per query, taken from those of the row by the recipe's seed; rows with fewer use what they have."""
    in_context_examples: Annotated[int, Field(ge=0)] = 0
    """Most in-context examples before a query (bge-en-icl, arXiv 2409.15700): other rows of its batch with their
    positives, their number drawn from 0 to this. Needs `input.example`; those beyond its limits are left out."""
    loss: LossSpec = LossSpec()

    @property
    def reads_scores(self) -> bool:
        """Whether the rows must have scores of their documents."""
        return self.loss.soft_labels is not None and self.loss.soft_labels.teacher is None

    @model_validator(mode="after")
    def _compares_documents(self) -> "ContrastiveStage":
        if self.hard_negatives == 0 and self.loss.needs_own_hard:
            raise ValueError(
                f"`loss.{self.loss.needs_own_hard}` is about hard negatives, and `hard_negatives: 0` takes none"
            )
        if self.hard_negatives == 0 and not self.loss.in_batch:
            raise ValueError(
                "`loss.in_batch: false` and `hard_negatives: 0` leave a query no negative; allow one of them"
            )
        if self.hard_negatives == 0 and self.loss.needs_negatives:
            raise ValueError(
                f"`{self.loss.needs_negatives}` compares documents of one row, and `hard_negatives: 0` leaves only one"
            )
        return self


class PairScoresStage(BaseStage):
    """Two texts and a score or class (STS, NLI): their similarity is to follow it."""

    row = "scored pair"
    objective: Literal["pair_scores"]
    loss: PairScoresLossSpec


Stage = Annotated[
    ClmStage | MntpStage | SimcseStage | ContrastiveStage | PairScoresStage, Field(discriminator="objective")
]

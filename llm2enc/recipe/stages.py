"""What is trained, and how."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from llm2enc.recipe.base import PositiveInt, Rate, Strict
from llm2enc.recipe.data import DataSpec


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


def _no_scale(value: float) -> float:
    """The temperature. ValueError above 1, where no loss comes far below ln(batch): cosines differ by 2 at most."""
    if value > 1:
        raise ValueError(
            f"cosines are divided by the temperature, and {value:g} makes all of them alike. If it is a scale, which they "
            f"are multiplied by, write its inverse, `temperature: {1 / value:g}`"
        )
    return value


Temperature = Annotated[float, Field(gt=0), AfterValidator(_no_scale)]


def _lora_tag(value: Any) -> str:
    return "continue" if isinstance(value, str) else "shape"


class BaseStage(Strict):
    row: ClassVar[Literal["block", "text", "pair"]]
    """What a batch is made of: blocks of `block_tokens` tokens of joined texts, texts, or pairs."""
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
    evaluate_every: PositiveInt | None = None
    """Steps between measurements of the recipe's `evaluation` while the stage trains, the last step included; None: none
    before the stage is done."""
    keep_best: str | None = None
    """A score of the evaluation, such as `docstrings/ndcg@10`: the stage ends with the weights that had the highest one."""
    patience: PositiveInt | None = None
    """Stop the stage after so many measurements in a row without a higher score."""
    keep_checkpoints: tuple[PositiveInt, ...] = ()
    """Steps after which the trained weights are stored and kept, for a merge stage."""

    @model_validator(mode="after")
    def _consistent(self) -> "BaseStage":
        if self.schedule_steps is not None and self.schedule_steps < self.steps:
            raise ValueError(f"schedule_steps ({self.schedule_steps}) is shorter than steps ({self.steps})")
        if self.warmup_steps > (self.schedule_steps or self.steps):
            raise ValueError(f"warmup_steps ({self.warmup_steps}) is longer than the schedule")
        if self.trainable == "full" and self.lora is not None:
            raise ValueError("`lora` is set but `trainable` is full; remove one of them")
        return self

    @model_validator(mode="after")
    def _measured(self) -> "BaseStage":
        if self.keep_best is not None and self.evaluate_every is None:
            raise ValueError("`keep_best` needs measurements to choose from; set `evaluate_every`")
        if self.patience is not None and self.keep_best is None:
            raise ValueError("`patience` waits for a higher score, and none is named; set `keep_best` to one")
        if (self.evaluate_every or 0) > self.steps:
            raise ValueError(f"evaluate_every ({self.evaluate_every}) is longer than steps ({self.steps})")
        late = [step for step in self.keep_checkpoints if step >= self.steps]
        if late or len(set(self.keep_checkpoints)) < len(self.keep_checkpoints):
            raise ValueError(
                f"keep_checkpoints {list(self.keep_checkpoints)} must be different steps before the last one, {self.steps}, "
                "whose weights are those of the finished stage"
            )
        if self.keep_checkpoints and self.patience is not None:
            raise ValueError("`patience` may stop the stage before a step of `keep_checkpoints`; remove one of them")
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
    """Unsupervised SimCSE (arXiv 2104.08821): two dropout passes of one text are each other's positive. A text that stands
    in a batch more than once is no negative of itself."""

    row = "text"
    objective: Literal["simcse"]
    temperature: Temperature = 0.05


class ContrastiveStage(BaseStage):
    """InfoNCE (arXiv 1807.03748) over in-batch and hard negatives, one data set per batch."""

    row = "pair"
    objective: Literal["contrastive"]
    temperature: Temperature = 0.02
    hard_negatives: Annotated[int, Field(ge=0)] = 1
    """Hard negatives per query, taken from those of the row by the recipe's seed; rows with fewer use what they have."""
    mask_duplicates: bool = False
    """Leave a document out of a query's negatives if its text is that query's positive, or if that query occurs
    elsewhere in the batch with this document as its positive."""


Stage = Annotated[ClmStage | MntpStage | SimcseStage | ContrastiveStage, Field(discriminator="objective")]


class Ingredient(Strict):
    """Weights that go into a merge: of an earlier stage of the run, or of another encoder."""

    stage: Annotated[int, Field(ge=0)] | None = None
    """Number of an earlier stage, from 0: the weights that it ended with."""
    step: PositiveInt | None = None
    """One of that stage's `keep_checkpoints`: the weights after this step instead."""
    encoder: str | None = None
    """An exported encoder of the same base model, or the folder of its run."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "Ingredient":
        if (self.stage is None) == (self.encoder is None):
            raise ValueError("give one of `stage`, the number of an earlier stage, and `encoder`, a directory")
        if self.step is not None and self.stage is None:
            raise ValueError("`step` is one of a stage's `keep_checkpoints`; give the number of that `stage` too")
        return self


class MergeStage(Strict):
    """Several encoders become one: a model soup (arXiv 2203.05482), SLERP, or a mixture with the model that the run started
    from (LM-Cocktail, arXiv 2311.13534). Nothing trains; `llm2enc merge` does the same to finished directories."""

    data: ClassVar[tuple[()]] = ()
    trainable: ClassVar[Literal["full"]] = "full"
    """All weights become others, so there is no adapter to go on with."""
    lora: ClassVar[None] = None
    keep_checkpoints: ClassVar[tuple[()]] = ()

    objective: Literal["merge"]
    method: Literal["average", "slerp"] = "average"
    """`slerp`: along the arc, one ingredient after another, tensor by tensor."""
    of: Annotated[tuple[Ingredient, ...], Field(min_length=1)]
    weights: tuple[float, ...] | None = None
    """One per ingredient, equal by default; only their ratios count."""
    base_weight: Rate = 0.0
    """Share that the model which the run started from has in the result."""

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


class LastLayers(Strict):
    """The last decoder layers."""

    layers: PositiveInt
    """How many."""


def _part_tag(value: Any) -> str:
    return "name" if isinstance(value, str) else "layers"


Trainable = Annotated[
    Annotated[Literal["lora", "full", "bias", "embeddings"], Tag("name")] | Annotated[LastLayers, Tag("layers")],
    Discriminator(_part_tag),
]


class BaseStage(Strict):
    row: ClassVar[Literal["block", "text", "pair", "scored pair", "dialogue"]]
    """What a batch is made of: blocks of `block_tokens` tokens of joined texts, texts, pairs, pairs with a score, or
    dialogues."""
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
    trainable: Trainable = "lora"
    """What trains of the model; a head trains besides. `lora`: an adapter. Of the model's own weights, which must then be
    float32: `full`, all; `bias`, the biases (BitFit, arXiv 2106.10199, as in SGPT); `embeddings`, the table of token
    embeddings; `{layers: N}`, the last N decoder layers."""
    lora: (
        Annotated[
            Annotated[LoraSpec, Tag("shape")] | Annotated[Literal["continue"], Tag("continue")],
            Discriminator(_lora_tag),
        ]
        | None
    ) = None
    """The shape of a fresh adapter if `trainable: lora`; PEFT's usual r 16, alpha 32 by default. `continue`: train the
    adapter of the stage before instead, which is then not merged between the two; the optimizer starts afresh."""
    precision: Literal["float32", "bfloat16", "auto"] = "bfloat16"
    """Type of the matrix products in forward and backward; weights that train and the loss stay float32. `auto`: bfloat16
    on a GPU and on a processor with instructions for it, else float32; the run's recipe.yaml says which."""
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

    @property
    def parts(self) -> "tuple[Stage, ...]":
        """The stages of one kind of rows each that this one trains at once: itself, but for GRIT."""
        return (self,)  # pyright: ignore[reportReturnType]: every stage is one of `Stage`

    @model_validator(mode="after")
    def _consistent(self) -> "BaseStage":
        if self.schedule_steps is not None and self.schedule_steps < self.steps:
            raise ValueError(f"schedule_steps ({self.schedule_steps}) is shorter than steps ({self.steps})")
        if self.warmup_steps > (self.schedule_steps or self.steps):
            raise ValueError(f"warmup_steps ({self.warmup_steps}) is longer than the schedule")
        if self.trainable != "lora" and self.lora is not None:
            part = f"layers: {self.trainable.layers}" if isinstance(self.trainable, LastLayers) else self.trainable
            raise ValueError(f"`lora` is set but `trainable` is {part}; remove one of them")
        if self.row != "pair" and any(source.unique_ids for source in self.data):
            raise ValueError("`unique_ids` tells pairs apart, and this stage reads none; take it out of its data")
        return self

    @property
    def trains(self) -> str:
        """What trains of the model, in words."""
        if isinstance(self.trainable, LastLayers):
            return f"the last {self.trainable.layers} layers"
        names = {"lora": "an adapter", "full": "all weights", "bias": "the biases", "embeddings": "the embeddings"}
        return names[self.trainable]

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


class RetromaeStage(BaseStage):
    """RetroMAE (arXiv 2205.12035): the text is rebuilt from its vector, by one fresh layer that hardly sees the text.

    Two losses, added: the backbone names the tokens that are masked in its own input, as in MNTP, and the layer, which
    is thrown away at the end, names every token of the text from the vector and a few tokens, each time others.
    """

    row, causal = "text", False
    objective: Literal["retromae"]
    mask_rate: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Probability that a token is chosen in the backbone's input; special tokens never are."""
    decoder_mask_rate: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Probability that the layer does not see a token while it names another one; it never sees the one it names."""
    mask_policy: Literal["bert", "all"] = "bert"
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


class DialogueFormat(Strict):
    """How a dialogue is read, and what its tokens count. Only responses are predicted, each with the EOS behind it."""

    user: str = "<|user|>\n"
    """What stands before a user's text: plain text to the tokenizer, as in GritLM, unless it is a token there."""
    assistant: Annotated[str, Field(min_length=1)] = "\n<|assistant|>\n"
    """What stands between a user's text and the response."""
    between: str = "\n"
    """What stands behind the EOS of a response if another turn follows."""
    aggregation: Literal["mixed", "token"] = "mixed"
    """`mixed`: the mean over the tokens of a `group`, then over groups. `token`: the sum over all tokens, by the number of
    dialogues, so that long responses count more and the loss is some hundred times as large (GRIT, section 3.2)."""
    group: PositiveInt | None = None
    """Dialogues whose tokens `mixed` averages together; all of a batch by default. 1: each dialogue counts alike."""
    logit_rows: PositiveInt = 1024
    """Rows of the vocabulary-wide logits that exist at a time."""

    @model_validator(mode="after")
    def _groups_are_mixed(self) -> "DialogueFormat":
        if self.aggregation == "token" and self.group is not None:
            raise ValueError("`group` is for `aggregation: mixed`; `token` sums over all tokens of a batch. Remove one")
        return self


class SftStage(BaseStage, DialogueFormat):
    """Supervised fine-tuning with causal attention: responses from what stands before them. Half of GRIT."""

    row, causal = "dialogue", True
    objective: Literal["sft"]


class GenerationSpec(DialogueFormat):
    """The generative half of a `grit` stage."""

    data: Annotated[tuple[DataSpec, ...], Field(min_length=1)]
    """Dialogues."""
    mixture_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """As for the stage."""
    batch_size: PositiveInt
    """Dialogues per step over all processes."""
    max_tokens: PositiveInt | None = None
    """Longest dialogue, `input.max_tokens` by default; of a longer one the end is cut."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of the generative loss beside the contrastive one."""


class GritStage(ContrastiveStage):
    """GRIT (arXiv 2402.09906): a contrastive and a generative batch in each step. One model that encodes in its own
    direction and, causally, writes."""

    objective: Literal["grit"]  # pyright: ignore[reportIncompatibleVariableOverride]: the name is all that differs
    generation: GenerationSpec

    @property
    def parts(self) -> "tuple[ContrastiveStage, SftStage]":
        """The halves, each a stage that could run alone."""
        own = {name: getattr(self, name) for name in ContrastiveStage.model_fields}
        written = {name: getattr(self.generation, name) for name in GenerationSpec.model_fields if name != "weight"}
        shared = {name: own[name] for name in BaseStage.model_fields}
        return (
            ContrastiveStage.model_construct(**{**own, "objective": "contrastive"}),
            SftStage.model_construct(**shared | written, objective="sft"),
        )


class PairScoresStage(BaseStage):
    """Two texts and a score or class (STS, NLI): their similarity is to follow it."""

    row = "scored pair"
    objective: Literal["pair_scores"]
    loss: PairScoresLossSpec


Stage = Annotated[
    ClmStage | MntpStage | RetromaeStage | SimcseStage | ContrastiveStage | PairScoresStage | SftStage | GritStage,
    Field(discriminator="objective"),
]


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
    precision: ClassVar[Literal["float32"]] = "float32"

    parts: ClassVar[tuple[()]] = ()
    trains: ClassVar[str] = "all weights"

    objective: Literal["merge"]
    method: Literal["average", "slerp"] = "average"
    """`slerp`: along the arc, one ingredient after another, tensor by tensor."""
    of: Annotated[tuple[Ingredient, ...], Field(min_length=1)]
    weights: tuple[float, ...] | None = None
    """One per ingredient, equal by default; only their ratios count."""
    base_weight: Rate = 0.0
    """Share that the model which the run started from has in the result."""

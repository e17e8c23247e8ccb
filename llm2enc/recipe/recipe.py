"""The whole recipe."""

from typing import Annotated, cast

from pydantic import Field, model_validator

from llm2enc.recipe.base import Strict
from llm2enc.recipe.evaluation import EvalSpec
from llm2enc.recipe.head import HeadSpec
from llm2enc.recipe.input import InputSpec, Pooling
from llm2enc.recipe.model import ModelSpec
from llm2enc.recipe.stages import (
    ClmStage,
    ContrastiveStage,
    DialogueFormat,
    LoraSpec,
    MergeStage,
    MntpStage,
    Stage,
)
from llm2enc.recipe.yaml_dialect import to_yaml


class Tracking(Strict):
    """Where metrics go besides metrics.jsonl, which is always written."""

    wandb: bool = False
    tensorboard: bool = False
    project: str = "llm2enc"


Score = Annotated[float, Field(gt=1, le=100)]


class Recipe(Strict):
    """A whole run: model, input format, stages, evaluation."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Names the run's folder, so it holds letters, digits, `.`, `_` and `-` alone."""
    description: str = ""
    family: Annotated[str, Field(max_length=24)] = ""
    """The system, or the group of systems, that the recipe belongs to: a heading of `llm2enc recipes`."""
    published: dict[str, Score] = Field(default_factory=dict)
    """Scores that the authors report for the recipe's own model, in points of 100, by benchmark: `{MTEB: 64.80}`."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    model: ModelSpec
    input: InputSpec
    pooling: Pooling
    head: HeadSpec | None = None
    """Weights between pooling and normalisation, which train in every stage that compares vectors."""
    normalize: bool = True
    """Whether `encode` returns unit vectors and the exported directory ends in a Normalize module."""
    stages: tuple[Annotated[Stage | MergeStage, Field(discriminator="objective")], ...] = ()
    """Empty: the model is converted and exported without training."""
    evaluation: tuple[EvalSpec, ...] = ()
    """Measured before training and after every stage."""
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        for stage in self.training.values():
            if stage.causal is False and self.model.attention == "causal":
                raise ValueError(
                    f"an {stage.objective} stage needs `model.attention: bidirectional`: masked prediction looks ahead"
                )
        learning = self.training.values()
        compared = [stage for stage in learning if "pair" in stage.row or stage.objective == "simcse"]
        if self.head is not None and not compared:
            raise ValueError(
                "`head` is given, but no stage trains it, so that its weights would stay random; add a contrastive or "
                "simcse stage, or leave it out"
            )
        for index, stage in self.training.items():
            if isinstance(stage, ContrastiveStage) and stage.in_context_examples and self.input.example is None:
                raise ValueError(
                    f"stage {index} has in_context_examples, but the query template has no place for them: add "
                    "{slot: examples} to input.query, and `example: {}` to input"
                )
            if stage.evaluate_every is not None and not self.evaluation:
                raise ValueError(
                    f"stage {index} ({stage.objective}) has `evaluate_every`, but the recipe has no `evaluation` to measure"
                )
            if stage.lora == "continue" and (index == 0 or self.stages[index - 1].trainable != "lora"):
                before = self.training.get(index - 1)
                said = f"trains {before.trains}" if before else "merges encoders"
                reason = f"the stage before it {said}" if index else "it is the first stage"
                raise ValueError(
                    f"stage {index} ({stage.objective}) has `lora: continue`, but no adapter to go on with: {reason}. "
                    "Give it a shape, `lora: {r: 16, alpha: 32}`"
                )
        return self

    @model_validator(mode="after")
    def _merges_what_is_there(self) -> "Recipe":
        for index, stage in self.merges.items():
            if stage.base_weight and self.head is not None:
                raise ValueError(
                    f"stage {index} (merge) has `base_weight`, but the base has no head to mix this one with"
                )
            for one in stage.of:
                if one.stage is not None and one.stage >= index:
                    raise ValueError(
                        f"stage {index} (merge) takes the weights of stage {one.stage}, which is no earlier one"
                    )
                kept = () if one.stage is None else self.stages[one.stage].keep_checkpoints
                if one.step is not None and one.step not in kept:
                    raise ValueError(
                        f"stage {index} (merge) takes step {one.step} of stage {one.stage}, which keeps "
                        f"{list(kept) or 'none'}; add it to that stage's `keep_checkpoints`"
                    )
        return self

    @property
    def training(self) -> dict[int, Stage]:
        """The stages that train, by number."""
        return {number: stage for number, stage in enumerate(self.stages) if not isinstance(stage, MergeStage)}

    @property
    def merges(self) -> dict[int, MergeStage]:
        """The others, by number."""
        return {number: stage for number, stage in enumerate(self.stages) if isinstance(stage, MergeStage)}

    @property
    def input_lengths(self) -> dict[str, int]:
        """The longest inputs in tokens that the model must take, by the field that asks for them."""
        blocks = {
            f"stages.{number}.block_tokens": cast("ClmStage | MntpStage", stage).block_tokens
            for number, stage in self.training.items()
            if stage.row == "block"
        }
        dialogues = {
            f"stages.{number}{'.generation' * (part is not stage)}.max_tokens": part.max_tokens
            for number, stage in self.training.items()
            for part in stage.parts
            if part.row == "dialogue" and part.max_tokens is not None
        }
        return {"input.max_tokens": self.input.max_tokens, **blocks, **dialogues}

    @property
    def dialogue_format(self) -> DialogueFormat | None:
        """How dialogues are read in the last stage that trains on them; None if none does."""
        read = [part for stage in self.training.values() for part in stage.parts if isinstance(part, DialogueFormat)]
        return read[-1] if read else None

    def adapter_goes_on(self, index: int) -> bool:
        """Whether the stage behind stage `index` goes on with its adapter, which therefore stays unmerged."""
        return index + 1 < len(self.stages) and self.stages[index + 1].lora == "continue"

    def adapter_of(self, index: int) -> LoraSpec:
        """Shape of the adapter that stage `index` trains: its own, or that of the stage it goes on from."""
        own = next(stage.lora for stage in self.stages[index::-1] if stage.lora != "continue")
        return own or LoraSpec()

    def to_yaml(self) -> str:
        """The resolved recipe; `load_recipe` of this text gives an equal recipe."""
        return to_yaml(self.model_dump(mode="json"))

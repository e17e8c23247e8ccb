"""The whole recipe."""

from typing import Annotated, cast

from pydantic import Field, model_validator

from llm2enc.recipe.base import Strict
from llm2enc.recipe.evaluation import EvalSpec
from llm2enc.recipe.head import HeadSpec
from llm2enc.recipe.input import InputSpec, Pooling
from llm2enc.recipe.model import ModelSpec
from llm2enc.recipe.stages import ClmStage, DialogueFormat, LoraSpec, MntpStage, Stage
from llm2enc.recipe.yaml_dialect import to_yaml


class Tracking(Strict):
    """Where metrics go besides metrics.jsonl, which is always written."""

    wandb: bool = False
    tensorboard: bool = False
    project: str = "llm2enc"


class Recipe(Strict):
    """A whole run: model, input format, stages, evaluation."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Names the run's folder, so it holds letters, digits, `.`, `_` and `-` alone."""
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    model: ModelSpec
    input: InputSpec
    pooling: Pooling
    head: HeadSpec | None = None
    """Weights between pooling and normalisation, which train in every stage that compares vectors."""
    normalize: bool = True
    """Whether `encode` returns unit vectors and the exported directory ends in a Normalize module."""
    stages: tuple[Stage, ...] = ()
    """Empty: the model is converted and exported without training."""
    evaluation: tuple[EvalSpec, ...] = ()
    """Measured before training and after every stage."""
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        for stage in self.stages:
            if stage.causal is False and self.model.attention == "causal":
                raise ValueError(
                    f"an {stage.objective} stage needs `model.attention: bidirectional`: masked prediction looks ahead"
                )
        compared = [stage for stage in self.stages if "pair" in stage.row or stage.objective == "simcse"]
        if self.head is not None and not compared:
            raise ValueError(
                "`head` is given, but no stage trains it, so that its weights would stay random; add a contrastive or "
                "simcse stage, or leave it out"
            )
        for index, stage in enumerate(self.stages):
            if stage.lora == "continue" and (index == 0 or self.stages[index - 1].trainable == "full"):
                reason = "the stage before it trains all weights" if index else "it is the first stage"
                raise ValueError(
                    f"stage {index} ({stage.objective}) has `lora: continue`, but no adapter to go on with: {reason}. "
                    "Give it a shape, `lora: {r: 16, alpha: 32}`"
                )
        return self

    @property
    def input_lengths(self) -> dict[str, int]:
        """The longest inputs in tokens that the model must take, by the field that asks for them."""
        blocks = {
            f"stages.{number}.block_tokens": cast("ClmStage | MntpStage", stage).block_tokens
            for number, stage in enumerate(self.stages)
            if stage.row == "block"
        }
        dialogues = {
            f"stages.{number}{'.generation' * (part is not stage)}.max_tokens": part.max_tokens
            for number, stage in enumerate(self.stages)
            for part in stage.parts
            if part.row == "dialogue" and part.max_tokens is not None
        }
        return {"input.max_tokens": self.input.max_tokens, **blocks, **dialogues}

    @property
    def dialogue_format(self) -> DialogueFormat | None:
        """How dialogues are read in the last stage that trains on them; None if none does."""
        read = [part for stage in self.stages for part in stage.parts if isinstance(part, DialogueFormat)]
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

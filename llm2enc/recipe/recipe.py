"""The whole recipe."""

from typing import Annotated

from pydantic import Field, model_validator

from llm2enc.recipe.base import Strict
from llm2enc.recipe.evaluation import EvalSpec
from llm2enc.recipe.input import InputSpec, Pooling
from llm2enc.recipe.model import ModelSpec
from llm2enc.recipe.stages import Stage
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
            if stage.objective == "mntp" and self.model.attention == "causal":
                raise ValueError("an mntp stage needs `model.attention: bidirectional`: masked prediction looks ahead")
        return self

    def to_yaml(self) -> str:
        """The resolved recipe; `load_recipe` of this text gives an equal recipe."""
        return to_yaml(self.model_dump(mode="json"))

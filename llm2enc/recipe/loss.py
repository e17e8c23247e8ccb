"""The loss of a stage that compares vectors."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from llm2enc.recipe.base import Strict
from llm2enc.recipe.terms import TermsSpec


class MaskSpec(Strict):
    """Which texts are left out of a denominator although they stand where negatives do. The positive never is."""

    duplicates: bool = False
    """Texts that are right answers to the query, or the query itself, wherever they stand in the batch: its positive in
    another row, the positive of another row with the same query."""


class LossSpec(TermsSpec):
    """InfoNCE (arXiv 1807.03748): -log of the positive's share of a denominator, mean over the queries.

    The fields say what else stands in the denominator, and how it counts.
    """

    similarity: Literal["cosine", "dot"] = "cosine"
    temperature: Annotated[float, Field(gt=0)] = 0.02
    """What similarities are divided by."""
    hard_negatives: Literal["none", "own", "all"] = "all"
    """Whose hard negatives: nobody's, those of the query's own row, those of every row."""
    masks: MaskSpec = MaskSpec()

    @field_validator("temperature")
    @classmethod
    def _is_no_scale(cls, value: float, info: ValidationInfo) -> float:
        """Above 1 no loss of cosines comes far below ln(batch): they differ by 2 at most."""
        if info.data.get("similarity") == "cosine" and value > 1:
            raise ValueError(
                f"cosines are divided by the temperature, and {value:g} makes all of them alike. If it is a scale, which "
                f"they are multiplied by, write its inverse, `temperature: {1 / value:g}`"
            )
        return value


class SimcseMaskSpec(MaskSpec):
    duplicates: bool = True


class SimcseLossSpec(LossSpec):
    """The loss of SimCSE, whose rows bring two views of a text and no hard negatives."""

    temperature: Annotated[float, Field(gt=0)] = 0.05
    masks: SimcseMaskSpec = SimcseMaskSpec()

    @model_validator(mode="after")
    def _has_no_hard_negatives(self) -> "SimcseLossSpec":
        if self.hard_negatives != "all":
            raise ValueError("`hard_negatives` has no meaning in a simcse stage, whose rows have none; leave it out")
        return self

    @model_validator(mode="after")
    def _has_no_labels(self) -> "SimcseLossSpec":
        for name in ("pair_scores", "soft_labels", "embedding_match"):
            if getattr(self, name):
                raise ValueError(
                    f"`{name}` has no meaning in a simcse stage, whose rows are single texts; leave it out"
                )
        return self

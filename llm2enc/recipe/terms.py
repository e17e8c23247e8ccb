"""What a loss may hold beside InfoNCE."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from llm2enc.recipe.base import Strict
from llm2enc.recipe.pair_scores import PairScores, checked
from llm2enc.recipe.teacher import EmbeddingMatchSpec, SoftLabelsSpec, SpreadOutSpec


class TermsSpec(Strict):
    """Terms that are added to InfoNCE, each with a weight."""

    weight: Annotated[float, Field(ge=0)] = 1.0
    """Of InfoNCE itself: E5 takes 0.2 beside `soft_labels`, bge-m3's distillation 0, which leaves it out."""
    soft_labels: SoftLabelsSpec | None = None
    embedding_match: EmbeddingMatchSpec | None = None
    spread_out: SpreadOutSpec | None = None
    pair_scores: tuple[PairScores, ...] = ()
    """Of each query with its positive, labelled 1, and with its hard negatives, labelled 0."""

    @property
    def needs_negatives(self) -> str:
        """Which of the terms compares documents of one row; empty if none does."""
        kinds = [loss.kind for loss in self.pair_scores if loss.kind in ("cosent", "angle", "triplet")]
        return next(iter((["soft_labels"] if self.soft_labels else []) + kinds), "")

    @model_validator(mode="after")
    def _sums_something_up(self) -> Self:
        checked(self.pair_scores, "pairs")
        others = (self.soft_labels, self.embedding_match, self.pair_scores)
        if not self.weight and not any(others):
            raise ValueError("`weight: 0` leaves InfoNCE out, and there is no other term to learn from")
        return self

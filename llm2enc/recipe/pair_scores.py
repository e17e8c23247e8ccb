"""Losses of labelled pairs: two texts and a score, or a query with its positive (label 1) and hard negatives (label 0)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from llm2enc.recipe.base import Strict
from llm2enc.recipe.layers import LayersSpec

Positive = Annotated[float, Field(gt=0)]


class BasePairScores(Strict):
    needs: ClassVar[Literal["pairs", "scored pairs"] | None] = None
    """The one kind of rows it can be computed from; None: either."""
    weight: Positive = 1.0
    """Of this loss in the sum."""


class CosentSpec(BasePairScores):
    """CoSENT: cosines in the order of the labels (doi 10.1109/TASLP.2024.3402087)."""

    kind: Literal["cosent"]
    scale: Positive = 20.0
    """Factor of the cosines."""


class AngleSpec(BasePairScores):
    """AnglE: angles in the complex plane in the order of the labels (arXiv 2309.12871), signed as in its authors' code."""

    kind: Literal["angle"]
    scale: Positive = 20.0


class InBatchSpec(BasePairScores):
    """AnglE's in-batch negatives. Of scored pairs: both texts of a pair with label 1 against all other texts of the batch.
    Of pairs: queries against all positives, without hard negatives."""

    kind: Literal["in_batch"]
    scale: Positive = 20.0


class CosineMseSpec(BasePairScores):
    """Squared error of the cosine against the label on a scale from 0 to 1 (SBERT, arXiv 1908.10084)."""

    kind: Literal["cosine_mse"]
    labels: tuple[float, float] = (0.0, 1.0)
    """The labels that become 0 and 1, e.g. [0, 5] for STS."""

    @model_validator(mode="after")
    def _labels_rise(self) -> "CosineMseSpec":
        low, high = self.labels
        if low >= high:
            raise ValueError(f"labels run from {low:g} to {high:g}; give the lowest and the highest, e.g. [0, 5]")
        return self


class SoftmaxSpec(BasePairScores):
    """Classes of pairs through a linear layer on (u, v, |u - v|), which is thrown away afterwards (SBERT on NLI)."""

    needs = "scored pairs"
    kind: Literal["softmax"]
    classes: Annotated[int, Field(ge=2)] = 3
    """Labels are the whole numbers from 0 on."""


class TripletSpec(BasePairScores):
    """The positive nearer than each hard negative of its row by a margin, in Euclidean distance (SBERT)."""

    needs = "pairs"
    kind: Literal["triplet"]
    margin: Positive = 1.0
    """1 in the paper, 5 in sentence-transformers. Unit vectors (`normalize: true`) are never farther apart than 2."""


class MarginContrastiveSpec(BasePairScores):
    """Cosine distance 0 for pairs with label 1, at least the margin for those with label 0 (Hadsell et al., CVPR 2006)."""

    kind: Literal["contrastive"]
    margin: Annotated[float, Field(gt=0, le=2)] = 0.5


PairScores = Annotated[
    CosentSpec | AngleSpec | InBatchSpec | CosineMseSpec | SoftmaxSpec | TripletSpec | MarginContrastiveSpec,
    Field(discriminator="kind"),
]


def checked(losses: tuple[PairScores, ...], rows: Literal["pairs", "scored pairs"]) -> tuple[PairScores, ...]:
    """The losses. ValueError for one that such rows have nothing for, or that stands there twice."""
    kinds = [loss.kind for loss in losses]
    for loss in losses:
        if loss.needs not in (None, rows):
            raise ValueError(f"`{loss.kind}` is a loss of {loss.needs}, and this stage reads {rows}")
        if kinds.count(loss.kind) > 1:
            raise ValueError(f"`{loss.kind}` stands there twice; give it one weight")
    return losses


class PairScoresLossSpec(Strict):
    """The loss of a stage that reads scored pairs: a weighted sum."""

    pair_scores: Annotated[tuple[PairScores, ...], Field(min_length=1)]
    layers: LayersSpec | None = None
    """Prior layers' vectors learn too, so that the model can be cut (2DMSE, ESE)."""

    @model_validator(mode="after")
    def _fits_scored_pairs(self) -> "PairScoresLossSpec":
        checked(self.pair_scores, "scored pairs")
        if self.layers is not None and self.layers.compression and any(x.kind == "softmax" for x in self.pair_scores):
            raise ValueError(
                "`layers.compression` takes a part of the vectors, which the layer of `softmax` needs whole"
            )
        return self

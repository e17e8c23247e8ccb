"""Weights that an encoder has between pooling and normalisation."""

from typing import Literal

from llm2enc.recipe.base import PositiveInt, Strict


class ProjectionSpec(Strict):
    """A linear layer to another width, as in Gemini Embedding (arXiv 2503.07891, section 3) and EmbeddingGemma.

    It starts as an orthogonal matrix drawn by the recipe's seed: a wider vector has the similarities of the one that is
    projected, a narrower one has them on average, and no coordinate counts more than another.
    """

    kind: Literal["projection"]
    dimensions: PositiveInt
    """Width of the vectors."""
    bias: bool = False


HeadSpec = ProjectionSpec  # a union by `kind`, as Stage is by `objective`, once there are two

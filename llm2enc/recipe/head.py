"""Weights that an encoder has beside its backbone: before the pooling, or between pooling and normalisation."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llm2enc.recipe.base import PositiveInt, Strict


class ProjectionSpec(Strict):
    """A linear layer to another width, as in Gemini Embedding (arXiv 2503.07891, section 3) and EmbeddingGemma.

    It starts as an orthogonal matrix drawn by the recipe's seed: a wider vector has the similarities of the one that is
    projected, a narrower one has them on average, and no coordinate counts more than another.
    """

    training_only: ClassVar[bool] = False

    kind: Literal["projection"]
    dimensions: PositiveInt
    """Width of the vectors."""
    bias: bool = False

    @property
    def words(self) -> str:
        return f"a linear projection to {self.dimensions} dimensions"


class MlpSpec(Strict):
    """A dense layer of the model's width and tanh behind the pooling, as in SimCSE (arXiv 2104.08821)."""

    kind: Literal["mlp"]
    training_only: bool
    """Vectors go through it while a stage trains, and nowhere else: it is thrown away at the end (SimCSE without
    supervision). Supervised SimCSE keeps it."""

    @property
    def words(self) -> str:
        return "a dense layer with tanh"


class LatentAttentionSpec(Strict):
    """NV-Embed's block before the pooling (arXiv 2405.17428, section 3.1): every state attends to trained latents.

    Each attention head is as wide as the model, as in the released one: 512 latents and 8 heads are 0.74 billion weights at
    width 4096. Other programs than sentence-transformers, which runs the module that the directory brings (with
    `trust_remote_code=True`), cannot compute it.
    """

    training_only: ClassVar[bool] = False

    kind: Literal["latent_attention"]
    latents: PositiveInt
    heads: PositiveInt

    @property
    def words(self) -> str:
        return f"attention of its states to {self.latents} latents"


HeadSpec = Annotated[ProjectionSpec | MlpSpec | LatentAttentionSpec, Field(discriminator="kind")]

"""Vectors of several layers in one loss, so that the model can be cut afterwards."""

from math import log
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from llm2enc.recipe.base import PositiveInt, Strict


def _which_tag(value: Any) -> str:
    return "name" if isinstance(value, str) else "last"


class LayersSpec(Strict):
    """The loss of prior layers' vectors beside that of the last layer's, and each prior layer drawn towards a teacher.

    2DMSE (arXiv 2402.14776, version 1): the fields as they are. ESE (version 2): `which: all`, `weights: log`,
    `kl_temperature: 1`, `compression: 128`. The vector of layer k is that of the model cut to it, through its final norm:
    afterwards `llm2enc convert` with the exported directory, `model.layers: k` and no stages writes the shallower encoder.
    """

    which: Annotated[
        Annotated[Literal["random", "all"], Tag("name")] | Annotated[PositiveInt, Tag("last")],
        Discriminator(_which_tag),
    ] = "random"
    """Prior layers of a step, of 1 to the one before the last: one drawn by the recipe's seed, all, or the last N of them.
    Their losses are averaged."""
    weights: Literal["uniform", "log"] = "uniform"
    """Of the loss of layer k: 1, or 1 / (1 + ln k), so that the first layers count most."""
    kl_temperature: Annotated[float, Field(gt=0)] | None = 0.3
    """Adds T x KL(teacher || prior layer) of softmaxes over the dimensions at temperature T; null: no such term. The teacher
    is the last layer, without a gradient."""
    compression: PositiveInt | None = None
    """ESE: prior layers learn in their first so many dimensions alone, and those of each layer, the last one too, are drawn
    (squared error and KL) to the principal components of that layer's own vectors."""

    def weight(self, layer: int) -> float:
        """Of the loss of a prior layer."""
        return 1.0 if self.weights == "uniform" else 1 / (1 + log(layer))

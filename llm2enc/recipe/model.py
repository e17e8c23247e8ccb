"""The causal language model a run starts from."""

from typing import Literal

from llm2enc.recipe.base import Strict

Attention = Literal["bidirectional", "causal"]


class ModelSpec(Strict):
    """The causal language model a run starts from."""

    name: str
    """Hub id, directory, or `pocket` for the model inside this package."""
    revision: str | None = None
    """Branch, tag or commit on the hub; a commit makes the run reproducible."""
    attention: Attention = "bidirectional"
    """`bidirectional` converts the model; `causal` leaves it causal (Echo, last-token models)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Storage type of the frozen weights. Adapters are float32 whatever this says."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` builds the model from its config.json and the recipe's seed (pre-training, tests)."""
    trust_remote_code: bool = False
    """Run Python that comes with the model. Off unless the user says so."""

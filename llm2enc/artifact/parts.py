"""What a saved directory holds, as objects."""

from dataclasses import dataclass

from llm2enc.model import Backbone, Head
from llm2enc.recipe import Pooling
from llm2enc.text import InputFormat


@dataclass(frozen=True)
class Parts:
    """The parts an encoder is built from."""

    backbone: Backbone
    input_format: InputFormat
    pooling: Pooling
    normalize: bool
    head: Head | None = None

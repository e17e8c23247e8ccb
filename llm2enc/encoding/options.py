"""What a caller can ask of an encoder besides the texts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from llm2enc.encoding import quantization
from llm2enc.encoding.quantization import Precision
from llm2enc.errors import InputError

OutputType = Literal["float32", "float16"]


@dataclass(frozen=True)
class EncodeOptions:
    """The keywords of `Encoder.encode`. ValueError for those that exclude each other."""

    instruction: str | Iterable[str] | None = None
    """What the texts are queries for, one or one per text; without one they are documents."""
    prompt_name: str | None = None
    """`query`, `document`, or the name of an instruction of the recipe."""
    examples: Sequence[tuple[str, str]] = ()
    """In-context examples, (query, document) each, for an encoder whose query template has a slot for them; they have the
    instruction of the text."""
    batch_tokens: int | None = None
    """Tokens per forward pass; by default 2048 on a CPU, where caches count, 65536 on a GPU."""
    truncate_dim: int | None = None
    """Keep the first so many dimensions (Matryoshka) and normalise again."""
    dtype: OutputType = "float32"
    """Of the vectors that are returned."""
    precision: Precision = "float32"
    """Codes of the vectors instead, for an index: see `llm2enc.encoding.quantization`."""
    ranges: np.ndarray | None = None
    """(2, D), which int8 and uint8 need, of vectors cut like these: `quantization.calibrate`."""
    show_progress: bool = False
    """A progress bar on stderr."""

    def __post_init__(self) -> None:
        if self.dtype not in get_args(OutputType):
            raise InputError(f"dtype is {self.dtype!r}; vectors come as one of {', '.join(get_args(OutputType))}")
        if self.instruction is not None and self.prompt_name is not None:
            raise InputError("give either `instruction` or `prompt_name`, not both")
        if self.precision != "float32" and self.dtype != "float32":
            raise InputError(
                f"dtype is {self.dtype} and precision {self.precision}; give one of them, codes have a type of their own"
            )

    @property
    def is_float(self) -> bool:
        """Whether vectors are asked for, not codes."""
        return self.precision == "float32"

    def check(self, dimensions: int) -> None:
        """ValueError if an encoder whose vectors have so many dimensions cannot do what is asked."""
        if self.truncate_dim is not None and not 0 < self.truncate_dim <= dimensions:
            raise InputError(
                f"truncate_dim is {self.truncate_dim}; this encoder's vectors have {dimensions} dimensions"
            )
        quantization.check(self.precision, self.ranges, self.truncate_dim or dimensions)


DEFAULT = EncodeOptions()

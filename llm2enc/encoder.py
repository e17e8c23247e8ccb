"""The encoder: backbone + input format + pooling. Texts in, vectors out.

encoder = Encoder.load("runs/pocket/model")
encoder.encode(["a text"])                                     (1, D) float32
encoder.encode(["a question"], instruction="Retrieve ...")     the query template
encoder.encode(["a question"], prompt_name="query")            an instruction by name
"""

import copy
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from llm2enc.backbone import Backbone, evaluating, load_backbone, load_tokenizer
from llm2enc.pooling import POOLERS, pooled_edges
from llm2enc.recipe import InputSpec, ModelSpec, Pooling, Recipe, Role
from llm2enc.tokens import InputFormat, Tokens, mini_batches

WINDOW = 16384  # texts tokenized and sorted at a time by `encode`: bounds memory, and padding is not an issue

OutputType = Literal["float32", "float16"]


class Encoder(nn.Module):
    """A text encoder. `forward` is what trains; `encode` is what serves."""

    def __init__(self, backbone: Backbone, input_format: InputFormat, pooling: Pooling, normalize: bool = True):
        super().__init__()
        self.backbone = backbone
        self.input_format = input_format
        self.pooling: Pooling = pooling
        self.normalize = normalize
        self.causal: bool | None = None  # overrides the backbone's direction, to compare

    # ---- making one

    @staticmethod
    def from_causal_lm(
        model: ModelSpec | str,
        input: InputSpec,
        pooling: Pooling = "mean",
        normalize: bool = True,
        seed: int = 0,
    ) -> "Encoder":
        """An encoder from a causal LM, converted and proven. CannotConvert if its attention stays one-sided.

        model  a ModelSpec, or a hub id, directory or `pocket` with the spec's defaults
        """
        from llm2enc.proof import prove

        spec = ModelSpec(name=model) if isinstance(model, str) else model
        input_format = InputFormat(input, load_tokenizer(spec))  # cheap, and it may refuse: before any weight
        backbone = load_backbone(spec, seed)
        if torch.cuda.is_available():
            backbone.to("cuda")
        prove(backbone)
        return Encoder(backbone, input_format, pooling, normalize).eval()

    @staticmethod
    def from_recipe(recipe: Recipe) -> "Encoder":
        """The untrained encoder of a recipe."""
        return Encoder.from_causal_lm(recipe.model, recipe.input, recipe.pooling, recipe.normalize, recipe.seed)

    @staticmethod
    def load(folder: str | Path) -> "Encoder":
        """The encoder of a directory written by `save`."""
        from llm2enc.export.sentence_transformers import read

        return read(Path(folder))

    def save(self, folder: str | Path) -> None:
        """Write the directory that sentence-transformers, transformers and the serving engines open."""
        from llm2enc.export.sentence_transformers import write

        write(self, Path(folder))

    # ---- using it

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def forward(self, tokens: Tokens) -> Tensor:
        """Pooled states, not normalised: (B, D) float32."""
        hidden = self.backbone.hidden(tokens, self.causal, self._needed(tokens))
        return POOLERS[self.pooling](hidden, tokens.pool, tokens.lengths)

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        instruction: str | Sequence[str] | None = None,
        prompt_name: str | None = None,
        batch_tokens: int | None = None,
        truncate_dim: int | None = None,
        dtype: OutputType = "float32",
        show_progress: bool = False,
    ) -> np.ndarray:
        """Vectors (B, D) of texts, in their order; (D,) of a single text. Unit length if `normalize`.

        instruction   what the texts are queries for, one or one per text; without one they are documents
        prompt_name   `query`, `document`, or the name of an instruction of the recipe
        batch_tokens  tokens per forward pass: 2048 on a CPU, where caches count, 65536 on a GPU
        truncate_dim  keep the first so many dimensions (Matryoshka) and normalise again
        """
        if isinstance(texts, str):
            if not isinstance(instruction, str | None):
                raise ValueError("one text takes one instruction, got a list")
            return self.encode(
                [texts], instruction=instruction, prompt_name=prompt_name, batch_tokens=batch_tokens,
                truncate_dim=truncate_dim, dtype=dtype, show_progress=show_progress,
            )[0]  # fmt: skip
        if dtype not in get_args(OutputType):
            raise ValueError(f"dtype is {dtype!r}; vectors come as one of {', '.join(get_args(OutputType))}")
        role, instruction = self._role(instruction, prompt_name)
        width = self.backbone.width
        if truncate_dim is not None and not 0 < truncate_dim <= width:
            raise ValueError(f"truncate_dim is {truncate_dim}; this encoder's vectors have {width} dimensions")
        batch_tokens = batch_tokens or (2048 if self.device.type == "cpu" else 65536)
        vectors = np.empty((len(texts), truncate_dim or width), dtype=dtype)
        with evaluating(self), _progress(len(texts), show_progress) as advance:
            for start in range(0, len(texts), WINDOW):
                window = list(texts[start : start + WINDOW])
                asked = instruction if isinstance(instruction, str) else instruction[start : start + WINDOW]
                tokens = self.input_format.pack(window, asked, role)
                for rows, batch in self._batches(tokens, batch_tokens, advance):
                    vectors[start + rows] = self._finish(batch, truncate_dim).cpu().numpy().astype(dtype)
        return vectors

    def variant(self, causal: bool, pooling: Pooling) -> "Encoder":
        """The same weights read with another direction and pooling: what comparisons are made of."""
        other = copy.copy(self)
        other.causal, other.pooling = causal, pooling
        return other

    def _batches(self, tokens: Tokens, batch_tokens: int, advance) -> Iterable[tuple[np.ndarray, Tensor]]:
        """Rows and pooled states of each batch. What is in a batch depends on the set of texts, not on their order."""
        order = torch.tensor(_canonical_order(tokens))
        for chosen in mini_batches(tokens.lengths[order], batch_tokens):
            rows = order[chosen]
            yield rows.numpy(), self(tokens.select(rows).to(self.device))
            advance(len(rows))

    def _finish(self, vectors: Tensor, truncate_dim: int | None) -> Tensor:
        vectors = vectors[:, :truncate_dim]
        return nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors

    def _role(self, instruction, prompt_name: str | None) -> tuple[Role, str | Sequence[str]]:
        if prompt_name is None:
            return ("document", "") if instruction is None else ("query", instruction)
        if instruction is not None:
            raise ValueError("give either `instruction` or `prompt_name`, not both")
        prompts = self.input_format.spec.prompts
        if prompt_name == "document":
            return "document", ""
        if prompt_name != "query" and prompt_name not in prompts:
            raise ValueError(f"no prompt named {prompt_name!r}; this encoder has {['query', 'document', *prompts]}")
        return "query", prompts.get(prompt_name, "")

    def _needed(self, tokens: Tokens) -> Tensor:
        """(T,) bool: the tokens whose last-layer states enter the vector."""
        if self.pooling in ("mean", "weighted_mean"):
            return tokens.pool
        edge = pooled_edges(tokens.pool, tokens.lengths)[self.pooling == "last"]
        return torch.zeros_like(tokens.pool).index_fill(0, edge, True)


def _canonical_order(tokens: Tokens) -> list[int]:
    """Row numbers in an order that depends on the texts alone, so that shuffled input gives bit-equal vectors."""
    pieces = tokens.ids.numpy().astype(np.int32)
    ends = np.cumsum(tokens.lengths.numpy())
    keys = [
        hashlib.blake2b(pieces[end - length : end].tobytes(), digest_size=8).digest()
        for end, length in zip(ends, tokens.lengths.tolist(), strict=True)
    ]
    return sorted(range(len(tokens)), key=keys.__getitem__)


class _progress:
    """A rich bar over `total` texts, or nothing."""

    def __init__(self, total: int, show: bool):
        self.total, self.show = total, show

    def __enter__(self):
        if not self.show:
            return lambda count: None
        from rich.progress import Progress

        self.bar = Progress(transient=True)
        self.bar.start()
        task = self.bar.add_task("encode", total=self.total)
        return lambda count: self.bar.advance(task, count)

    def __exit__(self, *error) -> None:
        if self.show:
            self.bar.stop()

"""The encoder: backbone + input format + pooling + head. Texts in, vectors out.

encoder = Encoder.load("runs/pocket/model")
encoder.encode(["a text"])                                     (1, D) float32
encoder.encode(["a question"], instruction="Retrieve ...")     the query template
encoder.encode(["a question"], prompt_name="query")            an instruction by name
"""

import copy
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import zip_longest
from operator import length_hint
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from llm2enc import distributed
from llm2enc.artifact import Parts, read, write
from llm2enc.encoding.quantization import Precision, check, layout, quantize
from llm2enc.errors import InputError
from llm2enc.model import (
    POOLERS,
    Backbone,
    Projection,
    evaluating,
    load_backbone,
    load_tokenizer,
    weights_fingerprint,
)
from llm2enc.model import limits as positions
from llm2enc.recipe import HeadSpec, InputSpec, ModelSpec, Pooling, Recipe, Role
from llm2enc.terminal import bar
from llm2enc.text import InputFormat, Tokens, concatenate, mini_batches

# Texts are tokenized in pieces, because what the tokenizer returns takes 40 times the memory of the ids alone; the ids
# of many pieces make a window, which is sorted by length. Each is bounded for short texts and for long ones.
PIECE, PIECE_CHARACTERS = 256, 2**17
WINDOW, WINDOW_TOKENS = 8192, 2**20

OutputType = Literal["float32", "float16"]
LoadType = Literal["auto", "float32", "bfloat16", "float16"]


class Encoder(nn.Module):
    """A text encoder. `forward` is what trains; `encode` is what serves."""

    def __init__(
        self,
        backbone: Backbone,
        input_format: InputFormat,
        pooling: Pooling,
        normalize: bool = True,
        head: Projection | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.input_format = input_format
        self.pooling: Pooling = pooling
        self.normalize = normalize
        # To compare readings of one model: another direction than the backbone's, another layer than the last.
        self.causal: bool | None = None
        self.layer: int | None = None

    # ---- making one

    @staticmethod
    def from_causal_lm(
        model: ModelSpec | str,
        input: InputSpec,
        pooling: Pooling = "mean",
        normalize: bool = True,
        seed: int = 0,
    ) -> "Encoder":
        """An encoder from a causal LM, converted and proven.

        model   a ModelSpec, or a hub id, directory or `pocket` with the spec's defaults
        raises  CannotConvert if its attention stays one-sided, ValueError if `input` asks for more tokens than it takes
        """
        spec = ModelSpec(name=model) if isinstance(model, str) else model
        return Encoder._converted(spec, input, pooling, normalize, None, seed, {"input.max_tokens": input.max_tokens})

    @staticmethod
    def from_recipe(recipe: Recipe) -> "Encoder":
        """The untrained encoder of a recipe, whose model takes the inputs of every stage. Raises as `from_causal_lm`."""
        how = recipe.pooling, recipe.normalize, recipe.head
        return Encoder._converted(recipe.model, recipe.input, *how, recipe.seed, recipe.input_lengths)

    @staticmethod
    def _converted(
        spec: ModelSpec,
        input: InputSpec,
        pooling: Pooling,
        normalize: bool,
        head: HeadSpec | None,
        seed: int,
        lengths: dict[str, int | None],
    ) -> "Encoder":
        from llm2enc.model import prove

        input_format = InputFormat(input, load_tokenizer(spec))  # cheap, and it may refuse: before any weight
        backbone = load_backbone(spec, seed, lengths)
        if torch.cuda.is_available():
            backbone.to("cuda")
        prove(backbone)
        projection = None if head is None else Projection.fresh(backbone.width, head, seed).to(backbone.device)
        return Encoder(backbone, input_format, pooling, normalize, projection).eval()

    @staticmethod
    def load(folder: str | Path, dtype: LoadType = "auto", full_proof: bool = False) -> "Encoder":
        """The encoder of a directory written by `save`, with the vectors that were saved (see `artifact.read`).

        dtype  what the weights are held in; `auto`: as they are stored. On a CPU without 16-bit products, 16-bit weights
               are computed with in float32, a layer at a time
        full_proof  prove the model again in any case, and open it whatever was changed since
        raises      ValueError for another directory, weights that were changed, or other vectors than those saved with it
        """
        if dtype not in get_args(LoadType):
            raise InputError(f"dtype is {dtype!r}; weights are loaded as one of {', '.join(get_args(LoadType))}")
        return Encoder._of(read(Path(folder), dtype, full_proof))

    @staticmethod
    def _of(parts: Parts) -> "Encoder":
        return Encoder(parts.backbone, parts.input_format, parts.pooling, parts.normalize, parts.head).eval()

    def save(
        self,
        folder: str | Path,
        *,
        recipe: Recipe | None = None,
        history: Sequence[dict[str, Any]] = (),
        merge: dict[str, Any] | None = None,
        card: str | None = None,
        dtype: str | None = None,
    ) -> None:
        """Write the directory that sentence-transformers, transformers and the serving engines open. One process calls it.

        recipe, history, merge, card   how the encoder was made, for the model card (see `artifact.write`)
        dtype    storage type, one of float32, bfloat16, float16; that of the weights by default
        raises   ValueError for a variant, an adapter that is not merged, a folder that holds something else, or a type that
                 cannot hold the weights
        """
        if self.layer is not None or self.causal not in (None, not self.backbone.bidirectional):
            raise InputError(
                "the encoder is a variant that reads another layer or direction than its model, which no directory can say; "
                "save the encoder that it was made of"
            )
        parts = Parts(self.backbone, self.input_format, self.pooling, self.normalize, self.head)
        write(
            parts, Path(folder), lambda written, texts: Encoder._of(written).encode(texts),
            recipe=recipe, history=list(history), merge=merge, card=card, dtype=dtype,
        )  # fmt: skip

    # ---- using it

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def max_tokens(self) -> int:
        """Longest input, template included; of a longer one the text is cut."""
        return self.input_format.spec.max_tokens

    @property
    def prompts(self) -> dict[str, str]:
        """Instructions by name."""
        return self.input_format.spec.prompts

    @property
    def dimensions(self) -> int:
        """Width of a vector."""
        return self.backbone.width if self.head is None else self.head.dimensions

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that get a gradient, by name: the backbone's own, and the head's under `head.`."""
        if self.head is None:
            return self.backbone.trained()
        own = {f"head.{name}": p for name, p in self.head.named_parameters() if p.requires_grad}
        return self.backbone.trained() | own

    def weights_fingerprint(self) -> str:
        """SHA-256 of the weights alone, backbone and head: what a stage's parent is recognised by."""
        return weights_fingerprint(self.backbone, self.head)

    def forward(self, tokens: Tokens) -> Tensor:
        """Pooled states, through the head if there is one, not normalised: (B, dimensions) float32."""
        pooler = POOLERS[self.pooling]
        if self.layer is None:
            hidden = self.backbone.hidden(tokens, self.causal, pooler.needed(tokens.pool, tokens.lengths))
        else:
            hidden = self.backbone.layers(tokens, self.causal)[self.layer]
        vectors = pooler.function(hidden, tokens.pool, tokens.lengths)
        if self.head is None:
            return vectors
        with torch.autocast(self.device.type, enabled=False):  # one product a text: float32 costs nothing here
            return self.head(vectors)

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        instruction: str | Iterable[str] | None = None,
        prompt_name: str | None = None,
        batch_tokens: int | None = None,
        truncate_dim: int | None = None,
        dtype: OutputType = "float32",
        precision: Precision = "float32",
        ranges: np.ndarray | None = None,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Vectors (B, D) of texts, in their order; (D,) of a single text. Unit length if `normalize`.

        texts         a list, a column, a generator: anything that gives strings one after another
        instruction   what the texts are queries for, one or one per text; without one they are documents
        prompt_name   `query`, `document`, or the name of an instruction of the recipe
        batch_tokens  tokens per forward pass: 2048 on a CPU, where caches count, 65536 on a GPU
        truncate_dim  keep the first so many dimensions (Matryoshka) and normalise again
        precision     codes of these vectors instead, for an index: see `llm2enc.encoding.quantization`
        ranges        (2, D), which int8 and uint8 need, of vectors cut like these: `quantization.calibrate`
        """
        single = isinstance(texts, str)
        if single and not isinstance(instruction, str | None):
            raise InputError("one text takes one instruction, got a list")
        texts = [texts] if single else texts
        blocks = self.encode_blocks(
            texts, instruction=instruction, prompt_name=prompt_name, batch_tokens=batch_tokens,
            truncate_dim=truncate_dim, dtype=dtype, precision=precision, ranges=ranges, show_progress=show_progress,
        )  # fmt: skip
        entries, kind = layout(truncate_dim or self.dimensions, precision)
        vectors = np.empty((length_hint(texts), entries), dtype=dtype if precision == "float32" else kind)
        end = 0
        for block in blocks:
            start, end = end, end + len(block)
            if end > len(vectors):  # the size was not known: grown in place, so that nothing exists twice
                vectors.resize((end, vectors.shape[1]), refcheck=False)
            vectors[start:end] = block
            del block  # or it would live beside the next one
        vectors.resize((end, vectors.shape[1]), refcheck=False)
        return vectors[0] if single else vectors

    def encode_blocks(
        self,
        texts: Iterable[str],
        *,
        instruction: str | Iterable[str] | None = None,
        prompt_name: str | None = None,
        batch_tokens: int | None = None,
        truncate_dim: int | None = None,
        dtype: OutputType = "float32",
        precision: Precision = "float32",
        ranges: np.ndarray | None = None,
        show_progress: bool = False,
        first: int = 0,
    ) -> Iterator[np.ndarray]:
        """The rows of `encode` in blocks (b, D), so that neither all texts nor all vectors need to fit into memory.

        first  number of the first text, for messages: the texts are a part of more
        """
        if isinstance(texts, str):
            raise InputError("encode_blocks takes many texts, got one str; put it into a list")
        if dtype not in get_args(OutputType):
            raise InputError(f"dtype is {dtype!r}; vectors come as one of {', '.join(get_args(OutputType))}")
        role, instruction = self._role(instruction, prompt_name)
        width = self.dimensions
        if truncate_dim is not None and not 0 < truncate_dim <= width:
            raise InputError(f"truncate_dim is {truncate_dim}; this encoder's vectors have {width} dimensions")
        check(precision, ranges, truncate_dim or width)
        if precision != "float32" and dtype != "float32":
            raise InputError(
                f"dtype is {dtype} and precision {precision}; give one of them, codes have a type of their own"
            )
        pieces = _pieces(_pairs(texts, instruction), first)
        total = len(texts) if isinstance(texts, Sized) else None
        batch_tokens = batch_tokens or (2048 if self.device.type == "cpu" else 65536)
        blocks = self._blocks(
            pieces, role, batch_tokens, truncate_dim, np.dtype(dtype), bar("encode", total, show_progress)
        )
        return blocks if precision == "float32" else map(lambda block: quantize(block, precision, ranges), blocks)

    def windows(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> list[range]:
        """The rows of each block of `encode_blocks`: what can be encoded alone without changing a bit.

        Several processes share the tokenizing, so all of them must call it.
        """
        role, asked = self._role(instruction, prompt_name)
        pieces = [range(first, first + len(piece)) for first, piece in _pieces(_pairs(texts, asked))]
        own = [pieces[number] for number in distributed.share(len(pieces))]
        packed = (
            self.input_format.pack(texts[piece.start : piece.stop], asked, role, first=piece.start) for piece in own
        )
        tokens = torch.tensor([[len(part.ids)] for part in packed], dtype=torch.int64).view(-1, 1)
        shares = [len(distributed.share(len(pieces), process)) for process in range(distributed.world_size())]
        every = distributed.gather(tokens.to(self.device), shares).flatten().tolist()
        found, start, total = [], 0, 0
        for piece, count in zip(pieces, every, strict=True):
            total += count
            if _is_full(piece.stop - start, total) or piece is pieces[-1]:
                found.append(range(start, piece.stop))
                start, total = piece.stop, 0
        return found

    def variant(
        self,
        *,
        causal: bool | None = None,
        pooling: Pooling | None = None,
        layer: int | None = None,
        input: InputSpec | None = None,
    ) -> "Encoder":
        """The same weights read otherwise, which is what comparisons are made of; what is None stays as it is.

        layer  0 for the embeddings, k for what layer k hands on
        """
        if layer is not None and not 0 <= layer <= self.backbone.depth:
            raise InputError(f"layer is {layer}; this model has layers 0 (the embeddings) to {self.backbone.depth}")
        if input is not None:
            positions.check(self.backbone.config, {"input.max_tokens": input.max_tokens})
        other = copy.copy(self)
        other.causal = self.causal if causal is None else causal
        other.pooling = pooling or self.pooling
        other.layer = self.layer if layer is None else layer
        other.input_format = InputFormat(input, self.input_format.tokenizer) if input else self.input_format
        return other

    def fingerprint(self) -> str:
        """SHA-256 of all that a vector depends on: weights, direction, layer, input format, tokenizer, pooling, head."""
        causal = not self.backbone.bidirectional if self.causal is None else self.causal
        dtype = str(next(self.parameters()).dtype)
        facts = [self.backbone.fingerprint(adapter=True), self.backbone.settings(), dtype, causal]
        facts += [self.layer, self.pooling, self.normalize, self.input_format.identity()]
        facts += [] if self.head is None else [self.weights_fingerprint()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def reading(self, *, instruction: str | None = None, prompt_name: str | None = None) -> str:
        """How a text is read that is encoded with these keywords; equal for two calls that give equal vectors."""
        role, asked = self._role(instruction, prompt_name)
        parts = self.input_format.template(asked, role)
        reads = any(part.slot == "instruction" for part in parts)
        return json.dumps([[part.model_dump() for part in parts], asked if reads else ""])

    def count_tokens(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> int:
        """Tokens that the model reads to encode the texts."""
        role, asked = self._role(instruction, prompt_name)
        return int(self.input_format.pack(texts, asked, role).lengths.sum())

    def _blocks(
        self,
        pieces: Iterator[tuple[int, list[tuple[str, str]]]],
        role: Role,
        batch_tokens: int,
        truncate_dim: int | None,
        dtype: np.dtype,
        progress: AbstractContextManager[Callable[..., None]],
    ) -> Iterator[np.ndarray]:
        def pack(first: int, piece: list[tuple[str, str]]) -> Tokens:
            texts, instructions = zip(*piece, strict=True)
            return self.input_format.pack(texts, instructions, role, first=first).stored()

        worker = ThreadPoolExecutor(1, thread_name_prefix="llm2enc-tokenize")
        try:
            with progress as advance:
                windows = _windows(_ahead(worker, pack, pieces))
                # map, not a loop, whose variables would keep the last window and block while the next are made
                yield from map(lambda window: self._block(window, batch_tokens, truncate_dim, dtype, advance), windows)
        finally:
            worker.shutdown(cancel_futures=True)

    def _block(
        self,
        window: Tokens,
        batch_tokens: int,
        truncate_dim: int | None,
        dtype: np.dtype,
        advance: Callable[[int], None],
    ) -> np.ndarray:
        """Vectors (B, D) of a window; equal inputs are computed once."""
        block = np.empty((len(window), truncate_dim or self.dimensions), dtype=dtype)
        original, order = _distinct(window)
        with evaluating(self):
            for chosen in mini_batches(window.lengths[order], batch_tokens):
                rows = order[chosen]
                pooled = self(window.select(rows).to(self.device))
                block[rows] = self._finish(pooled, truncate_dim).cpu().numpy()
                advance(len(rows))
        copies = np.flatnonzero(original != np.arange(len(window)))
        block[copies] = block[original[copies]]
        advance(len(copies))
        return block

    def _finish(self, vectors: Tensor, truncate_dim: int | None) -> Tensor:
        vectors = vectors[:, :truncate_dim]
        return nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors

    def _role(self, instruction, prompt_name: str | None) -> tuple[Role, str | Iterable[str]]:
        if prompt_name is None:
            return ("document", "") if instruction is None else ("query", instruction)
        if instruction is not None:
            raise InputError("give either `instruction` or `prompt_name`, not both")
        prompts = self.input_format.spec.prompts
        if prompt_name == "document":
            return "document", ""
        if prompt_name != "query" and prompt_name not in prompts:
            raise InputError(f"no prompt named {prompt_name!r}; this encoder has {['query', 'document', *prompts]}")
        return "query", prompts.get(prompt_name, "")


def _pairs(texts: Iterable[str], instruction: str | Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each text with its instruction. ValueError, at once where both sizes are known, if one side ends early."""
    if isinstance(instruction, str):
        return ((text, instruction) for text in _items(texts))
    if isinstance(texts, Sized) and isinstance(instruction, Sized) and len(texts) != len(instruction):
        raise InputError(f"{len(texts)} texts but {len(instruction)} instructions; give one, or one per text")
    return _in_step(_items(texts), _items(instruction))


def _in_step(texts: Iterator[str], instructions: Iterator[str]) -> Iterator[tuple[str, str]]:
    end = object()
    for number, (text, instruction) in enumerate(zip_longest(texts, instructions, fillvalue=end)):
        if text is end or instruction is end:
            short, long = ("texts", "instructions") if text is end else ("instructions", "texts")
            raise InputError(f"the {short} end after {number}, but there are more {long}; give one per text")
        yield text, instruction


def _items(rows: Iterable[str]) -> Iterator[str]:
    """The rows one by one, read by slices where possible: a column on disk takes 100 times as long row by row."""
    if not isinstance(rows, Sequence):
        yield from rows
        return
    for start in range(0, len(rows), PIECE):
        yield from rows[start : start + PIECE]


def _pieces(pairs: Iterator[tuple[str, str]], first: int = 0) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Neighbours to tokenize together, with the number of the first."""
    piece, characters = [], 0
    for pair in pairs:
        piece.append(pair)
        characters += len(pair[0]) if isinstance(pair[0], str) else 0  # what is no str is refused where it is packed
        if len(piece) >= min(PIECE, WINDOW) or characters >= PIECE_CHARACTERS:
            yield first, piece
            first, piece, characters = first + len(piece), [], 0
    if piece:
        yield first, piece


def _ahead(worker: ThreadPoolExecutor, pack: Callable[..., Tokens], pieces: Iterable[tuple]) -> Iterator[Tokens]:
    """`pack(*piece)` of every piece, made by `worker` while the model works: the tokenizer needs no Python lock.

    `pieces` itself is read here, in the caller's thread, because a database cursor may refuse any other.
    """
    waiting: deque[Future[Tokens]] = deque()
    for piece in pieces:
        waiting.append(worker.submit(pack, *piece))
        if len(waiting) > WINDOW // PIECE:  # the window that comes next
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _windows(packed: Iterable[Tokens]) -> Iterator[Tokens]:
    """Pieces joined until there are WINDOW texts or WINDOW_TOKENS tokens."""
    parts: list[Tokens] = []
    for part in packed:
        parts.append(part)
        if _is_full(sum(map(len, parts)), sum(len(part.ids) for part in parts)):
            joined, parts = concatenate(parts), []
            yield joined
            del joined  # or it would live beside the next one
    if parts:
        yield concatenate(parts)


def _is_full(texts: int, tokens: int) -> bool:
    """Whether a window of so many ends here."""
    return texts >= WINDOW or tokens >= WINDOW_TOKENS


def _distinct(tokens: Tokens) -> tuple[np.ndarray, Tensor]:
    """For each text the first row with its tokens (B,), and those first rows in an order of their own (U,).

    The order depends on the texts alone, so that shuffled input gives bit-equal vectors.
    """
    ids, pool = tokens.ids.numpy(), tokens.pool.numpy()
    first: dict[bytes, int] = {}
    original = np.empty(len(tokens), dtype=np.int64)
    end = 0
    for row, length in enumerate(tokens.lengths.tolist()):
        start, end = end, end + length
        # 128 bits: of two inputs with one key the second would get the vector of the first.
        digest = hashlib.blake2b(ids[start:end].tobytes(), digest_size=16)
        digest.update(pool[start:end].tobytes())
        original[row] = first.setdefault(digest.digest(), row)
    return original, torch.tensor([first[key] for key in sorted(first)], dtype=torch.int64)

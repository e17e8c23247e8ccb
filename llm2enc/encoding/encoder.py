"""The encoder: backbone + input format + pooling + head. Texts in, vectors out.

encoder = Encoder.load("runs/pocket/model")
encoder.encode(["a text"])                                     (1, D) float32
encoder.encode(["a question"], instruction="Retrieve ...")     the query template
encoder.encode(["a question"], prompt_name="query")            an instruction by name
"""

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from operator import length_hint
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from llm2enc import distributed
from llm2enc.artifact import HistoryRow, MergeRecord, Parts, read, write
from llm2enc.encoding import pipeline
from llm2enc.encoding.options import DEFAULT, EncodeOptions
from llm2enc.encoding.quantization import layout, quantize
from llm2enc.errors import InputError
from llm2enc.model import (
    POOLERS,
    Backbone,
    Head,
    evaluating,
    fresh_head,
    limits,
    load_backbone,
    load_tokenizer,
    vectors_of,
    weights_fingerprint,
)
from llm2enc.recipe import HeadSpec, InputSpec, ModelSpec, Pooling, Recipe, Role
from llm2enc.terminal import bar
from llm2enc.text import Example, InputFormat, Tokens, micro_batches

LoadType = Literal["auto", "float32", "bfloat16", "float16"]


class Encoder(nn.Module):
    """A text encoder. `forward` is what trains; `encode` is what serves."""

    def __init__(
        self,
        backbone: Backbone,
        input_format: InputFormat,
        pooling: Pooling,
        normalize: bool = True,
        head: Head | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.input_format = input_format
        self.pooling: Pooling = pooling
        self.normalize = normalize
        # What the loss of a stage trains besides, by name; it is thrown away with the stage.
        self.auxiliary = nn.ModuleDict()
        # To compare variants of one model: another direction than the backbone's, another layer than the last.
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
        raises  CannotConvert if its attention stays causal, ValueError if `input` asks for more tokens than it takes
        """
        spec = ModelSpec.named(model) if isinstance(model, str) else model
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
        fresh = None if head is None else fresh_head(backbone.width, head, seed).to(backbone.device)
        return Encoder(backbone, input_format, pooling, normalize, fresh).eval()

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
        history: Sequence[HistoryRow | dict[str, Any]] = (),
        merge: MergeRecord | None = None,
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
        parts = Parts(self.backbone, self.input_format, self.pooling, self.normalize, self.kept_head)
        write(
            parts, Path(folder), lambda written, texts: Encoder._of(written).encode(texts),
            recipe=recipe, history=history, merge=merge, card=card, dtype=dtype,
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

    @property
    def kept_head(self) -> Head | None:
        """The head that vectors go through outside of training; None for one that is there for training only."""
        return None if self.head is None or self.head.spec.training_only else self.head

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that get a gradient, by name: the backbone's own, the head's under `head.`, and what the loss trains
        besides under `auxiliary.`."""
        parts = {"head": self.head or nn.Module(), "auxiliary": self.auxiliary}
        own = {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}
        return self.backbone.trained() | {name: p for name, p in own.items() if p.requires_grad}

    def weights_fingerprint(self) -> str:
        """SHA-256 of the weights alone, backbone and head: what a stage's parent is recognised by."""
        return weights_fingerprint(self.backbone, self.head)

    def forward(self, tokens: Tokens) -> Tensor:
        """Pooled states, through the head if there is one, not normalised: (B, dimensions) float32."""
        if self.layer is None:
            needed = POOLERS[self.pooling].needed(tokens.pool, tokens.lengths)
            hidden = self.backbone.hidden(tokens, self.causal, needed)
        else:
            hidden = self.backbone.layers(tokens, self.causal)[self.layer]
        return self.pool(hidden, tokens)

    def layer_vectors(self, tokens: Tokens, layers: Sequence[int]) -> Tensor:
        """Vectors (B, K, dimensions) of K layers, 1 to the model's depth, in one pass: those of `forward` if the model were
        cut to each of them (`model.layers`)."""
        needed = POOLERS[self.pooling].needed(tokens.pool, tokens.lengths)
        states = self.backbone.cut_states(tokens, layers, self.causal, needed)
        return torch.stack([self.pool(hidden, tokens) for hidden in states], dim=1)

    def pool(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """Vectors (B, dimensions) float32 of the states (T, D) that `forward` would pool, not normalised."""
        return vectors_of(hidden, tokens, self.pooling, self.head if self.training else self.kept_head)

    def encode(self, texts: str | Iterable[str], **keywords: Any) -> np.ndarray:
        """Vectors (B, D) of texts, in their order; (D,) of a single text. Unit length if `normalize`.

        texts     a list, a column, a generator: anything that gives strings one after another
        keywords  the fields of `EncodeOptions`: instruction, prompt_name, batch_tokens, truncate_dim, dtype, precision, ...
        raises    ValueError for options or texts that cannot be encoded
        """
        options = EncodeOptions(**keywords)
        single = isinstance(texts, str)
        if single and not isinstance(options.instruction, str | None):
            raise InputError("one text takes one instruction, got a list")
        texts = [texts] if single else texts
        blocks = self.encode_blocks(texts, options)
        entries, kind = layout(options.truncate_dim or self.dimensions, options.precision)
        vectors = np.empty((length_hint(texts), entries), dtype=options.dtype if options.is_float else kind)
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
        self, texts: Iterable[str], options: EncodeOptions = DEFAULT, first: int = 0
    ) -> Iterator[np.ndarray]:
        """The rows of `encode` in blocks (b, D), so that neither all texts nor all vectors need to fit into memory.

        first  number of the first text, for messages: the texts are a part of more
        """
        if isinstance(texts, str):
            raise InputError("encode_blocks takes many texts, got one str; put it into a list")
        role, instruction = self._role(options)
        options.check(self.dimensions)
        chunks = pipeline.chunks(pipeline.pairs(texts, instruction), first)
        total = len(texts) if isinstance(texts, Sized) else None
        blocks = self._blocks(chunks, role, options, bar("encode", total, options.show_progress))
        if options.is_float:
            return blocks
        return map(lambda block: quantize(block, options.precision, options.ranges), blocks)

    def block_rows(self, texts: Sequence[str], options: EncodeOptions = DEFAULT) -> list[range]:
        """The rows of each block of `encode_blocks`: what can be encoded alone without changing a bit.

        Several processes share the tokenizing, so all of them must call it.
        """
        role, instruction = self._role(options)
        chunks = [
            range(first, first + len(chunk)) for first, chunk in pipeline.chunks(pipeline.pairs(texts, instruction))
        ]
        packed = (
            self._packed(texts[chunk.start : chunk.stop], instruction, role, options.examples, chunk.start)
            for chunk in (chunks[number] for number in distributed.rank_slice(len(chunks)))
        )
        tokens = torch.tensor([[len(part.ids)] for part in packed], dtype=torch.int64).view(-1, 1)
        shares = [len(distributed.rank_slice(len(chunks), process)) for process in range(distributed.world_size())]
        every = distributed.gather(tokens.to(self.device), shares).flatten().tolist()
        found, start, total = [], 0, 0
        for chunk, count in zip(chunks, every, strict=True):
            total += count
            if pipeline.is_full(chunk.stop - start, total) or chunk is chunks[-1]:
                found.append(range(start, chunk.stop))
                start, total = chunk.stop, 0
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
            limits.check_lengths(self.backbone.config, {"input.max_tokens": input.max_tokens})
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
        facts += [] if self.kept_head is None else [self.weights_fingerprint()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def cache_key(
        self,
        *,
        instruction: str | None = None,
        prompt_name: str | None = None,
        examples: Sequence[tuple[str, str]] = (),
    ) -> str:
        """What a text becomes with these keywords, template and instruction; equal for two calls that give equal vectors."""
        role, asked = self._role(EncodeOptions(instruction, prompt_name))
        parts = self.input_format.template(asked, role)
        reads = any(part.slot == "instruction" for part in parts)
        shown = [list(examples)] if examples else []
        return json.dumps([[part.model_dump() for part in parts], asked if reads else "", *shown])

    def count_tokens(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> int:
        """Tokens that the model reads to encode the texts."""
        return int(self.pack(texts, instruction=instruction, prompt_name=prompt_name).lengths.sum())

    def pack(
        self,
        texts: Sequence[str],
        *,
        instruction: str | None = None,
        prompt_name: str | None = None,
        examples: Sequence[tuple[str, str]] = (),
    ) -> Tokens:
        """The tokens that the model reads to encode the texts."""
        role, asked = self._role(EncodeOptions(instruction, prompt_name))
        return self._packed(texts, asked, role, examples)

    def _packed(
        self,
        texts: Sequence[str],
        instruction: str | Sequence[str],
        role: Role,
        examples: Sequence[tuple[str, str]],
        first: int = 0,
    ) -> Tokens:
        asked = [instruction] * len(texts) if isinstance(instruction, str) else instruction
        shown = [[Example(own, *pair) for pair in examples] for own in asked] if examples else ()
        return self.input_format.pack(texts, instruction, role, first=first, examples=shown)

    def _blocks(
        self,
        chunks: Iterator[pipeline.Chunk],
        role: Role,
        options: EncodeOptions,
        progress: AbstractContextManager[Callable[..., None]],
    ) -> Iterator[np.ndarray]:
        def pack(first: int, chunk: list[tuple[str, str]]) -> Tokens:
            texts, instructions = zip(*chunk, strict=True)
            return self._packed(texts, instructions, role, options.examples, first).stored()

        worker = ThreadPoolExecutor(1, thread_name_prefix="llm2enc-tokenize")
        try:
            with progress as advance:
                buffers = pipeline.sort_buffers(pipeline.packed_ahead(worker, pack, chunks))
                # map, not a loop, whose variables would keep the last buffer and block while the next are made
                yield from map(lambda buffer: self._block(buffer, options, advance), buffers)
        finally:
            worker.shutdown(cancel_futures=True)

    def _block(self, buffer: Tokens, options: EncodeOptions, advance: Callable[[int], None]) -> np.ndarray:
        """Vectors (B, D) of a sort buffer; equal inputs are computed once."""
        block = np.empty((len(buffer), options.truncate_dim or self.dimensions), dtype=options.dtype)
        batch_tokens = options.batch_tokens or (2048 if self.device.type == "cpu" else 65536)
        original, order = pipeline.distinct(buffer)
        with evaluating(self):
            for chosen in micro_batches(buffer.lengths[order], batch_tokens):
                rows = order[chosen]
                pooled = self(buffer.select(rows).to(self.device))[:, : options.truncate_dim]
                vectors = nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled
                block[rows] = vectors.cpu().numpy()
                advance(len(rows))
        copies = np.flatnonzero(original != np.arange(len(buffer)))
        block[copies] = block[original[copies]]
        advance(len(copies))
        return block

    def _role(self, options: EncodeOptions) -> tuple[Role, str | Iterable[str]]:
        """Which template reads the texts, and with which instruction."""
        name, prompts = options.prompt_name, self.input_format.spec.prompts
        if name is None:
            return ("document", "") if options.instruction is None else ("query", options.instruction)
        if name == "document":
            return "document", ""
        if name != "query" and name not in prompts:
            raise InputError(f"no prompt named {name!r}; this encoder has {['query', 'document', *prompts]}")
        return "query", prompts.get(name, "")

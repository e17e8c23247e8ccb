"""An encoder as one module with fixed inputs and outputs, which ONNX and OpenVINO files are traced from.

    input_ids            (B, S) int64
    attention_mask       (B, S) int64, 1 for tokens and 0 for padding, on whichever side the padding stands
    last_hidden_state    (B, S, D) float32
    sentence_embedding   (B, D)    float32, pooled over the mask, through the head if there is one, of unit length if the
                                   encoder normalises

The decoder is opened from the directory as other programs open it, in the family's own eager attention: our packed
attention is no graph, and in SDPA a token of padding that sees nothing (under a sliding window) becomes NaN and spoils
the rows behind it, where eager masks with the smallest finite number.

`check` runs a file in its own runtime against `Encoder.encode`, before the file takes its place. Legend: B texts,
S tokens of the longest, D width.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm2enc.artifact import Metadata, asked, head_files
from llm2enc.artifact import config as decoder_config
from llm2enc.encoding import Encoder
from llm2enc.errors import CannotExport, InputError, require
from llm2enc.model import POOLERS, Head, load_model
from llm2enc.recipe import Pooling
from llm2enc.storage import add_path_to_oserror, sync, temp_directory

INPUTS = ("input_ids", "attention_mask")
OUTPUTS = ("last_hidden_state", "sentence_embedding")
FLOORS = {"float32": 0.9999, "float16": 0.999}
"""Storage type of the weights -> the least similarity to `Encoder.encode` that passes."""

# Padded batches of the check hold texts up to this length: memory grows with its square.
_PADDED_TOKENS = 256
# A state that moves by less of its largest entry has not moved: float32 rounding is a hundred times smaller.
_MOVED = 1e-5

Run = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""input_ids and attention_mask (B, S) int64 -> last_hidden_state (B, S, D) and sentence_embedding (B, D)."""


class Graph(nn.Module):
    """Decoder, pooling, head and normalisation."""

    def __init__(self, decoder: nn.Module, pooling: Pooling, normalize: bool, head: Head | None = None):
        super().__init__()
        self.decoder: Any = decoder
        self.head = head
        self.pooling: Pooling = pooling
        self.normalize = normalize
        self.positions = "position_ids" in inspect.signature(decoder.forward).parameters

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """See the module's docstring."""
        count = attention_mask.cumsum(1)  # (B, S) tokens so far
        # Counted from the first token, so that padding on the left moves no position.
        positions = {"position_ids": (count - 1).clamp(min=0)} if self.positions else {}
        output = self.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **positions)
        hidden = output.last_hidden_state
        weights = POOLERS[self.pooling].weights(attention_mask, count).to(hidden.dtype)
        states = hidden if self.head is None else self.head.states(hidden)
        vectors = (weights[:, None] @ states)[:, 0] / weights.sum(1, keepdim=True).clamp(min=1)
        vectors = vectors if self.head is None else self.head(vectors)
        return hidden, nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors


def open_graph(folder: Path, metadata: Metadata) -> Graph:
    """The graph of a directory, in float32 and evaluation mode, on the CPU."""
    from transformers import AutoModel

    decoder = load_model(
        AutoModel, str(folder), decoder_config.read(folder), trust_remote_code=False, dtype=torch.float32,
        attn_implementation="eager",
    )  # fmt: skip
    head = head_files.read(folder, decoder.config.hidden_size, metadata.head) if metadata.head else None
    return Graph(decoder, metadata.pooling, metadata.normalize, head).eval()


def example(graph: Graph) -> tuple[Tensor, Tensor]:
    """Inputs (2, 7) to trace with: one text has padding, so that no branch for full rows is what gets traced."""
    ids = torch.arange(14).view(2, 7) % graph.decoder.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids, mask


# ------------------------------------------------------------------------------------------------------------ refusals


def unsupported_reason(encoder: Encoder, metadata: Metadata) -> str:
    """Why no graph whose only inputs are ids and mask gives this encoder's vectors; empty if one does."""
    if not metadata.native:
        return (
            f"a graph reads what the exported tokenizer gives, as sentence-transformers does, and {metadata.reason} "
            "Until then only llm2enc gives this encoder's vectors"
        )
    unpooled = _unpooled_prompts(encoder, metadata)
    if unpooled:
        return (
            f"tokens of the prompt {', '.join(map(repr, unpooled))} are read but not pooled (include_prompt is false in "
            "1_Pooling/config.json), and an attention mask, a graph's only word on tokens, cannot say that. Set "
            "`pool: true` on every part of both templates in the recipe and train again, or serve the directory with "
            "sentence-transformers, which knows the rule"
        )
    return ""


def _unpooled_prompts(encoder: Encoder, metadata: Metadata) -> list[str]:
    """Prompts whose vectors pool other tokens than the mask shows."""
    prompts = asked(encoder.input_format)
    found = []
    for name in dict.fromkeys(["document", *metadata.prompts]):
        tokens = encoder.input_format.pack(["The river runs through the old town"], *prompts[name])
        if not POOLERS[encoder.pooling].same_in_others(tokens.pool):
            found.append(name)
    return found


def check_request(
    encoder: Encoder, metadata: Metadata, dtypes: tuple[str, ...], packages: tuple[str, ...], extra: str
) -> None:
    """CannotExport for an encoder that no graph holds; ValueError for a storage type that none has, or missing packages."""
    reason = unsupported_reason(encoder, metadata)
    if reason:
        raise CannotExport(reason)
    if not dtypes or any(dtype not in FLOORS for dtype in dtypes):
        raise InputError(f"dtypes is {dtypes!r}; weights of a graph are stored as one or both of {', '.join(FLOORS)}")
    require(*packages, extra=extra)


def half(weight: np.ndarray, name: str) -> np.ndarray:
    """The weight in float16. CannotExport if it does not fit."""
    largest = float(np.abs(weight).max())
    if largest > float(np.finfo(np.float16).max):
        raise CannotExport(
            f"the weight {name} has an entry of {largest:.3g}, and float16 ends at 65504; ask for float32"
        )
    return weight.astype(np.float16)


# --------------------------------------------------------------------------------------------------------------- check


@dataclass(frozen=True)
class Agreement:
    """How near the vectors of a file are to those of the encoder, over every text, alone and in padded batches."""

    cosine: float
    """The lowest similarity 2ab / (aa + bb): the cosine, or less if the lengths differ."""
    difference: float
    """The largest difference of an entry, as a share of the vector's length."""


@dataclass(frozen=True)
class Expected:
    """What a file must give: token ids of texts of many lengths, and the encoder's vectors of them."""

    rows: list[np.ndarray]  # (L,) int64 each
    vectors: np.ndarray  # (N, D) float32
    padding: int  # the id that pads
    bidirectional: bool


def expected(encoder: Encoder, folder: Path, metadata: Metadata) -> Expected:
    """Ids and vectors of the golden texts and of 1 to 256 words, as documents, and of some under every prompt.

    Texts reach beyond a sliding window, where the encoder's limit does. An encoder of 16 bits is opened again in
    float32, because its own rounding would hide what a graph does wrong.
    """

    if next(encoder.parameters()).dtype != torch.float32:
        encoder = Encoder.load(folder, "float32")
    input_format, config = encoder.input_format, encoder.backbone.config
    longest = min(encoder.max_tokens, max(_PADDED_TOKENS, (getattr(config, "sliding_window", None) or 0) + 64))
    texts, prompts = _texts(metadata.golden.texts, longest), asked(input_format)
    rows, vectors = [], []
    for name in dict.fromkeys(["document", *metadata.prompts]):
        chosen = texts if name == "document" else texts[:4]
        tokens = input_format.pack(chosen, *prompts[name])
        rows += [part.numpy().astype(np.int64) for part in tokens.ids.split(tokens.lengths.tolist())]
        vectors.append(encoder.encode(chosen, prompt_name=name))
    padding: Any = input_format.tokenizer.pad_token_id
    return Expected(rows, np.concatenate(vectors), padding or 0, metadata.attention == "bidirectional")


def check(run: Run, wanted: Expected, dtype: str, name: str) -> Agreement:
    """How well a file agrees with the encoder. CannotExport with the numbers if it does not.

    run    the file in its runtime
    dtype  what its weights are stored in: sets the floor
    name   of the file, for the message
    """
    cosines, differences = [], []

    def compare(ours: np.ndarray, theirs: np.ndarray) -> None:
        similarity, difference = _similarity(ours.astype(np.float64), theirs.astype(np.float64))
        cosines.append(similarity)
        differences.append(difference)

    states = {}
    for number, row in enumerate(wanted.rows):
        hidden, vectors = run(row[None], np.ones((1, len(row)), dtype=np.int64))
        compare(vectors, wanted.vectors[number][None])
        if len(row) <= _PADDED_TOKENS:
            states[number] = hidden[0]
    for side in ("right", "left"):
        ids, mask = padded([wanted.rows[number] for number in states], side, wanted.padding)
        hidden, vectors = run(ids, mask)
        compare(vectors, wanted.vectors[list(states)])
        compare(hidden[mask == 1], np.concatenate(list(states.values())))
    agreement = Agreement(min(cosines, key=_nan_lowest), float(np.max(differences)))
    if not agreement.cosine >= FLOORS[dtype]:
        raise CannotExport(
            f"{name} does not give this encoder's vectors: the lowest cosine over {len(wanted.rows)} texts, alone and "
            f"padded on either side, is {agreement.cosine:.6f} where {FLOORS[dtype]} is asked for, and the largest "
            f"difference {agreement.difference:.1e} of a vector's length. The file was not kept; "
            + ("ask for dtype float32" if dtype == "float16" else "serve the directory with sentence-transformers")
        )
    _check_direction(run, wanted, name)
    return agreement


def padded(rows: list[np.ndarray], side: str, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask (B, S + 3) of rows (L,), padded beyond the longest."""
    width = max(map(len, rows)) + 3
    ids, mask = np.full((len(rows), width), padding, dtype=np.int64), np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[number, place], mask[number, place] = row, 1
    return ids, mask


def _check_direction(run: Run, wanted: Expected, name: str) -> None:
    """CannotExport unless the first token's state moves with the last token exactly in a bidirectional model.

    Three tokens, so that every sliding window reaches from end to end.
    """
    row = next(row[-3:] for row in wanted.rows if len(set(row[-3:].tolist())) > 1 and len(row) >= 3)
    other = row.copy()
    other[-1] = next(token for token in row if token != row[-1])
    mask = np.ones((1, len(row)), dtype=np.int64)
    one, two = (run(ids[None], mask)[0][0, 0].astype(np.float64) for ids in (row, other))
    moved = float(np.abs(one - two).max() / np.abs(one).max())
    if (moved > _MOVED) != wanted.bidirectional:
        raise CannotExport(
            f"{name} is {'causal' if wanted.bidirectional else 'bidirectional'} and the encoder is not: when the last of "
            f"three tokens changes, the first one's state moves by {moved:.1e} of its largest entry. The file was not kept"
        )


def _texts(golden: list[str], longest: int) -> list[str]:
    """The golden texts, and texts of 1, 2, 3, 5, 9, 17 ... words up to `longest`."""
    words = " ".join(golden).split()
    counts = [1, *(2**power + 1 for power in range(1, longest.bit_length()) if 2**power + 1 < longest), longest]
    return [*golden, *(" ".join(words[place % len(words)] for place in range(count)) for count in [2, *counts])]


def _similarity(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Of rows (N, D): the lowest 2ab / (aa + bb), and the largest difference of an entry per length of b."""
    squares = (ours**2).sum(1) + (theirs**2).sum(1)
    similarity = 2 * (ours * theirs).sum(1) / squares
    difference = np.abs(ours - theirs).max(1) / np.sqrt((theirs**2).sum(1))
    return float(similarity.min()), float(difference.max())


def _nan_lowest(value: float) -> float:
    return -np.inf if np.isnan(value) else value


# --------------------------------------------------------------------------------------------------------------- files


@contextmanager
def into(folder: Path) -> Iterator[Path]:
    """An empty directory beside `folder`, whose files move into `folder` in the end, or vanish if anything goes wrong.

    Files of other names in `folder` stay: one format may have several.
    """
    with temp_directory(folder) as partial, add_path_to_oserror(folder):
        yield partial
        sync(partial)
        folder.mkdir(exist_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.suffix in (".onnx", ".xml")):
            path.replace(folder / path.name)  # weights before the graph that names them

"""From text to tokens: the one path that training, encoding and export share.

A batch is a packed row, never a padded rectangle:

    texts    "a b"        "c d e"
    ids      <s> a b      <s> c d e       (T,)  T = 7
    lengths  3            4               (B,)  B = 2
    pool     0   1 1      0   1 1 1       (T,)  which tokens enter the vector

`InputFormat` turns texts into `Tokens` by the recipe's templates. Each string goes to the tokenizer once; which of its
tokens are pooled follows from character offsets, so a token that merges across the border of a template and a text is
found, not guessed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llm2enc.recipe import InputSpec, Part, Role

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokens:
    """B texts in one row of T tokens."""

    ids: Tensor  # (T,) int64
    lengths: Tensor  # (B,) int64, on the CPU: kernels are chosen by length
    positions: Tensor  # (T,) int64, 0 at the start of every text
    pool: Tensor  # (T,) bool, at least one True per text
    truncated: Tensor  # (B,) bool, on the CPU: the text was cut to fit

    def __len__(self) -> int:
        return len(self.lengths)

    @staticmethod
    def from_lists(ids: Sequence[Sequence[int]], pool: Sequence[Sequence[bool]], truncated: Sequence[bool]) -> "Tokens":
        """Packed tokens of B id lists and their pool flags."""
        lengths = torch.tensor([len(row) for row in ids], dtype=torch.int64)
        return Tokens(
            ids=_concatenate(ids, np.int64),
            lengths=lengths,
            positions=_positions(lengths),
            pool=_concatenate(pool, np.bool_),
            truncated=torch.tensor(list(truncated), dtype=torch.bool),
        )

    @staticmethod
    def from_blocks(blocks: Tensor) -> "Tokens":
        """Packed tokens of (B, L) ids in which every token is pooled: the sequences of clm and mntp."""
        lengths = torch.full((len(blocks),), blocks.size(1), dtype=torch.int64)
        return Tokens(
            ids=blocks.reshape(-1).to(torch.int64),
            lengths=lengths,
            positions=_positions(lengths),
            pool=torch.ones(blocks.numel(), dtype=torch.bool),
            truncated=torch.zeros(len(blocks), dtype=torch.bool),
        )

    def select(self, rows: Tensor) -> "Tokens":
        """The texts `rows` (R,), in that order."""
        starts = torch.cumsum(self.lengths, 0) - self.lengths
        lengths = self.lengths[rows]
        index = _positions(lengths) + torch.repeat_interleave(starts[rows], lengths)  # (T',)
        index = index.to(self.ids.device)
        return Tokens(self.ids[index], lengths, self.positions[index], self.pool[index], self.truncated[rows])

    def to(self, device: torch.device | str) -> "Tokens":
        """The same tokens with ids, positions and pool on `device`; lengths stay on the CPU."""
        device = torch.device(device)
        if device.type == "cpu":
            return self
        moved = {name: getattr(self, name).pin_memory().to(device, non_blocking=True) for name in _ON_DEVICE}
        return Tokens(**moved, lengths=self.lengths, truncated=self.truncated)


_ON_DEVICE = ("ids", "positions", "pool")


def concatenate(parts: Sequence[Tokens]) -> Tokens:
    """One packed row of all texts, in order."""
    return Tokens(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Tokens)))


def mini_batches(lengths: Tensor, max_tokens: int) -> Iterator[Tensor]:
    """Row numbers of batches of neighbours in length, each of at most `max_tokens` tokens or one text.

    Longest first, so that memory that is going to run out does so at once. Equal lengths stay together: attention runs
    once per length.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    start, total = 0, 0
    for end, length in enumerate(lengths[order].tolist()):
        if total + length > max_tokens and end > start:
            yield order[start:end]
            start, total = end, 0
        total += length
    if start < len(order):
        yield order[start:]


@dataclass(frozen=True)
class _String:
    """A run of text for the tokenizer, and the character spans of its parts."""

    text: str
    spans: tuple[tuple[int, int, bool, bool], ...]  # start, end, pooled, is the text slot


@dataclass(frozen=True)
class _Fixed:
    """A token that comes from the template by id."""

    id: int
    pool: bool


class InputFormat:
    """Texts to `Tokens` by the templates of an `InputSpec` and one tokenizer."""

    def __init__(self, spec: InputSpec, tokenizer: "PreTrainedTokenizerBase"):
        """Raises ValueError if the tokenizer lacks a token that a template names."""
        from tokenizers import Tokenizer

        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} reports no character offsets, which pooling needs; save the tokenizer in "
                "the fast format (tokenizer.json) first"
            )
        self.spec = spec
        self.tokenizer = tokenizer
        # A private copy: padding or truncation that someone sets on the shared tokenizer must not reach us.
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        # We add special tokens by template; all else a post-processor does is trim spaces off offsets, and a space that
        # no offset covers would belong to no part.
        self._backend.post_processor = None
        self._fixed = {
            part: self._token_id(part) for part in (*spec.query, *spec.document) if part.special or part.token
        }

    def pack(
        self,
        texts: Sequence[str],
        instruction: str | Sequence[str] = "",
        role: Role = "document",
        max_tokens: int | None = None,
    ) -> Tokens:
        """The packed tokens of `texts`.

        instruction  one for all texts, or one per text
        role         `query` uses the query template, unless that has an instruction slot and the instruction is empty
        max_tokens   a lower limit than `spec.max_tokens`
        raises       TypeError for a text that is not a str; ValueError for a lone surrogate, or if instruction and
                     template leave no room for the text
        """
        instructions = [instruction] * len(texts) if isinstance(instruction, str) else list(instruction)
        if len(instructions) != len(texts):
            raise ValueError(f"{len(texts)} texts but {len(instructions)} instructions; give one, or one per text")
        limit = min(max_tokens or self.spec.max_tokens, self.spec.max_tokens)
        rendered = [self._render(t, i, role, row) for row, (t, i) in enumerate(zip(texts, instructions, strict=True))]
        encodings = iter(self._encode([piece for row in rendered for piece in row if isinstance(piece, _String)]))
        rows = [self._assemble(row, encodings, limit, number) for number, row in enumerate(rendered)]
        return Tokens.from_lists([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])

    def render(self, text: str, instruction: str = "", role: Role = "document") -> str:
        """What the model reads, as one string with special tokens by name: for people, cards and tests."""
        names = self.tokenizer.convert_ids_to_tokens
        return "".join(
            piece.text if isinstance(piece, _String) else names(piece.id)
            for piece in self._render(text, instruction, role, 0)
        )

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts without template and special tokens: the raw material of clm and mntp."""
        for row, text in enumerate(texts):
            _check_text(text, f"text {row}")
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def template(self, instruction: str, role: Role) -> tuple[Part, ...]:
        """The parts in force for this instruction and role."""
        asks = any(part.slot == "instruction" for part in self.spec.query)
        parts = self.spec.query if role == "query" and (instruction or not asks) else self.spec.document
        return tuple(part for part in parts if part.when is None or instruction)

    def _token_id(self, part: Part) -> int:
        name = part.token or getattr(self.tokenizer, f"{part.special}_token")
        what = f"token {part.token!r}" if part.token else f"{part.special} token"
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        if name is None or name not in vocabulary:
            raise ValueError(
                f"the template needs the {what}, but the tokenizer has none; its special tokens are "
                f"{self.tokenizer.special_tokens_map}. Change the template in the recipe, or the tokenizer"
            )
        return vocabulary[name]

    def _render(self, text: str, instruction: str, role: Role, row: int) -> list[_String | _Fixed]:
        _check_text(text, f"text {row}")
        _check_text(instruction, f"the instruction of text {row}")
        instruction = instruction.strip(self.spec.strip_instruction) if self.spec.strip_instruction else instruction
        outer = self.spec.strip == "outer"
        instruction, text = (instruction.lstrip(), text.rstrip()) if outer else (instruction, text)
        template = self.template(instruction, role)
        if outer and not any(part.slot == "instruction" for part in template):
            text = text.lstrip()
        values = {"instruction": instruction, "text": text}
        pieces: list[_String | _Fixed] = []
        run: list[tuple[str, bool, bool]] = []
        for part in template:
            if part in self._fixed:
                pieces += _close(run)
                run = []
                pieces.append(_Fixed(self._fixed[part], part.pool))
                continue
            if self.spec.tokenize == "pieces" and not part.join:
                pieces += _close(run)
                run = []
            string = part.literal if part.slot is None else values[part.slot]
            run.append((string or "", part.pool, part.slot == "text"))
        return pieces + _close(run)

    def _encode(self, strings: list[_String]) -> list:
        return self._backend.encode_batch([string.text for string in strings], add_special_tokens=False)

    def _assemble(self, pieces, encodings, limit: int, number: int) -> tuple[list[int], list[bool], bool]:
        """Ids, pool flags and whether the text was cut, for one rendered text."""
        runs: list[tuple[list[int], list[bool], list[tuple[int, int]] | None]] = []  # ids, pool, offsets if text
        for piece in pieces:
            if isinstance(piece, _Fixed):
                runs.append(([piece.id], [piece.pool], None))
            else:
                runs += _runs(piece, next(encodings))
        texts = [run for run in runs if run[2] is not None]
        fixed = sum(len(run[0]) for run in runs if run[2] is None)
        room = (limit - fixed) // max(1, len(texts))
        if room < 1:
            raise ValueError(
                f"text {number}: template and instruction take {fixed} of {limit} tokens and leave no room for the "
                "text; shorten the instruction or raise input.max_tokens"
            )
        room = min(room, self.spec.max_text_tokens or room)
        ids: list[int] = []
        pool: list[bool] = []
        for run_ids, run_pool, offsets in runs:
            keep = len(run_ids) if offsets is None else _whole_characters(offsets, room)
            ids += run_ids[:keep]
            pool += run_pool[:keep]
        if not ids:  # an empty text in a template without special tokens
            ids, pool = [self._filler()], [True]
        if not any(pool):
            pool[-1] = True  # nothing of the text is left: the last token of the template stands for it
        return ids, pool, any(len(run[0]) > room for run in texts)

    def _filler(self) -> int:
        known = [self.tokenizer.eos_token_id, self.tokenizer.bos_token_id, self.tokenizer.pad_token_id]
        return next((token for token in known if token is not None), 0)


def _close(run: list[tuple[str, bool, bool]]) -> list[_String | _Fixed]:
    """The finished run of strings as one `_String`; nothing if it is empty."""
    spans, text = [], ""
    for string, pool, is_text in run:
        spans.append((len(text), len(text) + len(string), pool, is_text))
        text += string
    return [_String(text, tuple(spans))] if text else []


def _runs(string: _String, encoding) -> list[tuple[list[int], list[bool], list[tuple[int, int]] | None]]:
    """The tokens of a string, cut where it changes between template and text: (ids, pool, offsets if text).

    A token belongs to the part of its characters; one that straddles a border belongs to the text, and is pooled if any
    of its characters is.
    """
    ids, spans = encoding.ids, string.spans
    if len(spans) == 1:  # the whole string is one part: nothing to look up
        (_, _, pool, is_text) = spans[0]
        return [(ids, [pool] * len(ids), encoding.offsets if is_text else None)]
    offsets = encoding.offsets
    starts = np.array([offset[0] for offset in offsets], dtype=np.int64)
    ends = np.array([offset[1] for offset in offsets], dtype=np.int64)
    ends = np.maximum(ends, starts + 1)  # a token without characters (SentencePiece's dummy space) sits at its start
    owner = np.searchsorted([span[0] for span in spans], starts, side="right") - 1  # the part of the first character
    pool = np.zeros(len(ids), dtype=bool)
    for number, (start, end, pooled, is_text) in enumerate(spans):
        inside = (starts < end) & (ends > start)
        pool |= inside & pooled
        if is_text:
            owner[inside] = number
    runs = []
    borders = np.flatnonzero(np.diff(owner)) + 1
    for rows in np.split(np.arange(len(owner)), borders) if len(owner) else []:
        is_text = spans[owner[rows[0]]][3]
        runs.append(([ids[i] for i in rows], pool[rows].tolist(), [offsets[i] for i in rows] if is_text else None))
    return runs


def _whole_characters(offsets: list[tuple[int, int]], room: int) -> int:
    """How many of the tokens to keep, at most `room`, so that no character is cut in two (bytes of an emoji)."""
    if len(offsets) <= room:
        return len(offsets)
    keep = room
    while keep > 1 and offsets[keep][0] < offsets[keep - 1][1]:
        keep -= 1
    return keep if offsets[keep][0] >= offsets[keep - 1][1] else room


def _check_text(text: object, what: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{what} is {type(text).__name__} {text!r:.60}, expected str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which is no valid "
            "Unicode; clean it with text.encode('utf-8', 'replace').decode()"
        ) from None


def _positions(lengths: Tensor) -> Tensor:
    """0, 1, ... within each text: (T,)."""
    starts = torch.cumsum(lengths, 0) - lengths
    return torch.arange(int(lengths.sum())) - torch.repeat_interleave(starts, lengths)


def _concatenate(rows: Sequence[Sequence], dtype) -> Tensor:
    flat = [value for row in rows for value in row]
    return torch.from_numpy(np.fromiter(flat, dtype=dtype, count=len(flat)))

"""Templates: texts become `Tokens`, and what is pooled is known for every token.

Each string goes to the tokenizer once; which of its tokens are pooled follows from character offsets, so a token that
merges across the border of a template and a text is found, not guessed.
"""

import copy
import json
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from llm2enc.errors import InputError
from llm2enc.recipe import InputSpec, Part, Role
from llm2enc.text.own_tokens import for_tokenizer
from llm2enc.text.tokens import Tokens, flattened

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase


class _Span(NamedTuple):
    """The characters of one part in a string."""

    start: int
    end: int
    pool: bool
    is_text: bool


class _String(NamedTuple):
    """A run of text for the tokenizer, and the character spans of its parts."""

    text: str
    spans: tuple[_Span, ...]


class _Fixed(NamedTuple):
    """A token that comes from the template by id."""

    id: int
    pool: bool


class _Layout(NamedTuple):
    """A template with its instruction filled in: only the text is open."""

    pieces: tuple["_Fixed | tuple[tuple[str | None, bool], ...]", ...]  # a string's parts: (None for the text, pooled)
    strip: Callable[[str], str]  # what happens to the text first


class InputFormat:
    """Texts to `Tokens` by the templates of an `InputSpec` and one tokenizer."""

    def __init__(self, spec: InputSpec, tokenizer: "PreTrainedTokenizerBase"):
        """Raises ValueError if the tokenizer lacks a token that a template names, with the part and what to write."""
        from tokenizers import Tokenizer

        if not tokenizer.is_fast:
            raise InputError(
                f"{type(tokenizer).__name__} reports no character offsets, which pooling needs; save the tokenizer in "
                "the fast format (tokenizer.json) first"
            )
        self.spec = for_tokenizer(spec, tokenizer)
        self.tokenizer = tokenizer
        # A private copy: padding or truncation that someone sets on the shared tokenizer must not reach us.
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        # We add special tokens by template; all else a post-processor does is trim spaces off offsets, and a space that
        # no offset covers would belong to no part.
        self._backend.post_processor = None
        self._fixed = self._tokens_by_id(spec)

    def with_spec(self, spec: InputSpec) -> "InputFormat":
        """The same tokenizer under other templates. Raises as the constructor."""
        other = copy.copy(self)
        other.spec = for_tokenizer(spec, self.tokenizer)
        other._fixed = other._tokens_by_id(spec)
        return other

    def pack(
        self,
        texts: Sequence[str],
        instruction: str | Sequence[str] = "",
        role: Role = "document",
        max_tokens: int | None = None,
        first: int = 0,
    ) -> Tokens:
        """The packed tokens of `texts`.

        instruction  one for all texts, or one per text
        role         `query` uses the query template, unless that has an instruction slot and the instruction is empty
        max_tokens   a lower limit than `spec.max_tokens`
        first        number of the first text, for messages: the texts are a part of more
        raises       TypeError for a text that is not a str; ValueError for a lone surrogate, or if instruction and
                     template leave no room for the text
        """
        instructions = [instruction] * len(texts) if isinstance(instruction, str) else list(instruction)
        if len(instructions) != len(texts):
            raise InputError(f"{len(texts)} texts but {len(instructions)} instructions; give one, or one per text")
        limit = min(max_tokens or self.spec.max_tokens, self.spec.max_tokens)
        layouts: dict[str, _Layout] = {}
        rows = []
        for number, (text, asked) in enumerate(zip(texts, instructions, strict=True), first):
            _check_text(text, f"text {number}")
            if not isinstance(asked, str) or asked not in layouts:
                _check_text(asked, f"the instruction of text {number}")
                layouts[asked] = self._layout(asked, role)
            rows.append(_fill(layouts[asked], text))
        return self._tokens(rows, limit, first)

    def render(self, text: str, instruction: str = "", role: Role = "document") -> str:
        """What the model reads, as one string with special tokens by name: for people, cards and tests."""
        names = self.tokenizer.convert_ids_to_tokens
        return "".join(
            piece.text if isinstance(piece, _String) else names(piece.id)
            for piece in _fill(self._layout(instruction, role), text)
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

    def identity(self) -> str:
        """Everything that the ids and the pooling of a text depend on, as one string."""
        fixed = [[part.model_dump(), number] for part, number in self._fixed.items()]
        return json.dumps([self.spec.model_dump(mode="json"), self._backend.to_str(), fixed])

    def _tokens_by_id(self, given: InputSpec) -> dict[Part, int]:
        fixed = (part for part in (*self.spec.query, *self.spec.document) if part.special or part.token)
        return {part: self._token_id(part, given) for part in fixed}

    def _token_id(self, part: Part, given: InputSpec) -> int:
        name = part.token or getattr(self.tokenizer, f"{part.special}_token")
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        if name is None or name not in vocabulary:
            role, place = next((r, t.index(part)) for r in ("query", "document") if part in (t := getattr(given, r)))
            what = f"token {part.token!r}" if part.token else f"{part.special} token"
            remedy = "Take the part out of the template, or give a tokenizer that has the token"
            if part.special in ("bos", "eos"):
                remedy = (
                    "Take the part out of the template, or write `when: tokenizer` to have it where the model's own "
                    f"tokenizer puts one and nowhere else: --set input.{role}.{place}.when=tokenizer"
                )
            raise InputError(
                f"part input.{role}.{place}: the template needs the {what}, but the tokenizer has none; its special "
                f"tokens are {self.tokenizer.special_tokens_map}. {remedy}"
            )
        return vocabulary[name]

    def _layout(self, instruction: str, role: Role) -> _Layout:
        instruction = instruction.strip(self.spec.strip_instruction) if self.spec.strip_instruction else instruction
        outer = self.spec.strip == "outer"
        instruction = instruction.lstrip() if outer else instruction
        template = self.template(instruction, role)
        pieces: list[_Fixed | tuple[tuple[str | None, bool], ...]] = []
        run: list[tuple[str | None, bool]] = []
        for part in template:
            fixed = part in self._fixed
            if run and (fixed or (self.spec.tokenize == "pieces" and not part.join)):
                pieces.append(tuple(run))
                run = []
            if fixed:
                pieces.append(_Fixed(self._fixed[part], part.pool))
                continue
            string = None if part.slot == "text" else part.literal or instruction
            if run and None not in (run[-1][0], string) and run[-1][1] == part.pool:
                run[-1] = (run[-1][0] + string, part.pool)  # neighbours of one kind are one part: less to look up
            else:
                run.append((string, part.pool))
        pieces += [tuple(run)] if run else []
        begins = any(
            part.slot == "instruction" for part in template
        )  # the instruction, so the text's left side is inner
        return _Layout(tuple(pieces), str if not outer else str.rstrip if begins else str.strip)

    def _tokens(self, rows: list[list[_String | _Fixed]], limit: int, first: int) -> Tokens:
        """The packed tokens of rendered texts: each string tokenized once, texts cut where a row is beyond `limit`."""
        pieces = [piece for row in rows for piece in row]
        strings = [piece.text for piece in pieces if isinstance(piece, _String)]
        encodings = iter(self._backend.encode_batch(strings, add_special_tokens=False))
        found = [next(encodings) if isinstance(piece, _String) else None for piece in pieces]
        lists = [
            [piece.id] if encoding is None else encoding.ids for piece, encoding in zip(pieces, found, strict=True)
        ]
        ids = flattened(lists, np.int64)
        runs, pool = _runs(pieces, found, np.array([len(row) for row in lists], dtype=np.int64))
        row = np.repeat(np.arange(len(rows)), [len(row) for row in rows])[runs.piece]  # (R,)
        keep = self._fit(runs, row, found, limit, len(rows), first)
        cut = keep < runs.size
        if cut.any():
            kept = np.arange(len(ids)) - np.repeat(runs.start, runs.size) < np.repeat(keep, runs.size)
            ids, pool = ids[kept], pool[kept]
        lengths = np.bincount(row, weights=keep, minlength=len(rows)).astype(np.int64)
        empty = np.flatnonzero(lengths == 0)
        if len(empty):  # an empty text in a template without special tokens
            place = np.cumsum(lengths)[empty]
            ids, pool = np.insert(ids, place, self._filler()), np.insert(pool, place, True)
            lengths[empty] = 1
        pooled = np.bincount(np.repeat(np.arange(len(rows)), lengths)[pool], minlength=len(rows))
        # Where nothing of the text is left, the last token of the template stands for it.
        pool[np.cumsum(lengths)[pooled == 0] - 1] = True
        truncated = np.bincount(row[cut], minlength=len(rows)) > 0
        return Tokens(*map(torch.from_numpy, (ids, lengths, pool, truncated)))

    def _fit(
        self, runs: "_Runs", row: np.ndarray, found: "list[Encoding | None]", limit: int, count: int, first: int
    ) -> np.ndarray:
        """How many tokens of each run are kept (R,), so that the `count` rows have at most `limit` tokens each."""
        fixed = np.bincount(row, weights=np.where(runs.is_text, 0, runs.size), minlength=count).astype(np.int64)
        room = (limit - fixed) // np.maximum(1, np.bincount(row[runs.is_text], minlength=count))
        if (room < 1).any():
            number = int(np.argmax(room < 1))
            raise InputError(
                f"text {first + number}: template and instruction take {fixed[number]} of {limit} tokens and leave no "
                "room for the text; shorten the instruction or raise input.max_tokens"
            )
        room = np.minimum(room, self.spec.max_text_tokens or limit)[row]
        keep = runs.size.copy()
        for run in np.flatnonzero(runs.is_text & (runs.size > room)):
            begin = runs.within[run]
            offsets = found[runs.piece[run]].offsets[begin : begin + runs.size[run]]
            keep[run] = _whole_characters(offsets, int(room[run]))
        return keep

    def _filler(self) -> int:
        known = [self.tokenizer.eos_token_id, self.tokenizer.bos_token_id, self.tokenizer.pad_token_id]
        return next((token for token in known if token is not None), 0)


class _Runs(NamedTuple):
    """The tokens of many pieces, cut where a piece ends and where template and text meet: R runs."""

    piece: np.ndarray  # (R,)
    start: np.ndarray  # (R,) among all tokens
    within: np.ndarray  # (R,) the start among those of the piece
    size: np.ndarray  # (R,)
    is_text: np.ndarray  # (R,) bool


def _fill(layout: _Layout, text: str) -> list[_String | _Fixed]:
    """The pieces of a text; strings without characters are left out."""
    text = layout.strip(text)
    pieces: list[_String | _Fixed] = []
    for piece in layout.pieces:
        if isinstance(piece, _Fixed):
            pieces.append(piece)
            continue
        spans, string = [], ""
        for part, pool in piece:
            start = len(string)
            string += text if part is None else part
            spans.append(_Span(start, len(string), pool, part is None))
        if string:
            pieces.append(_String(string, tuple(spans)))
    return pieces


def _runs(
    pieces: list[_String | _Fixed], found: "list[Encoding | None]", sizes: np.ndarray
) -> tuple[_Runs, np.ndarray]:
    """The runs of `sizes` (P,) tokens a piece, and which tokens are pooled (T,)."""
    only = [piece.spans[0] if isinstance(piece, _String) else piece for piece in pieces]
    pool = np.repeat(np.array([part.pool for part in only], dtype=bool), sizes)
    is_text = np.repeat(np.array([isinstance(part, _Span) and part.is_text for part in only], dtype=bool), sizes)
    owner = np.zeros(len(pool), dtype=np.int64)
    mixed = np.array([isinstance(piece, _String) and len(piece.spans) > 1 for piece in pieces], dtype=bool)
    if mixed.any():
        among = np.repeat(mixed, sizes)
        numbers = np.flatnonzero(mixed).tolist()
        offsets = flattened(chain.from_iterable(found[number].offsets for number in numbers), np.int64).reshape(-1, 2)
        spans = [pieces[number].spans for number in numbers]
        owner[among], pool[among], is_text[among] = _owners(spans, sizes[mixed], *offsets.T)
    piece = np.repeat(np.arange(len(pieces)), sizes)
    changes = np.flatnonzero((np.diff(piece) != 0) | (np.diff(owner) != 0)) + 1
    start = np.concatenate([np.zeros(min(1, len(piece)), dtype=np.int64), changes])
    size = np.diff(start, append=len(piece))
    within = start - (np.cumsum(sizes) - sizes)[piece[start]]
    return _Runs(piece[start], start, within, size, is_text[start]), pool


def _owners(
    spans: list[tuple[_Span, ...]], sizes: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The part each token belongs to, whether it is pooled, and whether the part is a text: 3 x (T,).

    A token belongs to the part of its first character; one that straddles a border belongs to the text, and is pooled if
    any of its characters is.

    sizes         (S,) tokens of each string
    starts, ends  (T,) characters of each token within its string
    """
    depth = max(map(len, spans))
    beyond = _Span(
        int(starts.max(initial=0)) + 1, -1, False, False
    )  # fills up strings of fewer parts: no token is in it
    table = np.array([[*row, *[beyond] * (depth - len(row))] for row in spans], dtype=np.int64)  # (S, depth, 4)
    ends = np.maximum(ends, starts + 1)  # a token without characters (SentencePiece's dummy space) sits at its start
    first, text = np.full((2, len(starts)), -1)
    pool = np.zeros(len(starts), dtype=bool)
    for number in range(depth):
        begin, end, pooled, is_text = (np.repeat(column, sizes) for column in table[:, number].T)
        inside = (starts < end) & (ends > begin)
        first += begin <= starts
        pool |= inside & (pooled == 1)
        text[inside & (is_text == 1)] = number
    owner = np.where(text >= 0, text, first)
    return owner, pool, table[np.repeat(np.arange(len(spans)), sizes), owner, 3] == 1


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
        raise InputError(
            f"{what} has a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which is no valid "
            "Unicode; clean it with text.encode('utf-8', 'replace').decode()"
        ) from None

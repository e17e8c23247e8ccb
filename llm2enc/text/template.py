"""Templates: texts become `Tokens`, and what is pooled is known for every token.

Each string goes to the tokenizer once; which of its tokens are pooled follows from character offsets, so a token that
merges across the border of a template and a text is found, not guessed.
"""

import copy
import json
from collections.abc import Callable, Sequence
from itertools import accumulate, repeat
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from llm2enc.errors import InputError
from llm2enc.recipe import InputSpec, Part, Role
from llm2enc.text.own_tokens import for_tokenizer
from llm2enc.text.passage import Example, Passage
from llm2enc.text.runs import TEMPLATE, TEXT, TITLE, Fixed, Runs, Span, String, runs_of, whole_characters
from llm2enc.text.tokens import Tokens, flattened

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase


class _Open(NamedTuple):
    """A part of a string whose text or title is not filled in yet."""

    string: str  # empty for a text or title
    pool: bool
    kind: int


class _Layout(NamedTuple):
    """A template with its instruction and examples filled in: only text and title are open."""

    pieces: tuple["Fixed | tuple[_Open, ...]", ...]
    strip: Callable[[str], str]  # what happens to the text first
    titled: bool


class _Asked(NamedTuple):
    """What the layout of a text depends on."""

    instruction: str
    titled: bool
    examples: tuple[Example, ...]
    mark: str


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
        examples: Sequence[Sequence[Example]] = (),
        marks: Sequence[str] = (),
    ) -> Tokens:
        """The packed tokens of `texts`.

        texts        a `Passage` has a title, which counts as text: it is cut after the body
        instruction  one for all texts, or one per text
        role         `query` uses the query template, unless that has an instruction slot and the instruction is empty
        max_tokens   a lower limit than `spec.max_tokens`
        first        number of the first text, for messages: the texts are a part of more
        examples     in-context examples, a sequence of them per text
        marks        what stands right behind each text, and is never cut
        raises       TypeError for a text that is not a str; ValueError for a lone surrogate, if instruction and template
                     leave no room for the text, or for examples that are not all read
        """
        count = len(texts)
        instructions = [instruction] * count if isinstance(instruction, str) else list(instruction)
        if len(instructions) != count:
            raise InputError(f"{count} texts but {len(instructions)} instructions; give one, or one per text")
        limit = self._limit(max_tokens)
        layouts: dict[_Asked, _Layout] = {}
        rows = []
        shown = map(tuple, examples) if examples else repeat((), count)
        given = zip(texts, instructions, shown, marks or repeat("", count), strict=True)
        for number, (text, asked, some, mark) in enumerate(given, first):
            _check_text(text, f"text {number}")
            key = _Asked(asked, isinstance(text, Passage), some, mark)
            if not isinstance(asked, str) or key not in layouts:
                _check_text(asked, f"the instruction of text {number}")
                layouts[key] = self._layout(role, key, limit)
            rows.append(_fill(layouts[key], text))
        return self._tokens(rows, limit, first)

    def render(
        self, text: str, instruction: str = "", role: Role = "document", examples: Sequence[Example] = ()
    ) -> str:
        """What the model reads, as one string with special tokens by name: for people, cards and tests."""
        names = self.tokenizer.convert_ids_to_tokens
        asked = _Asked(instruction, isinstance(text, Passage), tuple(examples), "")
        return "".join(
            piece.text if isinstance(piece, String) else names(piece.id)
            for piece in _fill(self._layout(role, asked, self.spec.max_tokens), text)
        )

    def fitting(
        self, examples: Sequence[Example], instruction: str, max_tokens: int | None = None
    ) -> tuple[Example, ...]:
        """The first of the examples, as many as there is room for before a query; none if the template that is in force
        for the instruction has no slot for them."""
        if all(part.slot != "examples" for part in self.template(self._stripped(instruction), "query")):
            return ()
        return tuple(examples[: self._room([self._example(some) for some in examples], self._limit(max_tokens))])

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts without template and special tokens: the raw material of clm and mntp."""
        for row, text in enumerate(texts):
            _check_text(text, f"text {row}")
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def template(self, instruction: str, role: Role) -> tuple[Part, ...]:
        """The parts in force for this instruction and role."""
        asks = any(part.slot == "instruction" for part in self.spec.query)
        parts = self.spec.query if role == "query" and (instruction or not asks) else self.spec.document
        return tuple(part for part in parts if part.when != "instruction" or instruction)

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

    def _limit(self, max_tokens: int | None) -> int:
        return min(max_tokens or self.spec.max_tokens, self.spec.max_tokens)

    def _layout(self, role: Role, asked: _Asked, limit: int) -> _Layout:
        instruction = self._stripped(asked.instruction)
        parts = [part for part in self.template(instruction, role) if part.when != "title" or asked.titled]
        pieces: list[Fixed | tuple[_Open, ...]] = []
        run: list[_Open] = []
        for part in parts:
            fixed = part in self._fixed
            if run and (fixed or (self.spec.tokenize == "pieces" and not part.join)):
                pieces.append(tuple(run))
                run = []
            if fixed:
                pieces.append(Fixed(self._fixed[part], part.pool))
                continue
            for found in self._open(part, instruction, asked, limit):
                if run and run[-1].kind == found.kind == TEMPLATE and run[-1].pool == found.pool:
                    # Neighbours of one kind are one part: less to look up.
                    run[-1] = found._replace(string=run[-1].string + found.string)
                else:
                    run.append(found)
        pieces += [tuple(run)] if run else []
        slots = {part.slot for part in parts}
        if asked.examples and "examples" not in slots:
            raise InputError(
                "examples were given, but the template that reads this text has no {slot: examples}; leave them out, or "
                "give the text an instruction if the recipe's query template has the slot"
            )
        begins = "instruction" in slots  # the instruction, so the text's left side is inner
        strip = str if self.spec.strip != "outer" else str.rstrip if begins else str.strip
        return _Layout(tuple(pieces), strip, asked.titled and "title" in slots)

    def _open(self, part: Part, instruction: str, asked: _Asked, limit: int) -> list[_Open]:
        """What stands in a string for a part that is no token."""
        if part.slot == "text":
            return [_Open("", part.pool, TEXT), *([_Open(asked.mark, part.pool, TEMPLATE)] if asked.mark else [])]
        if part.slot == "title" and asked.titled:
            return [_Open("", part.pool, TITLE)]
        if part.slot == "examples":
            return [_Open(self._examples(asked.examples, limit), part.pool, TEMPLATE)]
        string = instruction if part.slot == "instruction" else part.literal or part.empty or ""
        return [_Open(string, part.pool, TEMPLATE)]

    def _stripped(self, instruction: str) -> str:
        instruction = instruction.strip(self.spec.strip_instruction) if self.spec.strip_instruction else instruction
        return instruction.lstrip() if self.spec.strip == "outer" else instruction

    def _examples(self, examples: tuple[Example, ...], limit: int) -> str:
        """The examples as they are read. ValueError if there is no room for all of them."""
        written = [self._example(example) for example in examples]
        room = self._room(written, limit)
        if room < len(written):
            raise InputError(
                f"{len(written)} examples were given, and {room} of them fit beside the tokens that example.reserve keeps "
                f"of {limit}; give fewer or shorter ones, or raise input.max_tokens"
            )
        return "".join(written)

    def _room(self, written: list[str], limit: int) -> int:
        """How many of the written examples fit, from the first one on."""
        assert self.spec.example is not None  # else the template has no slot for examples
        lengths = map(len, self.plain_ids(list(accumulate(written))))
        return sum(length <= limit - self.spec.example.reserve for length in lengths)

    def _example(self, example: Example) -> str:
        """An example as it is read: the strings of the query template, its query cut, then its document and the end."""
        spec = self.spec.example
        assert spec is not None
        for what, text in example._asdict().items():
            _check_text(text, f"the {what} of an example")
        instruction = self._stripped(example.instruction)
        strings = {"instruction": instruction, "text": example.query, "examples": ""}
        parts = [part for part in self.spec.query if part.special is None and (part.when is None or instruction)]
        place = next(number for number, part in enumerate(parts) if part.slot == "text")
        written = [part.literal or strings[part.slot or ""] for part in parts]
        query = self._cut("".join(written[: place + 1]), spec.max_tokens)
        return query + "".join(written[place + 1 :]) + self._cut(example.document, spec.max_tokens) + spec.end

    def _cut(self, text: str, tokens: int) -> str:
        """The first so many tokens of a text."""
        offsets = self._backend.encode(text, add_special_tokens=False).offsets
        keep = whole_characters(offsets, tokens)
        return text if keep == len(offsets) else text[: offsets[keep - 1][1]]

    def _tokens(self, rows: list[list[String | Fixed]], limit: int, first: int) -> Tokens:
        """The packed tokens of rendered texts: each string tokenized once, texts cut where a row is beyond `limit`."""
        pieces = [piece for row in rows for piece in row]
        strings = [piece.text for piece in pieces if isinstance(piece, String)]
        encodings = iter(self._backend.encode_batch(strings, add_special_tokens=False))
        found = [next(encodings) if isinstance(piece, String) else None for piece in pieces]
        lists = [
            [piece.id] if encoding is None else encoding.ids for piece, encoding in zip(pieces, found, strict=True)
        ]
        ids = flattened(lists, np.int64)
        runs, pool = runs_of(pieces, found, np.array([len(row) for row in lists], dtype=np.int64))
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
        self, runs: "Runs", row: np.ndarray, found: "list[Encoding | None]", limit: int, count: int, first: int
    ) -> np.ndarray:
        """How many tokens of each run are kept (R,), so that the `count` rows have at most `limit` tokens each."""
        fixed, titles = (
            np.bincount(row, weights=np.where(runs.kind == kind, runs.size, 0), minlength=count).astype(np.int64)
            for kind in (TEMPLATE, TITLE)
        )
        texts = np.maximum(1, np.bincount(row[runs.kind == TEXT], minlength=count))
        room = (limit - fixed) // texts
        if (room < 1).any():
            number = int(np.argmax(room < 1))
            raise InputError(
                f"text {first + number}: template and instruction take {fixed[number]} of {limit} tokens and leave no "
                "room for the text; shorten the instruction or raise input.max_tokens"
            )
        room = np.minimum(room, self.spec.max_text_tokens or limit)
        room = np.where(runs.kind == TITLE, room[row], np.maximum(0, room - titles)[row])  # a title is text, and first
        keep = runs.size.copy()
        for run in np.flatnonzero((runs.kind != TEMPLATE) & (runs.size > room)):
            begin = runs.within[run]
            offsets = found[runs.piece[run]].offsets[begin : begin + runs.size[run]]
            keep[run] = whole_characters(offsets, int(room[run]))
        return keep

    def _filler(self) -> int:
        known = [self.tokenizer.eos_token_id, self.tokenizer.bos_token_id, self.tokenizer.pad_token_id]
        return next((token for token in known if token is not None), 0)


def _fill(layout: _Layout, text: str) -> list[String | Fixed]:
    """The pieces of a text; strings without characters are left out."""
    title, text = text.parts if layout.titled else ("", text)
    filled = {TEXT: layout.strip(text), TITLE: title.strip()}
    pieces: list[String | Fixed] = []
    for piece in layout.pieces:
        if isinstance(piece, Fixed):
            pieces.append(piece)
            continue
        spans, string = [], ""
        for part in piece:
            start = len(string)
            string += filled.get(part.kind, part.string)
            spans.append(Span(start, len(string), part.pool, part.kind))
        if string:
            pieces.append(String(string, tuple(spans)))
    return pieces


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

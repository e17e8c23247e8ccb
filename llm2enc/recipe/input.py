"""How a text becomes tokens, and which of them are pooled."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from llm2enc.recipe.base import PositiveInt, Strict

Pooling = Literal["mean", "weighted_mean", "last", "first"]
Role = Literal["query", "document"]


class Part(Strict):
    """One piece of an input template: exactly one of `literal`, `slot`, `special`, `token`."""

    literal: str | None = None
    """Text that goes to the tokenizer as it stands."""
    slot: Literal["instruction", "text", "title", "examples"] | None = None
    """Where the caller's instruction or text goes. `title`: the title of a document, where it has one; the text behind it
    is then the body alone. `examples`: in-context examples, written as `example` says."""
    special: Literal["bos", "eos", "cls", "sep"] | None = None
    """The tokenizer's own special token, by role; never removed by truncation."""
    token: str | None = None
    """One vocabulary entry by its exact name, e.g. `[`; an error if the tokenizer has no such single token."""
    pool: bool = False
    """Whether the tokens of this part enter the vector."""
    when: Literal["instruction", "tokenizer", "title"] | None = None
    """`instruction`, `title`: the part appears only if the instruction is not empty, or the document has a title.
    `tokenizer`, for bos and eos: only if the model's own tokenizer puts that token around a text, as LLM2Vec reads every
    model; a run's recipe says what it found."""
    empty: str | None = None
    """With `slot: title`: what stands there for a document without title, e.g. `none`."""
    join: bool = False
    """With `tokenize: pieces`: one piece together with the part before it."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "Part":
        given = [name for name in ("literal", "slot", "special", "token") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a part needs exactly one of literal, slot, special, token; got {given or 'none'}")
        if self.literal == "" or self.token == "":
            raise ValueError("a literal or token must not be empty; leave the part out instead")
        if self.when == "tokenizer" and self.special not in ("bos", "eos"):
            raise ValueError("`when: tokenizer` is for {special: bos} and {special: eos}")
        if self.empty is not None and (self.slot != "title" or self.when is not None):
            raise ValueError(
                "`empty` is for {slot: title} without `when`: nothing else can be empty and still stand there"
            )
        if self.when == "title" and self.slot == "text":
            raise ValueError("a text without title would not be read; take `when: title` away from {slot: text}")
        return self

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`empty` only where it says something: parts that it does not concern stay as the first release wrote them."""
        return {name: value for name, value in write(self).items() if name != "empty" or value is not None}


Template = Annotated[tuple[Part, ...], Field(min_length=1)]


class ExampleSpec(Strict):
    """How in-context examples stand before a query (bge-en-icl, arXiv 2409.15700): each is written as the query template
    writes its query, without special tokens, then its document and `end`."""

    end: str = "\n\n"
    """What closes an example."""
    max_tokens: PositiveInt = 256
    """Longest query, with what the template has before it, and longest document of an example, in tokens each."""
    reserve: PositiveInt = 512
    """Tokens of the input that are kept for the query itself; all examples together have at most the others."""


class InputSpec(Strict):
    """How a text becomes tokens, and which of them are pooled. The same rule trains, encodes and is exported."""

    query: Template
    """Template of a text that carries an instruction. If it has an instruction slot and the instruction is empty,
    the `document` template is used, so that no dangling prefix is ever embedded."""
    document: Template
    """Template of a text without instruction."""
    max_tokens: Annotated[int, Field(gt=1)] = 512
    """Longest input in tokens, template included. Only the text is cut, so instruction and EOS survive."""
    max_text_tokens: PositiveInt | None = None
    """Longest text in tokens, its title included, for each occurrence of the text slot; none by default."""
    tokenize: Literal["whole", "pieces"] = "whole"
    """`whole`: neighbouring literals and slots are one string to the tokenizer. `pieces`: each part is tokenized on
    its own, as the released Echo checkpoints were trained."""
    strip: Literal["none", "outer"] = "none"
    """`outer`: whitespace is removed at both ends of instruction + text, as LLM2Vec's chat wraps do."""
    strip_instruction: str = ""
    """Characters removed from both ends of the instruction (GritLM: tab, newline, space, colon)."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Instructions by name, for `encode(prompt_name=...)` and the exported directory."""
    example: ExampleSpec | None = None
    """How in-context examples are written; given exactly if the query template has a slot for them."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`example` only where it says something, as `empty` of a part."""
        return {name: value for name, value in write(self).items() if name != "example" or value is not None}

    @model_validator(mode="after")
    def _slots(self) -> "InputSpec":
        for role in ("query", "document"):
            slots = [part.slot for part in getattr(self, role)]
            if "text" not in slots:
                raise ValueError(f"the {role} template has no {{slot: text}} part, so every text would get one vector")
            if not any(part.pool for part in getattr(self, role)):
                raise ValueError(f"the {role} template pools nothing; set `pool: true` on a part")
        if any(part.slot in ("instruction", "examples") for part in self.document):
            raise ValueError(
                "the document template cannot have an instruction or examples slot; put it in the query template"
            )
        return self

    @model_validator(mode="after")
    def _titles(self) -> "InputSpec":
        if any(part.slot == "title" or part.when == "title" for part in self.query):
            raise ValueError("only documents have titles; take `title` out of the query template")
        slots = [part.slot for part in self.document]
        if slots.count("title") > 1 or "text" in slots[: slots.index("title") if "title" in slots else 0]:
            raise ValueError("the document template takes one {slot: title}, in front of its text")
        if "title" not in slots and any(part.when == "title" for part in self.document):
            raise ValueError("`when: title` needs {slot: title} in the document template")
        return self

    @model_validator(mode="after")
    def _examples(self) -> "InputSpec":
        slots = [part.slot for part in self.query]
        if (self.example is not None) != ("examples" in slots):
            raise ValueError(
                "in-context examples need both {slot: examples} in the query template and `example`; give both or neither"
            )
        if self.example is None:
            return self
        if slots.count("examples") > 1 or slots.count("text") > 1 or slots.index("examples") > slots.index("text"):
            raise ValueError("a query template with examples takes one {slot: examples}, in front of one {slot: text}")
        if any(part.token is not None for part in self.query):
            raise ValueError(
                "an example is written as the query template in plain text, which cannot hold {token: ...}; write it as a "
                "literal"
            )
        if self.example.reserve >= self.max_tokens:
            raise ValueError(
                f"example.reserve ({self.example.reserve}) leaves no room for examples in max_tokens ({self.max_tokens})"
            )
        return self

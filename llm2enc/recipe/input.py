"""How a text becomes tokens, and which of them are pooled."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llm2enc.recipe.base import PositiveInt, Strict

Pooling = Literal["mean", "weighted_mean", "last", "first"]
Role = Literal["query", "document"]


class Part(Strict):
    """One piece of an input template: exactly one of `literal`, `slot`, `special`, `token`."""

    literal: str | None = None
    """Text that goes to the tokenizer as it stands."""
    slot: Literal["instruction", "text"] | None = None
    """Where the caller's instruction or text goes."""
    special: Literal["bos", "eos", "cls", "sep"] | None = None
    """The tokenizer's own special token, by role; never removed by truncation."""
    token: str | None = None
    """One vocabulary entry by its exact name, e.g. `[`; an error if the tokenizer has no such single token."""
    pool: bool = False
    """Whether the tokens of this part enter the vector."""
    when: Literal["instruction", "tokenizer"] | None = None
    """`instruction`: the part appears only if the instruction is not empty. `tokenizer`, for bos and eos: only if the
    model's own tokenizer puts that token around a text, as LLM2Vec reads every model; a run's recipe says what it found."""
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
        return self


Template = Annotated[tuple[Part, ...], Field(min_length=1)]


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
    """Longest text in tokens, for each occurrence of the text slot; none by default."""
    tokenize: Literal["whole", "pieces"] = "whole"
    """`whole`: neighbouring literals and slots are one string to the tokenizer. `pieces`: each part is tokenized on
    its own, as the released Echo checkpoints were trained."""
    strip: Literal["none", "outer"] = "none"
    """`outer`: whitespace is removed at both ends of instruction + text, as LLM2Vec's chat wraps do."""
    strip_instruction: str = ""
    """Characters removed from both ends of the instruction (GritLM: tab, newline, space, colon)."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Instructions by name, for `encode(prompt_name=...)` and the exported directory."""

    @model_validator(mode="after")
    def _slots(self) -> "InputSpec":
        for role in ("query", "document"):
            slots = [part.slot for part in getattr(self, role)]
            if "text" not in slots:
                raise ValueError(f"the {role} template has no {{slot: text}} part, so every text would get one vector")
            if not any(part.pool for part in getattr(self, role)):
                raise ValueError(f"the {role} template pools nothing; set `pool: true` on a part")
        if any(part.slot == "instruction" for part in self.document):
            raise ValueError("the document template cannot have an instruction slot; put it in the query template")
        return self

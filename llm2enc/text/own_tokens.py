"""What a model's own tokenizer makes of a template: the special tokens it puts around a text, the marks it knows."""

import re
from typing import TYPE_CHECKING

from llm2enc.recipe import InputSpec, Part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")  # <|im_start|>, <start_of_turn>, [INST]


def surrounding(tokenizer: "PreTrainedTokenizerBase") -> tuple[bool, bool]:
    """Whether the model's own tokenizer puts BOS before a text, and EOS behind it."""
    ids = tokenizer("a")["input_ids"]
    begins = bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    ends = bool(ids) and tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id
    return begins, ends


def for_tokenizer(spec: InputSpec, tokenizer: "PreTrainedTokenizerBase") -> InputSpec:
    """The spec with its parts `when: tokenizer` settled: there for good, or left out."""
    if all(part.when != "tokenizer" for part in (*spec.query, *spec.document)):
        return spec
    own = dict(zip(("bos", "eos"), surrounding(tokenizer), strict=True))

    def settled(template: tuple[Part, ...]) -> tuple[Part, ...]:
        kept = (part for part in template if part.when != "tokenizer" or own[part.special])
        return tuple(part.model_copy(update={"when": None}) if part.when == "tokenizer" else part for part in kept)

    return spec.model_copy(update={"query": settled(spec.query), "document": settled(spec.document)})


def plain_marks(spec: InputSpec, tokenizer: "PreTrainedTokenizerBase") -> dict[str, list[str]]:
    """Chat marks in literals that are no token of this tokenizer, so that it reads them as any text, and where."""
    known = tokenizer.get_vocab()
    found: dict[str, list[str]] = {}
    for role in ("query", "document"):
        for number, part in enumerate(getattr(spec, role)):
            for mark in _MARK.findall(part.literal or ""):
                if mark not in known:
                    found.setdefault(mark, []).append(f"input.{role}.{number}")
    return found

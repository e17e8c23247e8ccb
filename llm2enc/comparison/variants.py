"""Ways to read a causal language model as an encoder: direction of the attention, template, pooling, layer.

    plain    <s> TEXT </s>                                                      the text is pooled
    echo     <s> Rewrite the following paragraph: TEXT. The rewritten paragraph: TEXT </s>      the second copy is pooled
    prompt   <s> This sentence : "TEXT" means in one word:"                     the last token is pooled

`<s>` and `</s>` only where the model's own tokenizer puts them. `<s>` is never pooled: many models park their attention
there, and its state is far longer than the others. `</s>` is pooled by `last` alone, where it is the last token.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llm2enc.errors import InputError
from llm2enc.recipe import InputSpec, Part, Pooling
from llm2enc.text import surrounding

Template = Literal["plain", "echo", "prompt"]


@dataclass(frozen=True)
class Variant:
    """One way to read a model."""

    name: str
    causal: bool
    template: Template
    pooling: Pooling
    description: str
    layer: int | None = None
    """None: the last one, as the model returns it."""


_PASSES = {
    "causal": "attention as trained, each token sees those before it",
    "bidirectional": "every token sees every other",
    "echo": "causal, the text is read twice and the second copy pooled (Echo, arXiv 2402.15449)",
    "prompt": 'causal, asked for the text "in one word" (PromptEOL, arXiv 2307.16645)',
}
_POOLS: dict[Pooling, str] = {
    "mean": "mean of its states",
    "weighted_mean": "position-weighted mean (SGPT, arXiv 2202.08904)",
    "last": "state of the last token",
}


def _variant(kind: str, pooling: Pooling) -> Variant:
    template: Template = kind if kind in ("echo", "prompt") else "plain"
    name = f"{kind}-{pooling.replace('_', '-')}"
    return Variant(name, kind != "bidirectional", template, pooling, f"{_PASSES[kind]}; {_POOLS[pooling]}")


VARIANTS = {
    variant.name: variant
    for variant in (
        _variant("causal", "last"),
        _variant("causal", "mean"),
        _variant("causal", "weighted_mean"),
        _variant("bidirectional", "mean"),
        _variant("bidirectional", "weighted_mean"),
        _variant("bidirectional", "last"),
        _variant("echo", "mean"),
        _variant("echo", "last"),
        _variant("prompt", "last"),
    )
}
DEFAULT = tuple(name for name in VARIANTS if name != "bidirectional-weighted-mean")


def find_variants(names: Sequence[str]) -> list[Variant]:
    """The variants of these names; `bidirectional-mean@6` reads the states that layer 6 hands on.

    raises  ValueError for an unknown name
    """
    found = []
    for name in names:
        plain, at, layer = name.partition("@")
        if plain not in VARIANTS or (at and not re.fullmatch(r"\d+", layer)):
            raise InputError(
                f"no variant {name!r}; there are {', '.join(VARIANTS)}, each also as NAME@LAYER for another layer than the "
                "last"
            )
        found.append(at_layer(VARIANTS[plain], int(layer)) if at else VARIANTS[plain])
    return list(dict.fromkeys(found))


def at_layer(variant: Variant, layer: int) -> Variant:
    """The same variant, read from the states that a layer hands on; 0 are the embeddings."""
    return Variant(
        f"{variant.name}@{layer}", variant.causal, variant.template, variant.pooling,
        f"{variant.description}, after layer {layer}", layer,
    )  # fmt: skip


def input_spec(variant: Variant, tokenizer, max_text_tokens: int, max_positions: int) -> InputSpec:
    """The input format of a variant. ValueError if the model's positions cannot hold the template and the text.

    max_text_tokens  longest text in tokens: the same for every variant, so that all of them read the same words
    max_positions    longest input of the model
    """
    begins, ends = surrounding(tokenizer)
    last = variant.pooling == "last"
    text = Part(slot="text")
    pooled = Part(slot="text", pool=True)
    body = {
        "plain": [pooled],
        "echo": [
            Part(literal="Rewrite the following paragraph: "), text, Part(literal=". The rewritten paragraph: "), pooled,
        ],
        "prompt": [Part(literal='This sentence : "'), text, Part(literal='" means in one word:"', pool=True)],
    }[variant.template]  # fmt: skip
    template = [*([Part(special="bos")] if begins else []), *body]
    if ends and variant.template != "prompt":  # the prompt is to be continued, not closed
        template.append(Part(special="eos", pool=last))
    copies = 2 if variant.template == "echo" else 1
    literals = [tokenizer(part.literal, add_special_tokens=False)["input_ids"] for part in template if part.literal]
    needed = copies * max_text_tokens + sum(map(len, literals)) + len(template)
    if needed > max_positions:
        raise InputError(
            f"{variant.name} needs {needed} tokens for {copies} x {max_text_tokens} of text, the model has {max_positions} "
            "positions; lower the text limit (--max-text-tokens)"
        )
    return InputSpec(
        query=tuple(template), document=tuple(template), max_tokens=needed, max_text_tokens=max_text_tokens
    )

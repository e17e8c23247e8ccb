"""One forward pass for all systems that read the same tokens with the same attention: poolings and layers of one model."""

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import nn

from llm2enc.comparison.systems import System
from llm2enc.encoding import Encoder, LoadedModel
from llm2enc.model import evaluating
from llm2enc.text import Tokens, micro_batches

BATCH_TOKENS, BATCH_TOKENS_GPU = 2048, 65536  # of a forward pass, as `Encoder.encode` has them


def same_pass(systems: Sequence[System]) -> list[list[System]]:
    """The systems, of one state of the weights, in groups that one forward pass serves, in their order."""
    groups: dict[str, list[System]] = {}
    for number, system in enumerate(systems):
        key = _tokens_and_attention(system.encoder) if isinstance(system.encoder, Encoder) else str(number)
        groups.setdefault(key, []).append(system)
    return list(groups.values())


def _tokens_and_attention(encoder: Encoder) -> str:
    """Equal for two encoders of one model that differ in pooling and layer alone."""
    spec = encoder.input_format.spec.model_dump(mode="json")
    for side in ("query", "document"):
        spec[side] = [part | {"pool": None} for part in spec[side]]
    return json.dumps([encoder.causal, spec])


def vectors(
    encoders: Sequence[Encoder], tokens: Sequence[Tokens], advance: Callable[[float], None] = lambda share: None
) -> np.ndarray:
    """Vectors (B, M, D) float32 of B texts by M encoders, as each alone would give them, from one pass per batch.

    tokens   of each encoder: the same ids, each with its own pooled ones
    advance  hears the share of the tokens that are done, batch by batch
    """
    first = encoders[0]
    lengths = tokens[0].lengths
    deep = any(encoder.layer is not None for encoder in encoders)
    found = np.empty((len(lengths), len(encoders), first.dimensions), dtype=np.float32)
    largest = BATCH_TOKENS if first.device.type == "cpu" else BATCH_TOKENS_GPU
    with evaluating(first):
        for rows in micro_batches(lengths, largest):
            batches = {id(one): one.select(rows).to(first.device) for one in tokens}
            batch = batches[id(tokens[0])]
            layers = (
                first.backbone.layers(batch, first.causal) if deep else [first.backbone.hidden(batch, first.causal)]
            )
            for place, (encoder, own) in enumerate(zip(encoders, tokens, strict=True)):
                states = layers[-1 if encoder.layer is None else encoder.layer]
                pooled = encoder.pool(states, batches[id(own)])
                pooled = nn.functional.normalize(pooled, dim=-1) if encoder.normalize else pooled
                found[rows.numpy(), place] = pooled.cpu().numpy()
            advance(float(lengths[rows].sum() / lengths.sum()))
    return found


def pack_each(encoders: Sequence[Encoder], pack: Callable[[Encoder], Tokens]) -> list[Tokens]:
    """`pack` of each encoder, computed once per input format."""
    known: dict[str, Tokens] = {}
    names = [encoder.input_format.spec.model_dump_json() for encoder in encoders]
    for name, encoder in zip(names, encoders, strict=True):
        if name not in known:
            known[name] = pack(encoder)
    return [known[name] for name in names]


class SharedPass:
    """The vectors of several encoders (`same_pass`), kept until `forget`: what one asks for, all of them have."""

    def __init__(self, encoders: Sequence[Encoder], advance: Callable[[float], None] = lambda texts: None):
        self.encoders = list(encoders)
        self.advance = advance
        self._known: dict[tuple[str | None, str | None, str], np.ndarray] = {}  # (M, D) by prompt and text

    def members(self) -> list["Member"]:
        """The encoders, one by one."""
        return [Member(self, number) for number in range(len(self.encoders))]

    def encode(self, number: int, texts: Sequence[str], instruction: str | None, prompt_name: str | None) -> np.ndarray:
        """Vectors (B, D) of one of the encoders."""
        asked = (instruction, prompt_name)
        missing = [text for text in dict.fromkeys(texts) if (*asked, text) not in self._known]
        if missing:
            tokens = pack_each(
                self.encoders, lambda one: one.pack(missing, instruction=instruction, prompt_name=prompt_name)
            )
            every = vectors(self.encoders, tokens, lambda share: self.advance(share * len(missing)))
            self._known |= {(*asked, text): row for text, row in zip(missing, every, strict=True)}
        return np.stack([self._known[(*asked, text)][number] for text in texts])

    def forget(self) -> None:
        """Drop the vectors."""
        self._known.clear()


class Member(LoadedModel):
    """One encoder of a shared pass."""

    def __init__(self, shared: SharedPass, number: int):
        self.shared, self.number = shared, number
        self.encoder = shared.encoders[number]

    @property
    def max_tokens(self) -> int:
        return self.encoder.max_tokens

    @property
    def prompts(self) -> Mapping[str, str]:
        return self.encoder.prompts

    def fingerprint(self) -> str:
        return self.encoder.fingerprint()

    def cache_key(self, *, instruction: str | None = None, prompt_name: str | None = None) -> str:
        return self.encoder.cache_key(instruction=instruction, prompt_name=prompt_name)

    def count_tokens(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> int:
        return self.encoder.count_tokens(texts, instruction=instruction, prompt_name=prompt_name)

    def encode(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> np.ndarray:
        return self.shared.encode(self.number, texts, instruction, prompt_name)

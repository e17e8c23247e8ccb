"""How long a text may be, and why: read off a configuration, before any weight is.

    table      learned or precomputed positions (GPT-2, OPT, GPT-J)        no position beyond: the model would crash
    trained    rotary positions, `linear`, `yarn`, `llama3` included       computable beyond, but never trained
    dynamic    rotary `dynamic`, `longrope` (Phi-3 128k)                   other frequencies beyond
    sparse     top-k indexers (DeepSeek-V3.2), dynamic masks (Doge)        a token no longer reads all others beyond

Within its limit a vector depends on its own text alone: positions count from 0 in every text of a packed row, and
frequencies are constants. Beyond it no two programs agree. `dynamic` and `longrope` take one set of frequencies for a
whole forward call, by its longest text, so a short text would change with its companions; tables crash; and of models
that could go on, vLLM and text-embeddings-inference cut at, or refuse, what config.json does not grant. So longer inputs
are refused, and who wants to extrapolate says so in config.json, where all programs read it.

`config` is the configuration of a text decoder, of transformers or of the same attributes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llm2enc.errors import InputError

SIZES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
# Keys of families that let a token read only so many others, chosen by content.
_SPARSE = {
    "index_topk": "a top-k indexer picks the keys a token reads, so it reads all others only up to that",
    "keep_window_size": "a dynamic mask picks the keys a token reads, so it reads all others only up to that",
}


@dataclass(frozen=True)
class Limit:
    """The longest text in tokens, template included, and what happens beyond."""

    tokens: int
    why: str


def longest_input(config: Any) -> Limit | None:
    """The limit of a text decoder's configuration; None if its positions have no end."""
    return min(_limits(config), key=lambda one: one.tokens, default=None)


def check_lengths(config: Any, asked: Mapping[str, int | None]) -> None:
    """ValueError if a length is beyond the limit, with the number to set.

    asked  tokens by the key that asks for them, e.g. {"input.max_tokens": 512}
    """
    found = longest_input(config)
    over = {} if found is None else {key: tokens for key, tokens in asked.items() if (tokens or 0) > found.tokens}
    if over:
        said = " and ".join(f"{key} is {tokens}" for key, tokens in over.items())
        remedy = " and ".join(f"`{key}: {found.tokens}`" for key in over)
        raise InputError(
            f"{said}, but {config.model_type} takes {found.tokens} tokens: {found.why}. Set {remedy}, or less"
        )


def _limits(config: Any) -> Iterator[Limit]:
    for key, why in _SPARSE.items():
        if _is_size(getattr(config, key, None)):
            yield Limit(getattr(config, key), why)
    positions = next((getattr(config, name) for name in SIZES if _is_size(getattr(config, name, None))), None)
    if positions is None:
        return
    kinds = _rotary_kinds(config)
    if not kinds:
        yield Limit(positions, "it has no positions beyond them (or was not trained on any)")
    for kind in kinds:
        yield _rotary(config, kind, positions)


def _rotary(config: Any, kind: Mapping[str, Any], positions: int) -> Limit:
    """The limit that one set of rotary frequencies has.

    As transformers computes them (modeling_rope_utils.py) and vLLM derives lengths from them: `linear` stretches
    max_position_embeddings, `yarn` its original positions.
    """
    name = kind.get("rope_type", kind.get("type"))
    original = kind.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    factor = kind.get("factor") or 1
    if name in ("dynamic", "longrope"):
        first = original if name == "longrope" and original else positions
        return Limit(
            first,
            f"its rotary scaling `{name}` has other frequencies for longer texts and takes one set for a whole batch, so "
            "a vector would depend on the other texts in it",
        )
    if name == "linear":
        positions = int(positions * factor)
    elif name == "yarn" and original:
        positions = max(positions, int(original * factor))
    return Limit(
        positions,
        "it was not trained on positions beyond them, and other programs refuse or cut there; to extrapolate all the same, "
        "raise max_position_embeddings in the model's config.json",
    )


def _rotary_kinds(config: Any) -> list[Mapping[str, Any]]:
    """The rotary settings: one, or one for each kind of layers (Gemma 3)."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    return nested or ([parameters] if parameters else [])


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0

"""Attention over packed rows, exact per text, causal or bidirectional by call.

Three texts of 2, 3 and 1 tokens in one row; `x` marks what a query (row) may read:

    bidirectional          causal                 bidirectional, sliding_window=1
    x x . . . .            x . . . . .            x x . . . .
    x x . . . .            x x . . . .            x x . . . .
    . . x x x .            . . x . . .            . . x x . .
    . . x x x .            . . x x . .            . . x x x .
    . . x x x .            . . x x x .            . . . x x .
    . . . . . x            . . . . . x            . . . . . x

The pictures are asserted by tests/test_attention.py. Windows follow transformers' eager attention: `i - j < W` if causal,
`|i - j| <= W` if not.

The function is registered with transformers under `NAME`; the lengths travel as the keyword `packing`, which decoder
layers hand down to their attention. A keyword is captured by gradient checkpointing; a global would be gone when the
backward pass computes a layer again. Without `packing` (someone calls the model with a padded batch) it behaves as
`sdpa`.

On CUDA: flash-attn's varlen kernel if installed, else torch's own, where they know the dropout, cap and sinks asked for.
Everywhere else: one SDPA call per group of equal lengths, which needs no mask and on CPU is 3.8 times as fast as a
block-diagonal one.
"""

import contextvars
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from llm2enc.errors import InputError
from llm2enc.text import Tokens

NAME = "llm2enc_packed"  # must contain none of transformers' own names: it dispatches on substrings

UNSAID = -1  # the layer says nothing of its window: Qwen2-MoE leaves it to the mask, and keeps it as an attribute


@dataclass(frozen=True)
class Group:
    """N texts of one length L of which K tokens each ask."""

    keys: Tensor  # (N, L) rows of the pack
    queries: Tensor  # (N, K) rows of the pack
    offsets: Tensor  # (N, K) the same, counted from the start of each text

    @property
    def all_outputs_needed(self) -> bool:
        return self.keys.shape == self.queries.shape


@dataclass(frozen=True)
class Packing:
    """Which tokens of a packed row belong together.

    queries: (T,) bool on the CPU; the states of other tokens are not needed after this layer, so they come out undefined.
    None: every token asks.
    """

    lengths: Tensor  # (B,) on the CPU
    causal: bool
    device: torch.device
    queries: Tensor | None = None

    @staticmethod
    def of(tokens: Tokens, causal: bool, queries: Tensor | None = None) -> "Packing":
        return Packing(tokens.lengths, causal, tokens.ids.device, queries)

    @cached_property
    def groups(self) -> list[Group]:
        """Texts of equal length (and equal number of queries), in the order of the row."""
        starts = (torch.cumsum(self.lengths, 0) - self.lengths).tolist()
        asked = None if self.queries is None else self.queries.split(self.lengths.tolist())
        members: dict[tuple[int, int], list[int]] = {}
        for text, length in enumerate(self.lengths.tolist()):
            count = length if asked is None else int(asked[text].sum())
            members.setdefault((length, count), []).append(text)
        groups = []
        for (length, _), texts in members.items():
            start = torch.tensor([starts[text] for text in texts])[:, None]
            span = torch.arange(length).expand(len(texts), length)
            offsets = span if asked is None else torch.stack([asked[text].nonzero()[:, 0] for text in texts])
            groups.append(Group(*((part).to(self.device) for part in (start + span, start + offsets, offsets))))
        return groups

    @cached_property
    def runs(self) -> list[int] | None:
        """Tokens of each group, if the groups are runs of the row in order and every token asks; else None.

        Batches sorted by length are such rows. Their groups are views of the row: nothing is gathered, and the backward
        pass has nothing to scatter.
        """
        if self.queries is not None or self.restore is not None:
            return None
        return [group.keys.numel() for group in self.groups]

    @cached_property
    def restore(self) -> Tensor | None:
        """(T,) where each token's output stands after the groups are joined; None if they already are in order.

        Tokens that don't ask point at one row of zeros behind the outputs.
        """
        rows = torch.cat([group.queries.reshape(-1) for group in self.groups])
        total = int(self.lengths.sum())
        if len(rows) == total and bool((rows[1:] > rows[:-1]).all()):
            return None
        place = torch.full((total,), len(rows), device=self.device)
        place[rows] = torch.arange(len(rows), device=self.device)
        return place

    @cached_property
    def cumulative(self) -> Tensor:
        """(B + 1,) int32 borders of the texts, as varlen kernels want them."""
        return F.pad(torch.cumsum(self.lengths, 0), (1, 0)).to(self.device, torch.int32)

    @cached_property
    def longest(self) -> int:
        return int(self.lengths.max())


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = UNSAID,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    packing: Packing | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention output (1, T, H, D) of query (1, H, T, D) and key, value (1, H_kv, T, D).

    dropout is what the module asks for in its present mode: zero in evaluation.
    sliding_window, softcap and s_aux (one sink logit per head, gpt-oss) are what the layer passes.
    """
    if packing is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        if s_aux is not None:  # sdpa would drop it without a word; a cap it refuses itself
            raise InputError(
                "attention sinks (s_aux) need packed rows: without `packing` this is `sdpa`, which has none. Call the "
                "model through Encoder, or load it with attn_implementation='eager'"
            )
        extra = {"softcap": softcap} if softcap is not None else {}
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **extra, **kwargs)
    scaling = query.size(-1) ** -0.5 if scaling is None else scaling
    if sliding_window == UNSAID:
        sliding_window = getattr(module, "sliding_window", None)
    window = sliding_window if sliding_window and sliding_window < packing.longest else None
    device = query.device.type
    # RoPE leaves float32 queries and keys beside the 16-bit values of autocast.
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    # A processor's attention over 16-bit states is no faster than over float32, less exact, and its backward pass takes
    # 1.2 (256 tokens) to 15 times as long (one text of 17 tokens): benchmarks/speed.md.
    inside = torch.promote_types(dtype, torch.float32) if device == "cpu" else dtype
    query, key, value = (states.to(inside) for states in (query, key, value))
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))  # (T, H, D)
    kernel = _kernel(query.device.type, query.dtype, dropout > 0, softcap is not None or s_aux is not None)
    if kernel is not None:  # it computes every query: cheaper there than one call per length for the few that are asked
        return kernel(query, key, value, packing, dropout, scaling, window)[None], None
    with torch.autocast(device, enabled=False):  # it would narrow them again
        output = _by_group(query, key, value, packing, dropout, scaling, window, softcap, s_aux)
    return output[None].to(dtype), None


def register() -> None:
    """Make `NAME` known to transformers as an attention implementation."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def mask(*args, **kwargs):
        # Inside a packed call the lengths say everything, and a (T, T) mask would cost what packing saves.
        return None if _inside_packed_call.get() else sdpa_mask(*args, **kwargs)

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, mask)


_inside_packed_call = contextvars.ContextVar("llm2enc_inside_packed_call", default=False)


@contextmanager
def packed_call() -> Iterator[None]:
    """While active, transformers builds no mask. Masks are built outside of checkpointed layers, so a context is safe."""
    token = _inside_packed_call.set(True)
    try:
        yield
    finally:
        _inside_packed_call.reset(token)


def allowed(packing: Packing, window: int | None = None) -> Tensor:
    """(T, T) bool, the pictures above: may token i read token j? For tests, and for models without a packed kernel."""
    text = torch.repeat_interleave(torch.arange(len(packing.lengths)), packing.lengths).to(packing.device)
    rows = torch.arange(len(text), device=packing.device)
    distance = rows[:, None] - rows[None, :]
    mask = text[:, None] == text[None, :]
    if packing.causal:
        mask = mask & (distance >= 0)
    if window is not None:
        mask = mask & ((distance < window) if packing.causal else (distance.abs() <= window))
    return mask


def _by_group(query, key, value, packing, dropout, scaling, window, softcap, s_aux) -> Tensor:
    """(T, H, D) by one call per group of equal lengths."""
    outputs = []
    for group, q, k, v in zip(packing.groups, *_grouped(packing, query, key, value), strict=True):
        mask, causal = _group_mask(group, packing.causal, window)
        if softcap is None and s_aux is None:
            out = F.scaled_dot_product_attention(
                q, k, v, mask, dropout, causal, scale=scaling, enable_gqa=q.size(1) != k.size(1)
            )
        else:
            out = _explicit(q, k, v, mask, causal, dropout, scaling, softcap, s_aux)
        outputs.append(out.transpose(1, 2).reshape(-1, out.size(1), out.size(-1)))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if packing.restore is None:
        return joined
    if packing.queries is not None:
        joined = torch.cat([joined, joined.new_zeros(1, *joined.shape[1:])])
    return joined[packing.restore]


def _grouped(packing: Packing, query: Tensor, key: Tensor, value: Tensor) -> Iterator[list[Tensor]]:
    """For each of query, key, value (T, H, D): its groups as (N, H, K or L, D)."""
    for states, kind in ((query, "queries"), (key, "keys"), (value, "keys")):
        rows = [getattr(group, kind) for group in packing.groups]
        parts = states.split(packing.runs) if packing.runs is not None else [states[row.reshape(-1)] for row in rows]
        yield [part.view(*row.shape, *states.shape[1:]).transpose(1, 2) for part, row in zip(parts, rows, strict=True)]


def _group_mask(group: Group, causal: bool, window: int | None) -> tuple[Tensor | None, bool]:
    """The mask SDPA needs, if any, and whether its own causal flag does instead: SDPA takes one of the two."""
    if window is None and (not causal or group.all_outputs_needed):
        return None, causal and group.keys.size(1) > 1
    keys = torch.arange(group.keys.size(1), device=group.keys.device)
    distance = group.offsets[:, None, :, None] - keys  # (N, 1, K, L)
    mask = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        mask = mask & ((distance < window) if causal else (distance.abs() <= window))
    return mask, False


def _explicit(q, k, v, mask, causal, dropout, scaling, softcap, s_aux) -> Tensor:
    """Attention written out, for score caps (Gemma 2) and sinks (gpt-oss), which SDPA doesn't have: (N, H, K, D)."""
    groups = q.size(1) // k.size(1)
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(2, 3) * scaling  # (N, H, K, L)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    scores = scores.float()
    if s_aux is not None:  # a sink takes its share of the softmax and gives nothing
        sinks = s_aux.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = F.softmax(scores, dim=-1)[..., : k.size(2)].to(q.dtype)
    return F.dropout(weights, dropout, training=dropout > 0) @ v


# ---------------------------------------------------------------------------------------------------------------- CUDA


@lru_cache
def _kernel(device: str, dtype: torch.dtype, dropout: bool, special: bool):
    """The varlen kernel for this kind of call, or None where groups of SDPA calls are the way."""
    if device != "cuda" or special or dtype not in (torch.bfloat16, torch.float16):
        return None
    if importlib.util.find_spec("flash_attn") is not None:
        return _flash
    if not dropout and importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        from torch.nn.attention.varlen import varlen_attn

        if {"scale", "window_size"} <= _parameters(varlen_attn):  # older ones lack them
            return _varlen
    return None


@lru_cache
def _parameters(function: Callable) -> frozenset[str]:
    """Names of what a function takes."""
    return frozenset(inspect.signature(function).parameters)


def _window(causal: bool, window: int | None) -> tuple[int, int]:
    """Left and right reach as varlen kernels count them: tokens besides the own one, -1 for no limit."""
    if window is None:
        return (-1, 0) if causal else (-1, -1)
    return (window - 1, 0) if causal else (window, window)


def _flash(query, key, value, packing: Packing, dropout, scaling, window) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    borders, longest = packing.cumulative, packing.longest
    return flash_attn_varlen_func(
        query, key, value, borders, borders, longest, longest,
        dropout_p=dropout, softmax_scale=scaling, causal=packing.causal, window_size=_window(packing.causal, window),
    )  # fmt: skip


def _varlen(query, key, value, packing: Packing, dropout, scaling, window) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    borders, longest, groups = packing.cumulative, packing.longest, query.size(1) // key.size(1)
    grouped = {"enable_gqa": groups > 1} if "enable_gqa" in _parameters(varlen_attn) else {}
    if groups > 1 and not grouped:  # torch before 2.12 promises equal heads only
        key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    return varlen_attn(
        query, key, value, borders, borders, longest, longest,
        scale=scaling, window_size=_window(packing.causal, window), **grouped,
    )  # fmt: skip

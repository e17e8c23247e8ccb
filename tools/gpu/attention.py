"""Packed attention beside the family's own eager attention on each text alone: states and gradients.

The yardstick is eager in float64 (norms and softmax of most families stay float32 inside). Eager in the type that is
tried has an error against it, which rounding explains; packed attention rounds as often, elsewhere, so its error may be
TIMES as large, and no more: a leaking text, a window off by one or a forgotten cap gives errors that are 10 to 100 times
as large. Errors are |found - wanted| / |wanted| over everything together.
"""

import copy
import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm2enc.model import Backbone
from llm2enc.text import Tokens
from tools.gpu import machine
from tools.gpu.rows import FAILED, OK, NotHere, Row, attempt
from tools.gpu.settings import Context

TIMES = 2.0
VARLEN = "torch.nn.attention.varlen"
SIZE = {"num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 512, "max_position_embeddings": 512}
BIG = SIZE | {"hidden_size": 512, "intermediate_size": 1024}
SMALL = SIZE | {"hidden_size": 64, "intermediate_size": 96}
LENGTHS = (200, 7, 64, 1, 130, 64)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, equal heads": ("llama", {"num_key_value_heads": 8}),
    "llama, GQA": ("llama", {"num_key_value_heads": 2}),
    "qwen3, GQA, head of 128": ("qwen3", {"num_key_value_heads": 4, "head_dim": 128}),
    "mistral, GQA, window": ("mistral", {"num_key_value_heads": 2, "sliding_window": 24}),
    "gemma2, GQA, window, soft cap": (
        "gemma2", {"num_key_value_heads": 2, "sliding_window": 24, "attn_logit_softcapping": 3.0, "head_dim": 64},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Everything an attention gives: states (T, D) and the gradients of all weights, one after another."""

    states: Tensor
    gradients: Tensor


def compare(context: Context, kernel: str) -> Iterator[Row]:
    """One row per family, direction and type, with the kernel that is asked for in use."""
    try:
        _choose(kernel, context.device)
    except NotHere as reason:
        yield Row(f"packed attention by {kernel}", "not here", message=str(reason))
        return
    for family in FAMILIES:
        for dtype in (torch.bfloat16, *([torch.float32] if kernel == "sdpa" else [])):
            for causal in (False, True):
                name = f"{family}, {'causal' if causal else 'bidirectional'}, {str(dtype).removeprefix('torch.')}"
                yield attempt(name, functools.partial(_case, name, family, causal, dtype, kernel, context))


def _choose(kernel: str, device: str) -> None:
    """Hide what llm2enc would prefer to the kernel. NotHere if this machine does not have it."""
    if device != "cuda":
        if kernel == "sdpa":
            return
        raise NotHere("not on this device: the kernel runs on CUDA only")
    if kernel == "flash":
        machine.need_flash()
    elif kernel == "varlen" and importlib.util.find_spec(VARLEN) is None:
        raise NotHere(f"this torch has no {VARLEN}")
    for other in {"flash": (), "varlen": ("flash_attn",), "sdpa": ("flash_attn", VARLEN)}[kernel]:
        machine.hide(other)
    machine.spend()


def _case(name: str, family: str, causal: bool, dtype: torch.dtype, kernel: str, context: Context) -> Row:
    model, tokens = _model(family, dtype, context), _tokens(context)
    exact = _eager(copy.deepcopy(model).double(), tokens, causal)
    plain = _eager(copy.deepcopy(model), tokens, causal)
    with _counted(kernel) as calls:
        packed = _packed(model, tokens, causal)
    errors = {"states": judged(packed.states, plain.states, exact.states)}
    errors["gradients"] = judged(packed.gradients, plain.gradients, exact.gradients)
    values: dict[str, Any] = {f"{key}, error": error for key, (error, _) in errors.items()}
    values |= {f"{key}, bound": bound for key, (_, bound) in errors.items()} | {"kernel calls": calls[0]}
    written_out = FAMILIES[family][1].get("attn_logit_softcapping") is not None
    if not calls[0] and not written_out:
        return Row(name, FAILED, values, message=f"{kernel} was never called: llm2enc chose another way")
    good = all(error <= bound for error, bound in errors.values())
    note = "soft caps are written out, no kernel" if written_out else ""
    return Row(name, OK if good else FAILED, values, message=note if good else "an error is above its bound")


def judged(found: Tensor, plain: Tensor, exact: Tensor) -> tuple[float, float]:
    """Error of `found`, and the bound for it, which the error of eager in the same type gives."""
    return relative(found, exact), TIMES * relative(plain, exact)


def relative(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|; infinite where anything is not finite, which no bound allows."""
    error = ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()
    return error if error == error else float("inf")


def _model(family: str, dtype: torch.dtype, context: Context):
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind, values = FAMILIES[family]
    size = SMALL if context.rehearse else BIG
    small = {"sliding_window": 3} if context.rehearse and "sliding_window" in values else {}
    small |= {"head_dim": 16} if context.rehearse and "head_dim" in values else {}
    # The usual 0.02 makes attention so flat that a wrong mask would hardly be seen.
    config = CONFIG_MAPPING[kind](**(size | values | small), initializer_range=size["hidden_size"] ** -0.5)
    torch.manual_seed(11)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).to(context.device).train()


def _tokens(context: Context) -> Tokens:
    lengths = tuple(-(-length // 10) for length in LENGTHS) if context.rehearse else LENGTHS
    draw = torch.Generator().manual_seed(5)
    ids = [torch.randint(SIZE["vocab_size"], (length,), generator=draw).tolist() for length in lengths]
    tokens = Tokens.from_lists(ids, [[True] * length for length in lengths], [False] * len(lengths))
    return tokens.to(context.device)


def _eager(model, tokens: Tokens, causal: bool) -> Found:
    """Each text alone, by transformers' own eager attention."""
    model.set_attn_implementation("eager")
    model.config.use_cache = False
    model.config.is_causal = causal
    for module in model.modules():
        if isinstance(getattr(module, "is_causal", None), bool):
            module.is_causal = causal
    rows = tokens.ids.split(tokens.lengths.tolist())
    states = torch.cat([model.base_model(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in rows])
    return _found(model, states)


def _packed(model, tokens: Tokens, causal: bool) -> Found:
    backbone = Backbone(model, bidirectional=not causal)
    if backbone.route != "packed":
        raise RuntimeError(f"the family is read by the route {backbone.route!r}, which has no packed attention")
    return _found(model, backbone.hidden(tokens))


def _found(model, states: Tensor) -> Found:
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(6)).to(states.device)
    (states.double() * weights.double()).sum().backward()
    gradients = [weight.grad.double().flatten() for weight in model.base_model.parameters() if weight.grad is not None]
    return Found(states.detach().double(), torch.cat(gradients))


@contextmanager
def _counted(kernel: str) -> Iterator[list[int]]:
    """How often the kernel is called meanwhile."""
    homes = {
        "flash": ("flash_attn", "flash_attn_varlen_func"),
        "varlen": (VARLEN, "varlen_attn"),
        "sdpa": ("torch.nn.functional", "scaled_dot_product_attention"),
    }
    module, name = importlib.import_module(homes[kernel][0]), homes[kernel][1]
    original, calls = getattr(module, name), [0]

    @functools.wraps(original)
    def counting(*args, **kwargs):
        calls[0] += 1
        return original(*args, **kwargs)

    setattr(module, name, counting)
    try:
        yield calls
    finally:
        setattr(module, name, original)

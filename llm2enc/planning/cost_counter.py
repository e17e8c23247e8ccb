"""Fake tensors, and a counter of what they would take: bytes alive, the most at any moment, operations.

The code that trains is run on torch's fake tensors, which have a shape, a type and a storage of a size but no memory. The
counter sees every operation of the forward and the backward pass. So it counts what autograd keeps and what is alive for
a moment only, for any architecture, and there is no formula per family that could be wrong.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_GROUPED = torch.ops.aten._grouped_mm.default
_BATCHED = {torch.ops.aten.bmm, torch.ops.aten.baddbmm}


class CostCounter(FakeTensorMode):
    """Fake tensors on the CPU whose storages are counted from birth to death.

    live, peak        bytes now, and the most since `restart`
    flops, attention  floating-point operations of matrix products; those between tokens (attention) apart from the rest.
                      Per-element operations are not counted, as in torch's own counter and in every published MFU.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.live = self.peak = self.flops = self.attention = 0
        self._sizes: dict[int, int] = {}
        self._depth = 0

    def restart(self) -> None:
        """Forget the peak and the operations."""
        self.peak, self.flops, self.attention = self.live, 0, 0

    def like(self, tensor: Tensor) -> Tensor:
        """A counted fake tensor of the same shape, strides and type."""
        with self:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")

    def adopt(self, module: nn.Module) -> None:
        """Replace every parameter and buffer by a fake one; tied ones stay tied."""
        known: dict[int, nn.Parameter] = {}
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and id(parameter) not in known:
                    known[id(parameter)] = nn.Parameter(self.like(parameter.data), parameter.requires_grad)
                part._parameters[name] = None if parameter is None else known[id(parameter)]
            for name, buffer in part._buffers.items():
                part._buffers[name] = None if buffer is None else self.like(buffer)

    def __torch_dispatch__(self, func, types, args: Any = (), kwargs: Any = None) -> Any:
        self._depth += 1  # an operation that is made of others counts once
        try:
            if func is _GROUPED:
                out = _grouped_product(*args[:2], groups=kwargs.get("offs", args[2] if len(args) > 2 else None))
            else:
                out = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._depth -= 1
        if not self._depth:
            self._count(func._overloadpacket, args, kwargs or {}, out)
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self._note(leaf)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += self._sizes[key]
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def _count(self, operation: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        if operation is _FUSED:
            self.attention += sdpa_flop_count(args[0].shape, _expanded(args[0], args[1]), _expanded(args[0], args[2]))
        elif operation is _FUSED_BACKWARD:
            gradient, query, key, value = args[:4]
            self.attention += sdpa_backward_flop_count(
                gradient.shape, query.shape, _expanded(query, key), _expanded(query, value)
            )
        elif operation is _GROUPED._overloadpacket:
            first, second = args[:2]
            rows = first.shape[-2] if first.dim() == 2 else second.shape[-1]
            self.flops += 2 * first.shape[-1] * rows * (second.shape[-1] if first.dim() == 2 else first.shape[-2])
        elif operation in flop_registry:
            count = flop_registry[operation](*args, **kwargs, out_val=out)
            if operation in _BATCHED:  # of the families we know, only products between tokens are batched
                self.attention += count
            else:
                self.flops += count


def _grouped_product(first: Tensor, second: Tensor, groups: Tensor | None) -> Tensor:
    """The shape of a product for every expert at once; torch's own outline of it knows bfloat16 only.

    (T, K) x (E, K, N) is (T, N); (M, T) x (T, N) is (E, M, N), a gradient in the weights; (E, M, K) x (K, T) is (M, T).
    """
    if groups is not None and first.dim() == second.dim() == 2:
        return first.new_empty(len(groups), first.size(0), second.size(1))
    if first.dim() == 3 and second.dim() == 3:
        return first.new_empty(first.size(0), first.size(1), second.size(2))
    return first.new_empty(first.size(-2), second.size(-1))


def _expanded(query: Tensor, key: Tensor) -> tuple[int, ...]:
    """Shape of keys that are shared by several heads, as if each head had its own: the work is the same."""
    return (key.shape[0], query.shape[1], *key.shape[2:])


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Inside, attention and dropout keep what CUDA's kernels keep: no (L, L) scores whatever the dropout, and one byte
    per entry to remember what was dropped.

    The functions of torch are replaced, because a mode would not reach layers that are computed again in a backward pass.
    """
    former = F.scaled_dot_product_attention, F.dropout

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        return _FUSED(query, key, value, 0.0, is_causal, attn_mask=None, scale=scale)[0]

    def dropout(input, p=0.5, training=True, inplace=False):
        return torch.native_dropout(input, p, True)[0] if training and p else input

    F.scaled_dot_product_attention, F.dropout = attention, dropout
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.dropout = former

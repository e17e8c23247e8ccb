"""Merged tensors: pure functions of tensors and weights, float64 throughout and rounded by the caller."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

Method = Literal["average", "slerp"]

CHUNK = 2**22  # entries whose float64 copies exist at a time while an angle is measured
NO_ARC = 1e-6  # of sin(o): arc and chord differ by o**2 there, which float32 cannot hold


def average(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i w_i x_i / sum_i w_i in float64; a tensor of weight 0 has no part in it."""
    total, merged = sum(weights), None
    for tensor, weight in zip(tensors, weights, strict=True):
        if weight:
            part = tensor.to(torch.float64, copy=True).mul_(weight / total)
            merged = part if merged is None else merged.add_(part)
    assert merged is not None, "no weight is above 0"
    return merged


def slerp(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Spherical interpolation in float64: x_0 towards x_1 by w_1 / (w_0 + w_1), the result towards x_2 by w_2 / sum, ..."""
    total, merged = 0.0, tensors[0].double()
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight
        if weight:  # the first of weight above 0 is taken as it is
            merged = _on_arc(merged, tensor.double(), weight / total)
    return merged


def _on_arc(one: Tensor, other: Tensor, t: float) -> Tensor:
    """The point at share `t` of the arc from `one` to `other`; both ends exactly."""
    if t == 1:
        return other
    angle = _angle(one, other)
    sine = math.sin(angle)
    if sine < NO_ARC:
        return one * (1 - t) + other * t
    return one * (math.sin((1 - t) * angle) / sine) + other * (math.sin(t * angle) / sine)


def _angle(one: Tensor, other: Tensor) -> float:
    """The angle between two tensors in radians; 0 if one of them is zero.

    From the half sum and half difference of the unit vectors: the arc cosine has lost half of the digits near 0, where
    checkpoints of one base are.
    """
    norms = [math.sqrt(sum(float(part.square().sum()) for part in _parts(x))) for x in (one, other)]
    if not all(norms):
        return 0.0
    apart = together = 0.0
    for x, y in zip(_parts(one), _parts(other), strict=True):
        apart += float((x / norms[0] - y / norms[1]).square().sum())
        together += float((x / norms[0] + y / norms[1]).square().sum())
    return 2 * math.atan2(math.sqrt(apart), math.sqrt(together))


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    return (part.double() for part in tensor.flatten().split(CHUNK))


METHODS: dict[Method, Callable[[Sequence[Tensor], Sequence[float]], Tensor]] = {"average": average, "slerp": slerp}

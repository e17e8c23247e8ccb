"""The texts of golden numbers: three rows in the plane, by their angles."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor


def at(*degrees: float) -> Tensor:
    """(N, 2) unit vectors in float64."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], 1)


QUERIES, POSITIVES, NEGATIVES = at(0, 40, 110), at(10, 55, 100), at(25, 80, 140)


def random(*shape: int, seed: int = 0) -> Tensor:
    """A float64 tensor that wants a gradient."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def assert_equal(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Two functions of some tensors agree to float64's rounding, in value and in every gradient."""
    one, other = ours(*inputs), theirs(*inputs)
    assert one.isfinite() and one.shape == ()
    torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    found, expected = (torch.autograd.grad(value, inputs) for value in (one, other))
    for mine, reference in zip(found, expected, strict=True):
        assert mine.abs().sum() > 0
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-11)


def peer(name: str) -> Any:
    """A loss of sentence-transformers; the test is skipped where that is not installed."""
    return getattr(pytest.importorskip("sentence_transformers.sentence_transformer.losses"), name)

"""Losses as pure functions of tensors."""

from llm2enc.losses.losses import cross_entropy_sum, info_nce

__all__ = [
    "cross_entropy_sum",
    "info_nce",
]

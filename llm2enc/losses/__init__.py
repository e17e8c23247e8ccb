"""Losses as pure functions from tensors to one scalar: no model, no tokenizer, no logging."""

from llm2enc.losses.contrastive import info_nce
from llm2enc.losses.tokens import cross_entropy_sum, target_weights

__all__ = ["cross_entropy_sum", "info_nce", "target_weights"]

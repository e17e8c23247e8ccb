"""Losses as pure functions from tensors to one scalar: no model, no tokenizer, no logging."""

from llm2enc.losses.contrastive import info_nce
from llm2enc.losses.layout import Layout, negatives
from llm2enc.losses.tokens import cross_entropy_sum

__all__ = ["Layout", "cross_entropy_sum", "info_nce", "negatives"]

"""Losses as pure functions from tensors to one scalar: no model, no tokenizer, no logging."""

from llm2enc.losses.contrastive import info_nce
from llm2enc.losses.layers import espresso, two_d_matryoshka
from llm2enc.losses.tokens import cross_entropy_sum

__all__ = ["cross_entropy_sum", "espresso", "info_nce", "two_d_matryoshka"]

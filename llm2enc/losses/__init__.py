"""Losses as pure functions from tensors to one scalar: no model, no tokenizer, no logging."""

from llm2enc.losses.contrastive import Guide, info_nce, matryoshka
from llm2enc.losses.distillation import (
    distillation_kl,
    embedding_match,
    margin_mse,
    soft_cross_entropy,
    successive_cross_entropy,
)
from llm2enc.losses.layout import Layout, denominator, negatives
from llm2enc.losses.pair_scores import (
    angle,
    angle_similarity,
    cosent,
    cosine_mse,
    in_batch_pairs,
    margin_contrastive,
    softmax_classes,
    triplet,
)
from llm2enc.losses.spread import spread_out
from llm2enc.losses.tokens import cross_entropy_sum
from llm2enc.losses.vectors import unit

__all__ = [
    "Guide",
    "Layout",
    "angle",
    "angle_similarity",
    "cosent",
    "cosine_mse",
    "cross_entropy_sum",
    "denominator",
    "distillation_kl",
    "embedding_match",
    "in_batch_pairs",
    "info_nce",
    "margin_contrastive",
    "margin_mse",
    "matryoshka",
    "negatives",
    "soft_cross_entropy",
    "softmax_classes",
    "spread_out",
    "successive_cross_entropy",
    "triplet",
    "unit",
]

"""sentence-transformers, as its users call it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jobs import fill_adapter, gradients, read
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)

Run = Callable[[], dict[str, np.ndarray]]


def prepare(job: dict[str, Any]) -> Run:
    """The job as a function; everything is loaded."""
    dtype = {} if job["dtype"] == "shipped" else {"model_kwargs": {"dtype": job["dtype"]}}
    model = SentenceTransformer(job["model"], device="cpu", **dtype)
    if "max_tokens" in job:
        model.max_seq_length = job["max_tokens"]
    return {"encode": encode, "contrastive": contrastive, "simcse": simcse}[job["task"]](model, job)


def encode(model: SentenceTransformer, job: dict[str, Any]) -> Run:
    """Vectors in batches of 32 sorted by its own rule."""
    texts = read(job["texts"])
    return lambda: {"vectors": model.encode(texts, batch_size=32, convert_to_tensor=True).float().numpy()}


def contrastive(model: SentenceTransformer, job: dict[str, Any]) -> Run:
    """Loss and gradients of a step of CachedMultipleNegativesRankingLoss."""
    if job.get("adapter"):
        adapt(model, job["adapter"])
    queries, documents = map(list, zip(*read(job["pairs"]), strict=True))
    loss = CachedMultipleNegativesRankingLoss(model, scale=job["scale"], mini_batch_size=job["micro_batch"])
    return step(model, loss, queries, documents)


def simcse(model: SentenceTransformer, job: dict[str, Any]) -> Run:
    """Loss and gradients of a step of MultipleNegativesRankingLoss on (text, text). The first run has no dropout."""
    texts = read(job["texts"])
    run = step(model, MultipleNegativesRankingLoss(model, scale=job["scale"]), texts, texts)
    rates = iter([0.0])

    def with_dropout() -> dict[str, np.ndarray]:
        rate = next(rates, job["dropout"])
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = rate
        return run()

    return with_dropout


def step(model: SentenceTransformer, loss: torch.nn.Module, *columns: list[str]) -> Run:
    """A training step without its optimizer; tokenizing is part of it, as the collator would do it."""
    model.train()

    def run() -> dict[str, np.ndarray]:
        model.zero_grad(set_to_none=True)
        value = loss([model.preprocess(column) for column in columns], torch.zeros(len(columns[0])))
        value.backward()
        return {"loss": value.detach().reshape(1).numpy(), **gradients(model.named_parameters())}

    return run


def adapt(model: SentenceTransformer, weights: str) -> None:
    """A LoRA adapter of r 16 on every linear layer, with the given weights."""
    from peft import LoraConfig

    model.add_adapter(LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"))
    fill_adapter(model.named_parameters(), weights)

"""GritLM 1.0.2 as a worker of the benchmarks: `GritLM.encode` with its own batch size, in the given order."""

from collections.abc import Callable

import numpy as np
import torch
from jobs import read


def prepare(job: dict) -> Callable[[], dict[str, np.ndarray]]:
    """A function that encodes the texts: {"vectors": (B, D)}, float32 and of unit length."""
    if job["task"] != "encode":
        raise ValueError(f"GritLM has no task {job['task']!r} here; give encode")
    model = _bidirectional(job["model"], getattr(torch, job["dtype"]))
    texts = read(job["texts"])

    def run() -> dict[str, np.ndarray]:
        # No batch size: GritLM's own is 256, in the order of the texts, and that is what its users get.
        return {"vectors": model.encode(texts, max_length=job["max_tokens"])}

    return run


def _bidirectional(folder: str, dtype: torch.dtype):
    """A GritLM whose decoder attends both ways.

    `attn="bb"` works only with modelling files that GritLM's hub repositories carry and its package does not: a stock
    model refuses the `is_causal` it passes. LLM2Vec's bidirectional Mistral, which is on PyPI, takes their place.
    """
    from gritlm import GritLM
    from llm2vec.models import MistralBiModel

    model = GritLM(folder, mode="embedding", pooling_method="mean", attn=None, torch_dtype=dtype)
    model.model = MistralBiModel.from_pretrained(folder, torch_dtype=dtype).to(model.device).eval()
    model.tokenizer.model_input_names = ["input_ids", "attention_mask"]  # the decoder refuses token_type_ids
    return model

"""Tevatron 0.1.0 as a worker of the benchmarks: a step of its DenseModel with GradCache, as its GCTrainer makes it.

Its GCTrainer itself reads attributes that the Trainer of transformers 4.44 no longer has, so its body is called here:
GradCache over (model, model) with Tevatron's functions for splitting inputs, reading outputs, and the loss.
"""

import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from jobs import gradients, read


def prepare(job: dict) -> Callable[[], dict[str, np.ndarray]]:
    """A function that makes one step: {"loss": (1,), "gradient:<name>": array} for every parameter of the decoder."""
    if job["task"] != "contrastive":
        raise ValueError(f"Tevatron has no task {job['task']!r} here; give contrastive")
    from llm2vec.models import MistralBiModel
    from tevatron.loss import SimpleContrastiveLoss
    from tevatron.trainer import get_dense_rep, split_dense_inputs

    decoder = MistralBiModel.from_pretrained(job["model"], torch_dtype=getattr(torch, job["dtype"]))
    model = _dense_model(decoder).train()
    loss_function = SimpleContrastiveLoss(n_target=1)
    cache = _grad_cache()(
        models=[model, model],
        chunk_sizes=job["micro_batch"],
        # SimpleContrastiveLoss has no temperature.
        loss_fn=lambda queries, documents: loss_function(job["scale"] * queries, documents),
        split_input_fn=split_dense_inputs,
        get_rep_fn=get_dense_rep,
    )
    queries, documents = _collated(job)

    def run() -> dict[str, np.ndarray]:
        model.zero_grad(set_to_none=True)
        loss = cache({"query": queries}, {"passage": documents})
        return {"loss": loss.detach().numpy().reshape(1), **gradients(decoder.named_parameters())}

    return run


def _collated(job: dict) -> list[dict[str, torch.Tensor]]:
    """Queries and documents, each padded to the longest of the whole batch.

    Tevatron's 0.1.0 collator pads to a fixed width; to the longest is what later releases do, and never slower.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="right")
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # the decoder refuses token_type_ids
    sides = zip(*read(job["pairs"]), strict=True)
    options = {"padding": True, "truncation": True, "max_length": job["max_tokens"], "return_tensors": "pt"}
    return [dict(tokenizer(list(texts), **options)) for texts in sides]


def _dense_model(decoder: torch.nn.Module) -> torch.nn.Module:
    """Tevatron's DenseModel over one decoder for both sides, with unit mean vectors.

    Its own pooling is the first token; its decoder example overrides the same two methods to pool another way.
    """
    from tevatron.modeling import DenseModel

    class MeanDenseModel(DenseModel):
        def encode_query(self, qry):
            return self.encode_passage(qry)

        def encode_passage(self, psg):
            if psg is None:
                return None, None
            hidden = self.lm_p(**psg, return_dict=True).last_hidden_state  # (B, T, D)
            mask = psg["attention_mask"].unsqueeze(-1)  # (B, T, 1)
            mean = (hidden.float() * mask).sum(dim=1) / mask.sum(dim=1)  # (B, D)
            return hidden, torch.nn.functional.normalize(mean, dim=-1)

    return MeanDenseModel(lm_q=decoder, lm_p=decoder, train_args=SimpleNamespace(negatives_x_device=False))


def _grad_cache() -> type:
    """The class GradCache of gradcache 0.0.1.

    That release installs the package as `gradcache`, while its own modules and Tevatron import `grad_cache`.
    """
    import gradcache

    sys.modules["grad_cache"] = gradcache
    from grad_cache.grad_cache import GradCache

    return GradCache

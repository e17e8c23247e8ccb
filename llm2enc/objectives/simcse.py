"""Unsupervised SimCSE (arXiv 2104.08821, section 3): two dropout passes of a text are each other's positive.

A decoder of the Llama kind has no hidden dropout; the noise is attention dropout (`attention_dropout`, 0.3 in LLM2Vec)
and LoRA dropout. If neither is active, both views are equal and the loss is a floor that teaches nothing: that is an
error here, found at the first step.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from llm2enc import distributed
from llm2enc.data import RowBatch, text_batches
from llm2enc.encoder import Encoder
from llm2enc.gradcache import cached_backward
from llm2enc.losses import info_nce
from llm2enc.objectives.contrastive import ContrastiveBatch
from llm2enc.recipe import SimcseStage
from llm2enc.tokens import InputFormat


def batches(stage: SimcseStage, input_format: InputFormat, seed: int, start: int) -> Iterator[RowBatch]:
    """Texts, each batch from one source."""
    return text_batches(stage.data, stage.batch_size, seed, start)


def collate(rows: RowBatch, stage: SimcseStage, input_format: InputFormat, seed: int) -> ContrastiveBatch:
    """Every text twice, by the document template: first views are the queries, second views the documents."""
    count = len(rows.rows)
    own = distributed.share(2 * count)
    views = [rows.rows[i // 2] for i in own]
    return ContrastiveBatch(
        tokens=input_format.pack(views, max_tokens=stage.max_tokens),
        total=2 * count,
        queries=torch.arange(0, 2 * count, 2),
        documents=torch.arange(1, 2 * count, 2),
        positives=torch.arange(count),
        allowed=None,
        source=rows.source,
    )


def backward(encoder: Encoder, batch: ContrastiveBatch, stage: SimcseStage) -> dict[str, Tensor]:
    """Gradient of InfoNCE between the views. ValueError if the views do not differ."""
    metrics: dict[str, Tensor] = {}

    def loss(vectors: Tensor) -> Tensor:
        first, second = vectors[0::2], vectors[1::2]
        if torch.equal(first, second):
            raise ValueError(
                "both SimCSE views of every text are equal: no dropout is active. Set `attention_dropout` (LLM2Vec: 0.3) "
                "or `lora.dropout` in this stage"
            )
        metrics["view_cosine"] = cosine_similarity(first, second).mean().detach()
        return info_nce(first, second, batch.positives.to(vectors.device), stage.temperature)

    tokens = batch.tokens.to(encoder.device)
    value = cached_backward(encoder, tokens, batch.total, loss, stage.mini_batch_tokens, stage.graph_tokens)
    return {"loss": value, **metrics}

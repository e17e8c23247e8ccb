"""Unsupervised SimCSE (arXiv 2104.08821, section 3): two dropout passes of a text are each other's positive.

A decoder of the Llama kind has no hidden dropout; the noise is attention dropout (`attention_dropout`, 0.3 in LLM2Vec)
and LoRA dropout. If neither is active, both views are equal and there is nothing to learn from them: that is an error
here, found at the first step.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from llm2enc.data import RowBatch, row_batches
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.losses import info_nce
from llm2enc.recipe import SimcseStage
from llm2enc.text import InputFormat
from llm2enc.training.gradcache import cached_backward
from llm2enc.training.microbatch import BatchPartition
from llm2enc.training.objectives.contrastive import ContrastiveBatch


def batches(stage: SimcseStage, input_format: InputFormat, seed: int, start: int) -> Iterator[RowBatch]:
    """Texts, each batch from one source."""
    return row_batches(str, stage.data, stage.batch_size, seed, start, stage.mixture_alpha)


def collate(rows: RowBatch, stage: SimcseStage, input_format: InputFormat, seed: int) -> ContrastiveBatch:
    """Every text twice, by the document template: first views are the queries, second views the documents."""
    count = len(rows.rows)
    partition = BatchPartition(2 * count, stage.rng_shards, seed, rows.step)
    views = [rows.rows[i // 2] for i in partition.rows()]
    return ContrastiveBatch(
        tokens=input_format.pack(views, max_tokens=stage.max_tokens),
        partition=partition,
        queries=torch.arange(0, 2 * count, 2),
        documents=torch.arange(1, 2 * count, 2),
        positives=torch.arange(count),
        allowed=_allowed(rows.rows),
        source=rows.source,
    )


def backward(encoder: Encoder, batch: ContrastiveBatch, stage: SimcseStage) -> dict[str, Tensor]:
    """Gradient of InfoNCE between the views. ValueError if nothing makes them differ."""
    metrics: dict[str, Tensor] = {}
    tokens = batch.tokens.to(encoder.device)
    allowed = None if batch.allowed is None else batch.allowed.to(encoder.device)
    *_, last = batch.partition.micro_batches(tokens.lengths, stage.micro_batch_tokens)

    def loss(vectors: Tensor) -> Tensor:
        # The vectors cannot tell: without dropout views may differ by rounding, and under a fresh adapter, whose B is
        # zero, LoRA dropout changes nothing yet. Dropout draws random numbers, and nothing else does.
        if not last.rng_was_used(vectors.device):
            raise InputError(
                "both SimCSE views of every text are equal: no dropout is active. Set `attention_dropout` (LLM2Vec: 0.3) "
                "or `lora.dropout` in this stage"
            )
        first, second = vectors[0::2], vectors[1::2]
        # A fresh adapter's own dropout shows after its first update, which a warmup puts off to the second step.
        if batch.partition.step > 1 and torch.equal(first, second):
            raise InputError(
                "both SimCSE views of every text are equal although dropout is active: it does not reach the vectors. Set "
                "`attention_dropout` (LLM2Vec: 0.3), or let `lora.targets` name layers that the vectors depend on"
            )
        metrics["view_cosine"] = cosine_similarity(first, second).mean().detach()
        return info_nce(first, second, batch.positives.to(vectors.device), stage.temperature, allowed)

    sizes = stage.micro_batch_tokens, stage.activation_tokens
    value = cached_backward(encoder, tokens, batch.partition, loss, *sizes, together=encoder.backbone.sharded)
    return {"loss": value, **metrics}


def vectors_per_row(stage: SimcseStage) -> int:
    """The two views of a text."""
    return 2


def _allowed(texts: Sequence[str]) -> Tensor | None:
    """(B, B) whether the second view of one text is a negative of another: equal texts are none. None: all are."""
    numbers = {text: number for number, text in enumerate(texts)}
    if len(numbers) == len(texts):
        return None
    own = torch.tensor([numbers[text] for text in texts])
    return own[:, None] != own[None, :]

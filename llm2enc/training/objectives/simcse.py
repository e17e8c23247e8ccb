"""Unsupervised SimCSE (arXiv 2104.08821, section 3): two dropout passes of a text are each other's positive.

A decoder of the Llama kind has no hidden dropout; the noise is attention dropout (`attention_dropout`, 0.3 in LLM2Vec)
and LoRA dropout. If neither is active, both views are equal and there is nothing to learn from them: that is an error
here, found at the first step.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llm2enc.data import RowBatch, row_batches
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.losses import Layout
from llm2enc.recipe import SimcseStage
from llm2enc.text import InputFormat
from llm2enc.training.microbatch import BatchPartition
from llm2enc.training.objectives import contrastive
from llm2enc.training.objectives.contrastive import ContrastiveBatch


def batches(stage: SimcseStage, input_format: InputFormat, seed: int, start: int) -> Iterator[RowBatch]:
    """Texts, each batch from one source."""
    return row_batches(str, stage.data, stage.batch_size, seed, start, stage.mixture_alpha)


def collate(rows: RowBatch, stage: SimcseStage, input_format: InputFormat, seed: int) -> ContrastiveBatch:
    """Every text twice, by the document template: first views are the queries, second views the documents."""
    count = len(rows.rows)
    partition = BatchPartition(2 * count, stage.rng_shards, seed, rows.step)
    equal = _equal(rows.rows) if stage.loss.masks.duplicates else None
    views = [rows.rows[i // 2] for i in partition.rows()]
    return ContrastiveBatch(
        tokens=input_format.pack(views, max_tokens=stage.max_tokens),
        partition=partition,
        queries=torch.arange(0, 2 * count, 2),
        documents=torch.arange(1, 2 * count, 2),
        layout=Layout(
            positives=torch.arange(count),
            owners=torch.arange(count),
            excluded=equal,
            excluded_queries=equal,
        ),
        in_batch=True,
        loss=stage.loss,
        source=rows.source,
    )


def backward(encoder: Encoder, batch: ContrastiveBatch, stage: SimcseStage) -> dict[str, Tensor]:
    """Gradient of the loss between the views. ValueError if nothing makes them differ."""
    *_, last = batch.partition.micro_batches(batch.tokens.lengths, stage.micro_batch_tokens)

    def check(vectors: Tensor) -> None:
        # The vectors cannot tell: without dropout views may differ by rounding, and under a fresh adapter, whose B is
        # zero, LoRA dropout changes nothing yet. Dropout draws random numbers, and nothing else does.
        if not last.rng_was_used(vectors.device):
            raise InputError(
                "both SimCSE views of every text are equal: no dropout is active. Set `attention_dropout` (LLM2Vec: 0.3) "
                "or `lora.dropout` in this stage"
            )
        # A fresh adapter's own dropout shows after its first update, which a warmup puts off to the second step.
        if batch.partition.step > 1 and torch.equal(vectors[0::2], vectors[1::2]):
            raise InputError(
                "both SimCSE views of every text are equal although dropout is active: it does not reach the vectors. Set "
                "`attention_dropout` (LLM2Vec: 0.3), or let `lora.targets` name layers that the vectors depend on"
            )

    metrics = contrastive.backward(encoder, batch, stage, check)
    metrics["view_cosine"] = metrics.pop("positive_cosine")
    return metrics


def vectors_per_row(stage: SimcseStage) -> int:
    """The two views of a text."""
    return 2


def _equal(texts: Sequence[str]) -> Tensor | None:
    """(B, B) which texts are equal; None if all differ."""
    numbers = {text: number for number, text in enumerate(texts)}
    if len(numbers) == len(texts):
        return None
    own = torch.tensor([numbers[text] for text in texts])
    return own[:, None] == own[None, :]

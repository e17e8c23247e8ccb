"""Two texts and a label: a weighted sum of losses that make similarities follow scores, or tell classes apart.

The texts of a batch stand pair by pair: first0 second0 | first1 second1 | ...
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llm2enc.data import RowBatch, ScoredPair, row_batches
from llm2enc.encoding import Encoder
from llm2enc.errors import DataError
from llm2enc.recipe import PairScores, PairScoresStage
from llm2enc.text import InputFormat, Tokens
from llm2enc.training.gradcache import cached_backward
from llm2enc.training.microbatch import BatchPartition
from llm2enc.training.objectives.inputs import TextInput, pack
from llm2enc.training.objectives.terms import SOFTMAX, linear, pair_score
from llm2enc.training.teachers import Teachers


@dataclass(frozen=True)
class PairScoresBatch:
    """This process's texts, and the labels of all pairs of the global batch."""

    tokens: Tokens
    partition: BatchPartition  # of all texts over the processes
    labels: Tensor  # (B,) float64
    source: str

    @property
    def num_tokens(self) -> int:
        return len(self.tokens.ids)

    def describe(self) -> dict[str, str]:
        """What the table before step 1 shows of this batch: the labels, from the lowest to the highest."""
        return {"labels": f"{len(self.labels.unique())} from {self.labels.min():g} to {self.labels.max():g}"}


def batches(stage: PairScoresStage, input_format: InputFormat, seed: int, start: int) -> Iterator[RowBatch]:
    """Pairs with a score, each batch from one source."""
    return row_batches(ScoredPair, stage.data, stage.batch_size, seed, start, stage.mixture_alpha)


def collate(rows: RowBatch, stage: PairScoresStage, input_format: InputFormat, seed: int) -> PairScoresBatch:
    """Tokens of this process's texts: the first by the query template; the second by that of documents, or, if it carries
    an instruction (`symmetric`), by that of queries too. DataError for labels that a loss cannot take."""
    pairs: Sequence[ScoredPair] = rows.rows
    for loss in stage.loss.pair_scores:
        _check_labels(loss, [pair.score for pair in pairs], rows.source)
    inputs = [
        given
        for pair in pairs
        for given in (
            TextInput(pair.first, pair.instruction, True),
            TextInput(pair.second, pair.second_instruction, False),
        )
    ]
    partition = BatchPartition(len(inputs), stage.rng_shards, seed, rows.step)
    return PairScoresBatch(
        tokens=pack(input_format, [inputs[place] for place in partition.rows()], stage.max_tokens),
        partition=partition,
        labels=torch.tensor([pair.score for pair in pairs], dtype=torch.float64),
        source=rows.source,
    )


def backward(encoder: Encoder, batch: PairScoresBatch, stage: PairScoresStage) -> dict[str, Tensor]:
    """Gradient of the weighted sum over the global batch."""
    metrics: dict[str, Tensor] = {}

    def loss(vectors: Tensor) -> Tensor:
        first, second = vectors[0::2], vectors[1::2]
        labels = batch.labels.to(vectors.device, vectors.dtype)
        values = {
            spec.kind: spec.weight * pair_score(encoder, spec, first, second, labels) for spec in stage.loss.pair_scores
        }
        if len(values) > 1:
            metrics.update({name: value.detach() for name, value in values.items()})
        return torch.stack(list(values.values())).sum()

    tokens = batch.tokens.to(encoder.device)
    how = stage.micro_batch_tokens, stage.activation_tokens, encoder.backbone.sharded, encoder.auxiliary
    value = cached_backward(encoder, tokens, batch.partition, loss, *how)
    return {"loss": value, **metrics}


def vectors_per_row(stage: PairScoresStage) -> int:
    """The two texts of a pair."""
    return 2


def auxiliary(encoder: Encoder, stage: PairScoresStage, teachers: Teachers, seed: int) -> dict[str, nn.Module]:
    """SBERT's classification layer, if there is a softmax loss."""
    found: dict[str, nn.Module] = {}
    for loss in stage.loss.pair_scores:
        if loss.kind == "softmax":
            found[SOFTMAX] = linear(3 * encoder.dimensions, loss.classes, seed, encoder.device)
    return found


def _check_labels(loss: PairScores, labels: Sequence[float], source: str) -> None:
    """DataError for a label that a loss has no meaning for."""
    if loss.kind == "cosine_mse":
        low, high = loss.labels
        bad, expected = [y for y in labels if not low <= y <= high], f"{low:g} to {high:g} (its `labels`)"
    elif loss.kind == "softmax":
        bad, expected = [y for y in labels if y not in range(loss.classes)], f"whole numbers below {loss.classes}"
    elif loss.kind in ("contrastive", "in_batch"):
        bad, expected = [y for y in labels if y not in (0, 1)], "0 or 1"
    else:
        return
    if bad:
        raise DataError(f"{source} has the label {bad[0]:g}; `{loss.kind}` takes {expected}")

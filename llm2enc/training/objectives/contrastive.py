"""Supervised contrastive training: InfoNCE over in-batch and hard negatives, with the gradient of the global batch.

The texts of a batch stand row by row, so that processes get equal work:

    row      q0 p0 n00 | q1 p1 n10 n11 | q2 p2 | ...
    queries   0            3               7
    documents    1  2         4  5   6        8        columns of the logits
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from llm2enc.data import Pair, RowBatch, row_batches
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.losses import info_nce
from llm2enc.recipe import ContrastiveStage
from llm2enc.text import Example, InputFormat, Tokens, concatenate
from llm2enc.training.gradcache import cached_backward
from llm2enc.training.microbatch import BatchPartition

PIECE = 256  # texts tokenized at a time: what a tokenizer returns takes far more memory than the tokens


@dataclass(frozen=True)
class ContrastiveBatch:
    """This process's texts, and how all texts of the global batch relate."""

    tokens: Tokens
    partition: BatchPartition  # of all texts over the processes
    queries: Tensor  # (Q,) which of them are queries
    documents: Tensor  # (N,) which are documents
    positives: Tensor  # (Q,) the document of each query, as an index into `documents`
    allowed: Tensor | None  # (Q, N) bool, which documents are negatives; None: all
    source: str
    duplicates: float = 0.0  # share of the queries whose positive's text is among their negatives

    @property
    def num_tokens(self) -> int:
        return len(self.tokens.ids)

    def describe(self) -> dict[str, str]:
        """What the table before step 1 shows of this batch: the mean number of negatives of a query."""
        negatives = len(self.documents) - 1 if self.allowed is None else self.allowed.sum(1).float().mean().item()
        return {"negatives per query": f"{negatives:.0f}"}


def batches(stage: ContrastiveStage, input_format: InputFormat, seed: int, start: int) -> Iterator[RowBatch]:
    """Query-document pairs, each batch from one source."""
    return row_batches(Pair, stage.data, stage.batch_size, seed, start, stage.mixture_alpha)


def collate(rows: RowBatch, stage: ContrastiveStage, input_format: InputFormat, seed: int) -> ContrastiveBatch:
    """Tokens of this process's texts; queries by the query template, documents by the document template."""
    generator = np.random.default_rng((seed, rows.step))
    pairs = [_with_negatives(pair, stage.hard_negatives, generator) for pair in rows.rows]
    if not rows.in_batch_negatives and not any(pair.negatives for pair in pairs):
        raise InputError(
            f"{rows.source} has in_batch_negatives: false, and a batch without a single hard negative: there is nothing "
            "to learn from; add negatives, raise hard_negatives, or allow in-batch negatives"
        )
    inputs = _lay_out(pairs)
    is_query = np.array([found.is_query for found in inputs])
    partition = BatchPartition(len(inputs), stage.rng_shards, seed, rows.step)
    own = [inputs[place] for place in partition.rows()]
    if stage.in_context_examples:
        own = [_with_examples(found, pairs, stage, input_format, (seed, rows.step)) for found in own]
    if rows.unique_ids:
        ids = [f" {rows.step * len(pairs) + row}" for row in range(len(pairs))]
        own = [found._replace(mark=ids[found.row]) for found in own]
        pairs = [_marked(pair, mark) for pair, mark in zip(pairs, ids, strict=True)]  # equal labels differ from here on
    queries = torch.from_numpy(np.flatnonzero(is_query))
    documents = torch.from_numpy(np.flatnonzero(~is_query))
    allowed = _allowed(pairs, rows.in_batch_negatives, stage.mask_duplicates)
    return ContrastiveBatch(
        tokens=_pack(input_format, own, stage.max_tokens),
        partition=partition,
        queries=queries,
        documents=documents,
        positives=torch.searchsorted(documents, queries + 1),  # a positive stands right behind its query
        allowed=allowed,
        source=rows.source,
        duplicates=_duplicates(pairs, allowed),
    )


def backward(encoder: Encoder, batch: ContrastiveBatch, stage: ContrastiveStage) -> dict[str, Tensor]:
    """Gradient of InfoNCE over the global batch."""
    metrics: dict[str, Tensor] = {}
    allowed = None if batch.allowed is None else batch.allowed.to(encoder.device)

    def loss(vectors: Tensor) -> Tensor:
        queries = vectors[batch.queries.to(vectors.device)]
        documents = vectors[batch.documents.to(vectors.device)]
        positives = batch.positives.to(vectors.device)
        metrics["positive_cosine"] = cosine_similarity(queries, documents[positives]).mean().detach()
        return info_nce(queries, documents, positives, stage.temperature, allowed)

    tokens = batch.tokens.to(encoder.device)
    sizes = stage.micro_batch_tokens, stage.activation_tokens
    value = cached_backward(encoder, tokens, batch.partition, loss, *sizes, together=encoder.backbone.sharded)
    return {"loss": value, **metrics, "duplicate_positives": torch.tensor(batch.duplicates)}


def vectors_per_row(stage: ContrastiveStage) -> int:
    """The most vectors of a row: its query, its positive and `hard_negatives` negatives."""
    return 2 + stage.hard_negatives


def _with_negatives(pair: Pair, count: int, generator: np.random.Generator) -> Pair:
    """The pair with one of its positives, and at most `count` of its hard negatives, drawn without repetition."""
    if pair.extra_positives:
        right = (pair.positive, *pair.extra_positives)
        drawn = int(generator.integers(len(right)))
        pair = replace(pair, positive=right[drawn], extra_positives=right[:drawn] + right[drawn + 1 :])
    if len(pair.negatives) > count:
        chosen = sorted(generator.choice(len(pair.negatives), size=count, replace=False))
        pair = replace(pair, negatives=tuple(pair.negatives[i] for i in chosen))
    return pair


class _Input(NamedTuple):
    """A text of the batch, and what is read with it."""

    text: str
    instruction: str
    is_query: bool
    row: int
    mark: str = ""
    examples: tuple[Example, ...] = ()


def _lay_out(pairs: Sequence[Pair]) -> list[_Input]:
    """The texts row by row."""
    return [
        _Input(text, instruction, is_query, row)
        for row, pair in enumerate(pairs)
        for text, instruction, is_query in (
            (pair.query, pair.instruction, True),
            *((document, pair.document_instruction, False) for document in (pair.positive, *pair.negatives)),
        )
    ]


def _with_examples(
    found: _Input, pairs: Sequence[Pair], stage: ContrastiveStage, input_format: InputFormat, key: tuple[int, int]
) -> _Input:
    """A query with other rows of the batch as in-context examples, as many as fit; a document as it is.

    key  of the draws, seed and step; they differ from row to row, and from the draws of negatives
    """
    if not found.is_query:
        return found
    generator = np.random.default_rng((*key, found.row + 1))
    others = [pair for row, pair in enumerate(pairs) if row != found.row]
    count = min(int(generator.integers(stage.in_context_examples + 1)), len(others))
    chosen = [others[place] for place in generator.choice(len(others), count, replace=False).tolist()] if count else []
    examples = [Example(pair.instruction, pair.query, pair.positive) for pair in chosen]
    return found._replace(examples=input_format.fitting(examples, found.instruction, stage.max_tokens))


def _marked(pair: Pair, mark: str) -> Pair:
    """The pair with what stands behind its texts as a part of them."""

    def marked(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(text + mark for text in texts)

    query, positive = marked((pair.query, pair.positive))
    others = {"negatives": marked(pair.negatives), "extra_positives": marked(pair.extra_positives)}
    return replace(pair, query=query, positive=positive, **others)


def _pack(input_format: InputFormat, inputs: Sequence[_Input], max_tokens: int | None) -> Tokens:
    """The tokens of the inputs. A document with an instruction (a symmetric task) takes the query template, as it will
    at encoding time."""
    asking = np.array([found.is_query or bool(found.instruction) for found in inputs])
    order = np.argsort(~asking, kind="stable")  # those that ask first
    split = int(asking.sum())
    packed = []
    for part, role in ((order[:split], "query"), (order[split:], "document")):
        for piece in np.split(part, range(PIECE, len(part), PIECE)) if len(part) else ():
            some = [inputs[place] for place in piece]
            texts, instructions, _, _, marks, examples = zip(*some, strict=True)
            packed.append(input_format.pack(texts, instructions, role, max_tokens, examples=examples, marks=marks))
    return concatenate(packed).select(torch.from_numpy(np.argsort(order)))


def _allowed(pairs: Sequence[Pair], in_batch: bool, mask_duplicates: bool) -> Tensor | None:
    """(Q, N) which documents are negatives of which query; None if all are.

    No positive of a row is a negative of it, in whatever row of the batch its text stands.
    """
    several = [row for row, pair in enumerate(pairs) if pair.extra_positives]
    if in_batch and not mask_duplicates and not several:
        return None
    owners = np.array([row for row, pair in enumerate(pairs) for _ in (pair.positive, *pair.negatives)])
    allowed = np.ones((len(pairs), len(owners)), dtype=bool)
    if not in_batch:
        allowed &= owners[None, :] == np.arange(len(pairs))[:, None]
    documents = [text for pair in pairs for text in (pair.positive, *pair.negatives)]
    for row in several:
        known = {pairs[row].positive, *pairs[row].extra_positives}
        allowed[row] &= np.array([document not in known for document in documents])
    if mask_duplicates:
        right: dict[str, set[str]] = {}
        for pair in pairs:
            right.setdefault(pair.query, set()).update((pair.positive, *pair.extra_positives))
        for row, pair in enumerate(pairs):
            # A query is no negative of itself either: symmetric tasks list a pair in both directions.
            known = right[pair.query] | {pair.query}
            allowed[row] &= np.array([document not in known for document in documents])
    return torch.from_numpy(allowed)


def _duplicates(pairs: Sequence[Pair], allowed: Tensor | None) -> float:
    """Share of the rows whose positive, as a text, is also a document that counts as a negative for them."""
    places: dict[str, list[int]] = {}
    column = 0
    own = []
    for pair in pairs:
        own.append(column)
        for text in (pair.positive, *pair.negatives):
            places.setdefault(text, []).append(column)
            column += 1
    found = [
        any(place != own[row] and (allowed is None or bool(allowed[row, place])) for place in places[pair.positive])
        for row, pair in enumerate(pairs)
    ]
    return sum(found) / len(found)

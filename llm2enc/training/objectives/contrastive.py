"""Supervised contrastive training: a sum of named terms over the vectors of the global batch, InfoNCE the first of them.

The texts of a batch stand row by row, so that processes get equal work:

    row      q0 p0 n00 | q1 p1 n10 n11 | q2 p2 | ...
    queries   0            3               7
    documents    1  2         4  5   6        8        columns of the logits
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from llm2enc.data import Pair, RowBatch, row_batches
from llm2enc.encoding import Encoder
from llm2enc.errors import DataError, InputError
from llm2enc.losses import Guide, Layout, denominator
from llm2enc.recipe import ContrastiveStage, LearnedTemperature, LossSpec, SimcseStage, TeacherSpec
from llm2enc.text import InputFormat, Tokens
from llm2enc.training.gradcache import cached_backward
from llm2enc.training.microbatch import BatchPartition
from llm2enc.training.objectives import terms as other_terms
from llm2enc.training.objectives.denominator import TEMPERATURE, Temperature, Term, contrastive_term, temperature_of
from llm2enc.training.objectives.inputs import inputs_of, pack, row_marks, with_examples, with_mark
from llm2enc.training.objectives.layers import over_layers
from llm2enc.training.teachers import Lesson, Teachers


@dataclass(frozen=True)
class ContrastiveBatch:
    """This process's texts, and how all texts of the global batch relate."""

    tokens: Tokens
    partition: BatchPartition  # of all texts over the processes
    queries: Tensor  # (Q,) which of them are queries
    documents: Tensor  # (N,) which are documents
    layout: Layout  # which documents belong to which query
    in_batch: bool  # whether texts of other rows are negatives
    loss: LossSpec
    source: str
    duplicates: float = 0.0  # share of the queries whose positive's text is among their negatives
    texts: tuple[str, ...] = ()  # of the global batch, as they are in the data
    scores: Tensor | None = None  # (N,) of each document with its query, from the rows; None where they are not read
    lessons: Mapping[TeacherSpec, Lesson] = field(default_factory=dict)  # what the teachers say of the global batch

    @property
    def num_tokens(self) -> int:
        return len(self.tokens.ids)

    def describe(self) -> dict[str, str]:
        """What the table before step 1 shows of this batch: the mean number of negatives of a query."""
        loss = self.loss
        blocks = denominator(
            self.layout, self.in_batch, loss.hard_negatives, loss.queries_as_negatives, loss.documents_as_negatives,
            loss.reverse_rows == "joint",
        )  # fmt: skip
        mean = sum(int(block.sum()) for block in blocks.values()) / len(self.queries)
        return {"negatives per query": f"{mean:.0f}"}


def batches(stage: ContrastiveStage, input_format: InputFormat, seed: int, start: int) -> Iterator[RowBatch]:
    """Query-document pairs, each batch from one source."""
    return row_batches(Pair, stage.data, stage.batch_size, seed, start, stage.mixture_alpha, stage.reads_scores)


def collate(rows: RowBatch, stage: ContrastiveStage, input_format: InputFormat, seed: int) -> ContrastiveBatch:
    """Tokens of this process's texts; queries by the query template, documents by the document template."""
    generator = np.random.default_rng((seed, rows.step))
    pairs = [_with_negatives(pair, stage.hard_negatives, generator) for pair in rows.rows]
    loss = stage.loss
    in_batch = rows.in_batch_negatives and loss.in_batch
    if not in_batch and (loss.hard_negatives == "none" or not any(pair.negatives for pair in pairs)):
        raise InputError(
            f"{rows.source} has {'in_batch_negatives' if loss.in_batch else 'loss.in_batch'}: false, and a batch without a "
            "single hard negative: there is nothing to learn from; add negatives, raise hard_negatives, or allow in-batch "
            "negatives"
        )
    if loss.needs_negatives and not any(pair.negatives for pair in pairs):
        raise DataError(
            f"{rows.source} has a batch without a single hard negative, and `{loss.needs_negatives}` compares "
            "documents of one row; add negatives"
        )
    marks = row_marks(rows)
    inputs = [given._replace(mark=marks[given.row]) for given in inputs_of(pairs)]
    partition = BatchPartition(len(inputs), stage.rng_shards, seed, rows.step)
    own = [inputs[place] for place in partition.rows()]
    if stage.in_context_examples:
        own = [with_examples(given, pairs, stage, input_format, seed, rows.step) for given in own]
    is_query = np.array([given.is_query for given in inputs])
    told_apart = [with_mark(pair, mark) for pair, mark in zip(pairs, marks, strict=True)]
    queries = torch.from_numpy(np.flatnonzero(is_query))
    documents = torch.from_numpy(np.flatnonzero(~is_query))
    known = _known(told_apart, loss.masks.duplicates)
    return ContrastiveBatch(
        tokens=pack(input_format, own, stage.max_tokens),
        partition=partition,
        queries=queries,
        documents=documents,
        layout=Layout(
            positives=torch.searchsorted(documents, queries + 1),  # a positive stands right behind its query
            owners=torch.searchsorted(queries, documents) - 1,
            excluded=_marked(known, [text for pair in told_apart for text in (pair.positive, *pair.negatives)]),
            excluded_queries=_marked(known, [pair.query for pair in told_apart]) if loss.queries_as_negatives else None,
        ),
        in_batch=in_batch,
        loss=loss,
        source=rows.source,
        duplicates=_duplicates(told_apart, in_batch, loss),
        texts=tuple(given.text for given in inputs),
        scores=_scores(pairs, rows.source) if stage.reads_scores else None,
    )


def terms(encoder: Encoder, batch: ContrastiveBatch) -> dict[str, Term]:
    """The terms whose sum is the loss, by the names under which they are logged."""
    loss, found = batch.loss, {}
    if loss.weight:
        where = batch.in_batch, _guide(batch), batch.partition.seed, batch.partition.step
        own = contrastive_term(loss, batch.layout.to(encoder.device), temperature_of(encoder, loss), *where)
        found["contrastive"] = lambda queries, documents: loss.weight * own(queries, documents)
    return found | other_terms.terms(encoder, batch)


def similarities(stage: ContrastiveStage | SimcseStage, layout: Layout) -> Term:
    """InfoNCE of the stage, for its memory and operations: no guide, which changes neither much, and any temperature."""
    return contrastive_term(stage.loss, layout, 1.0)


def _guide(batch: ContrastiveBatch) -> Guide | None:
    spec = batch.loss.masks.guide
    if spec is None:
        return None
    vectors = batch.lessons[spec.teacher].vectors
    assert vectors is not None  # the recipe allows no cross-encoder here
    queries, documents = (vectors[rows.to(vectors.device)] for rows in (batch.queries, batch.documents))
    return Guide(queries, documents, spec.margin, spec.kind == "relative")


def backward(
    encoder: Encoder,
    batch: ContrastiveBatch,
    stage: ContrastiveStage | SimcseStage,
    check: Callable[[Tensor], None] = lambda vectors: None,
) -> dict[str, Tensor]:
    """Gradient of the loss of the global batch.

    check  looks at all vectors (total, D) before the loss, and may raise
    """
    metrics: dict[str, Tensor] = {}
    parts = terms(encoder, batch)
    if TEMPERATURE in encoder.auxiliary:
        metrics[TEMPERATURE] = encoder.auxiliary[TEMPERATURE]().detach()

    def loss(vectors: Tensor) -> Tensor:
        queries, documents = (vectors[rows.to(vectors.device)] for rows in (batch.queries, batch.documents))
        positives = documents[batch.layout.positives.to(vectors.device)]
        metrics["positive_cosine"] = cosine_similarity(queries, positives).mean().detach()
        values = {name: term(queries, documents) for name, term in parts.items()}
        if len(values) > 1:
            metrics.update({name: value.detach() for name, value in values.items()})
        return torch.stack(list(values.values())).sum()

    encode, whole = over_layers(encoder, batch.loss.layers, batch.partition, loss)

    def checked(vectors: Tensor) -> Tensor:
        check(vectors[:, : encoder.dimensions])  # of the last layer, if there are several
        return whole(vectors)

    tokens = batch.tokens.to(encoder.device)
    how = stage.micro_batch_tokens, stage.activation_tokens, encoder.backbone.sharded, encoder.auxiliary
    value = cached_backward(encode, tokens, batch.partition, checked, *how)
    return {"loss": value, **metrics, "duplicate_positives": torch.tensor(batch.duplicates)}


def teachers(stage: ContrastiveStage) -> tuple[TeacherSpec, ...]:
    """The models that the stage asks about its texts."""
    asked = (stage.loss.soft_labels, stage.loss.embedding_match, stage.loss.masks.guide)
    return tuple(dict.fromkeys(term.teacher for term in asked if term is not None and term.teacher is not None))


def taught(batch: ContrastiveBatch, teachers: Teachers, device: torch.device) -> ContrastiveBatch:
    """The batch with what the teachers say of its texts."""
    queries, documents, owners = (rows.tolist() for rows in (batch.queries, batch.documents, batch.layout.owners))
    step = batch.partition.step
    return replace(batch, lessons=teachers.lessons(batch.texts, queries, documents, owners, step, device))


def auxiliary(
    encoder: Encoder, stage: ContrastiveStage | SimcseStage, teachers: Teachers, seed: int
) -> dict[str, nn.Module]:
    """A temperature that trains, and the layer between our vectors and the teacher's, if there are. InputError if their
    widths differ without it, and for Matryoshka widths that the encoder does not have."""
    loss, ours, found = stage.loss, encoder.dimensions, {}
    if loss.matryoshka is not None and max(loss.matryoshka.dims) > ours:
        raise InputError(f"loss.matryoshka asks for {max(loss.matryoshka.dims)} coordinates, and vectors have {ours}")
    if isinstance(loss.temperature, LearnedTemperature):
        found[TEMPERATURE] = Temperature(loss.temperature).to(encoder.device)
    if (match := loss.embedding_match) is None:
        return found
    theirs = teachers.width(match.teacher)
    if match.projection:
        found[other_terms.PROJECTION] = other_terms.linear(ours, theirs, seed, encoder.device)
    elif ours != theirs:
        raise InputError(
            f"embedding_match: vectors of {match.teacher.model} have {theirs} numbers, ours {ours}; set `projection: true`, "
            "or give the recipe a head of that width"
        )
    return found


def vectors_per_row(stage: ContrastiveStage) -> int:
    """The most vectors of a row: its query, its positive and `hard_negatives` negatives."""
    return 2 + stage.hard_negatives


def _with_negatives(pair: Pair, count: int, generator: np.random.Generator) -> Pair:
    """The pair with one of its positives, and at most `count` of its hard negatives, drawn without repetition."""
    if pair.extra_positives:
        right = (pair.positive, *pair.extra_positives)
        drawn = int(generator.integers(len(right)))
        order = [drawn, *range(drawn), *range(drawn + 1, len(right))]
        first, *extra = (right[place] for place in order)
        scores = tuple(pair.positive_scores[place] for place in order) if pair.positive_scores else ()
        pair = replace(pair, positive=first, extra_positives=tuple(extra), positive_scores=scores)
    if len(pair.negatives) > count:
        chosen = sorted(generator.choice(len(pair.negatives), size=count, replace=False))
        texts = tuple(pair.negatives[place] for place in chosen)
        scores = tuple(pair.negative_scores[place] for place in chosen) if pair.negative_scores else ()
        pair = replace(pair, negatives=texts, negative_scores=scores)
    return pair


def _scores(pairs: Sequence[Pair], source: str) -> Tensor:
    """(N,) the scores of the rows' documents. DataError for a row that does not have them."""
    found: list[float] = []
    for pair in pairs:
        if not pair.positive_scores or len(pair.negative_scores) < len(pair.negatives):
            raise DataError(
                f"{source} has a row without scores of its documents ({pair.query!r:.80}), from which `soft_labels` without "
                "a teacher learns. Name the columns, `columns: {positive_scores: ..., negative_scores: ...}`, or a teacher"
            )
        found += [pair.positive_scores[0], *pair.negative_scores]
    return torch.tensor(found)


def _known(pairs: Sequence[Pair], mask_duplicates: bool) -> list[set[str]]:
    """The texts that are no negatives of each row, wherever in the batch they stand: several positives of a row, or all
    that is right for its query in any row."""
    if not mask_duplicates:
        return [{pair.positive, *pair.extra_positives} if pair.extra_positives else set() for pair in pairs]
    right: dict[str, set[str]] = {}
    for pair in pairs:
        right.setdefault(pair.query, set()).update((pair.positive, *pair.extra_positives))
    # A query is no negative of itself either: symmetric tasks list a pair in both directions.
    return [right[pair.query] | {pair.query} for pair in pairs]


def _marked(known: Sequence[set[str]], texts: Sequence[str]) -> Tensor | None:
    """(Q, len(texts)) bool, which of the texts each row knows; None if no row knows any."""
    places: dict[str, list[int]] = {}
    for column, text in enumerate(texts):
        places.setdefault(text, []).append(column)
    found = [(row, column) for row, own in enumerate(known) for text in own for column in places.get(text, ())]
    if not found:
        return None
    marked = torch.zeros(len(known), len(texts), dtype=torch.bool)
    marked[tuple(torch.tensor(found).T)] = True
    return marked


def _duplicates(pairs: Sequence[Pair], in_batch: bool, loss: LossSpec) -> float:
    """Share of the rows whose positive, as a text, is also a document that counts as a negative for them."""
    if loss.masks.duplicates:
        return 0.0
    places: dict[str, set[int]] = {}
    for row, pair in enumerate(pairs):
        for text in (pair.positive, *(pair.negatives if loss.hard_negatives == "all" else ())):
            places.setdefault(text, set()).add(row)
    found = [
        not pair.extra_positives
        and (
            (loss.hard_negatives != "none" and pair.positive in pair.negatives)
            or (in_batch and places[pair.positive] != {row})
        )
        for row, pair in enumerate(pairs)
    ]
    return sum(found) / len(found)

"""What a comparison measures besides scores: the spread of similarities, tokens per text, the prefix test."""

from collections.abc import Sequence
from itertools import compress, islice, takewhile

import numpy as np
import torch
from scipy import sparse

from llm2enc.comparison.passes import pack_each, vectors
from llm2enc.comparison.prefixes import TRIPLES
from llm2enc.comparison.results import PrefixTest, Similarities
from llm2enc.encoding import Encoder, LoadedModel
from llm2enc.evaluation import (
    BitextTask,
    PairClassificationTask,
    RerankingTask,
    RetrievalTask,
    Side,
    StsTask,
    Task,
    TaskResult,
    TextEncoder,
    Vectors,
    cosine,
    cosines,
    draws,
    interval,
)
from llm2enc.text import Tokens

SEED = 0
SAMPLE = 500  # texts whose similarities are looked at
PREFIX_CHARACTERS = sum(len(start) + len(end) for start, *ends in TRIPLES for end in ends)
Text = tuple[Side, str]


# -------------------------------------------------------------------------------------------------------- similarities


def related_pairs(task: Task) -> list[tuple[Text, Text]]:
    """Texts of a task that belong together; none where the task knows only labels."""
    if isinstance(task, RetrievalTask):
        return [
            (("query", text), ("document", task.documents[document]))
            for query, text in task.queries.items()
            for document, judgement in task.qrels[query].items()
            if judgement > 0
        ]
    if isinstance(task, RerankingTask):
        return [
            (("query", query), ("document", text))
            for query, texts in zip(task.queries, task.positives, strict=True)
            for text in texts
        ]
    if isinstance(task, StsTask):  # the upper quarter of the scale that the scores use
        wanted = task.scores >= np.quantile([task.scores.min(), task.scores.max()], 0.75)
    elif isinstance(task, PairClassificationTask):
        wanted = task.labels
    elif isinstance(task, BitextTask):
        wanted = np.ones(len(task.first), dtype=bool)
    else:
        return []
    return [
        (("document", one), ("document", other))
        for one, other, keep in zip(task.first, task.second, wanted, strict=True)
        if keep
    ]


def similarities(encoder: TextEncoder, tasks: Sequence[Task]) -> Similarities:
    """Cosines of random pairs among SAMPLE texts, and of up to SAMPLE pairs that belong together."""
    generator = np.random.default_rng(SEED)
    every = sorted({(side, text) for task in tasks for side, texts in task.texts() for text in texts})
    chosen = [every[row] for row in generator.permutation(len(every))[:SAMPLE]]
    matrix = cosines(*[_vectors(encoder, chosen)] * 2)
    pairs = sorted({pair for task in tasks for pair in related_pairs(task)})
    pairs = [pairs[row] for row in generator.permutation(len(pairs))[:SAMPLE]]
    related = np.zeros(0)
    if pairs:
        related = cosine(_vectors(encoder, [one for one, _ in pairs]), _vectors(encoder, [two for _, two in pairs]))
    above = matrix[np.triu_indices(len(chosen), k=1)]
    return Similarities(generator.permutation(above)[:4000].astype(float), related.astype(float))


def _vectors(encoder: TextEncoder, texts: Sequence[Text]) -> Vectors:
    """Vectors (N, D) of the texts, each encoded as what its side says."""
    place = {text: row for row, text in enumerate(sorted(dict.fromkeys(texts)))}  # all documents, then all queries
    parts = []
    for side in ("document", "query"):
        own = [text for where, text in place if where == side]
        parts += [encoder.encode(own, prompt_name=side)] if own else []
    every = np.concatenate(parts) if isinstance(parts[0], np.ndarray) else sparse.csr_array(sparse.vstack(parts))
    return every[[place[text] for text in texts]]


# ---------------------------------------------------------------------------------------------------------------- cost


def tokens_per_text(encoder: LoadedModel, tasks: Sequence[Task]) -> float:
    """Tokens that the model reads per text, on a sample of the tasks' texts."""
    texts = sorted({text for task in tasks for _, texts in task.texts() for text in texts})
    rows = np.random.default_rng(SEED).permutation(len(texts))[:SAMPLE]
    return encoder.count_tokens([texts[row] for row in rows]) / len(rows)


# --------------------------------------------------------------------------------------------------------- prefix test


def prefix_tests(encoders: Sequence[Encoder]) -> list[PrefixTest | None]:
    """LLM2Vec's test of encoders that one forward pass serves: only the tokens of the shared beginning are pooled,
    whatever follows it. None for one that pools no text.

    A causal model gives one vector for a beginning whatever follows; so does mean pooling over it, and half of the
    triples are then decided by chance: equal cosines count one half.
    """
    able = [any(part.slot == "text" and part.pool for part in one.input_format.spec.document) for one in encoders]
    if not any(able):
        return [None] * len(encoders)
    tested = list(compress(encoders, able))
    every = vectors(tested, pack_each(tested, _beginnings))
    found = map(_prefix_test, every.transpose(1, 0, 2).reshape(len(tested), len(TRIPLES), 3, -1))
    return [next(found) if one else None for one in able]


def _prefix_test(vectors: np.ndarray) -> PrefixTest:
    """That of the vectors (N, 3, D) of beginnings before their three endings."""
    same, other = (cosine(vectors[:, 0], vectors[:, place]) for place in (1, 2))
    # What separates them by less than rounding is a tie.
    won = np.where(np.abs(same - other) < 1e-6, 0.5, (same > other).astype(float))
    outcome = TaskResult("prefix", "sts", "en", "accuracy", float(won.mean()), {}, "mean", won)
    moved = 1 - np.concatenate([same, other])
    return PrefixTest(interval(outcome.score, draws(outcome)), float(np.maximum(moved, 0).mean()))


def _beginnings(encoder: Encoder) -> Tokens:
    """The tokens of every beginning with each of its endings, pooled as far as the beginning reaches."""
    texts = [f"{start} {end}" for start, *ends in TRIPLES for end in ends]
    starts = [start for start, *_ in TRIPLES for _ in range(3)]
    return _pooling_only_beginnings(*(encoder.input_format.pack(some) for some in (texts, starts)))


def _pooling_only_beginnings(whole: Tokens, alone: Tokens) -> Tokens:
    """The tokens of whole texts, pooled where the text of their beginnings is: as far as both have the same pooled ids."""
    pool = torch.zeros_like(whole.pool)
    row_ends = torch.cumsum(whole.lengths, 0).tolist()
    alone_ids = alone.ids.split(alone.lengths.tolist())
    alone_pool = alone.pool.split(alone.lengths.tolist())
    for row, end in enumerate(row_ends):
        start = end - int(whole.lengths[row])
        places = start + whole.pool[start:end].nonzero()[:, 0]
        beginning = alone_ids[row][alone_pool[row]].tolist()
        same = takewhile(lambda pair: pair[0] == pair[1], zip(whole.ids[places].tolist(), beginning, strict=False))
        pool[places[: max(1, sum(1 for _ in same))]] = True
    return Tokens(whole.ids, whole.lengths, pool, whole.truncated)


# -------------------------------------------------------------------------------------------------------------- layers


def few_texts(tasks: Sequence[Task], limit: int) -> list[Task]:
    """Tasks from the smallest on, as long as they have at most `limit` texts together; the smallest in any case."""
    sized = sorted((sum(len(texts) for _, texts in task.texts()), number) for number, task in enumerate(tasks))
    total = np.cumsum([size for size, _ in sized])
    kept = {number for _, number in islice(sized, max(1, int((total <= limit).sum())))}
    return [task for number, task in enumerate(tasks) if number in kept]

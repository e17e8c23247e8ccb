"""Hard negatives for rows of pairs: found by an encoder, by BM25, or by both; chosen by rank and score.

mine("pairs.jsonl", "mined.jsonl", model="runs/mine/model")
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from llm2enc.data import Pair, Rows, beir, content_digest, examine
from llm2enc.engine.documents import Collection, collect, corpus_texts
from llm2enc.engine.journal import Block, Counts, Journal
from llm2enc.engine.rankers import (
    Bm25Ranker,
    EncoderRanker,
    Numbers,
    Ranker,
    Scorer,
    encoded,
    encoder_facts,
    open_scorer,
)
from llm2enc.engine.selection import NearCopies, Selection, drawn, fused, refusals, without
from llm2enc.errors import InputError, require
from llm2enc.evaluation import Instructions, open_encoder
from llm2enc.recipe import FilesData
from llm2enc.storage import Facts, default_cache

_BLOCK = 1024  # rows that are mined and written at a time


def mine(
    pairs: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    bm25: bool = False,
    corpus: str | Path | None = None,
    rescore: str | None = None,
    instructions: Instructions = "own",
    cache: Path | None = None,
    show_progress: bool = False,
    **selection: Any,
) -> Counts:
    """Write the rows of `pairs` with hard negatives and all scores to `out`, and return what became of rows and candidates.

    A written row has query, positive (lists, if any row has several), negatives, positive_scores, negative_scores and, if
    any row has one, instruction: what training reads as it is. Negatives that a row has already stay, before the mined ones.
    Scores are those of `rescore`, else of `model`, else of BM25. An interrupted call goes on where it was.

    pairs         file, glob or BEIR folder of pairs, as training reads them
    out           .jsonl or .jsonl.gz
    model         directory of an encoder, of a run, or of sentence-transformers, or its hub id; ranks by cosine
    bm25          rank by shared words; beside `model`, both rankings are fused by reciprocal ranks
    corpus        file with a text in each row, or BEIR folder, that negatives come from; by default all documents of `pairs`
    rescore       directory of a cross-encoder or encoder, which orders the candidates anew
    instructions  what a query is told besides itself (see `evaluation.Instructions`)
    cache         folder where vectors of documents are kept; that of llm2enc by default
    selection     the fields of `Selection`: negatives, ranks, share, margin, max_score, min_score, reference, sampling, seed
    raises        InputError for settings that exclude each other, files that cannot be read, or an interrupted run of others
    """
    how = Selection(**selection)
    if model is None and not bm25:
        raise InputError("nothing ranks the documents: give a model, BM25, or both")
    if bm25:
        require("bm25s", extra="mine")
    journal = Journal(Path(out))
    source = FilesData(kind="files", path=str(pairs))
    if corpus is None and beir.is_beir(str(pairs)):
        corpus = pairs
    rows = examine(source)[1]
    assert isinstance(rows, Rows)  # streams are read on request only
    facts: Facts = {
        "step": "mine",
        "count": len(rows),
        "pairs": content_digest(source),
        "corpus": None if corpus is None else content_digest(FilesData(kind="files", path=str(corpus))),
        **how.to_json(),
        "instructions": instructions,
        "bm25": f"bm25s {version('bm25s')}" if bm25 else None,
    }
    collection = collect(rows, None if corpus is None else corpus_texts(str(corpus)))
    documents = collection.documents
    encoder = None if model is None else open_encoder(model)
    scorer = None if rescore is None else open_scorer(rescore, documents, instructions)
    facts["model"] = None if encoder is None else encoder_facts(encoder)
    facts["rescore"] = None if scorer is None else scorer.facts
    counts = journal.finished(facts)
    if counts is None:
        rankers: list[Ranker] = []
        if encoder is not None:
            place = encoded(encoder, facts["model"], documents, cache or default_cache() / "vectors", show_progress)
            rankers.append(EncoderRanker(encoder, place, collection.searched, instructions))
        if bm25:
            rankers.append(Bm25Ranker(documents, collection.searched))
        miner = _Miner(rows, collection, rankers, scorer, how)
        dropped = {"rows": {"dropped: no query or no positive": rows.dropped}}
        counts = journal.run(facts, miner, _BLOCK, "mine", dropped, show_progress)
    return counts


@dataclass(frozen=True)
class _Known:
    """What a row says of its query, as numbers of documents."""

    positives: np.ndarray
    """Of all rows with this query."""
    negatives: np.ndarray
    """Of this row."""
    excluded: frozenset[int]
    """What cannot be a candidate."""


@dataclass(frozen=True)
class _Miner:
    """What rows become: the work of the journal."""

    rows: Rows[Pair]
    collection: Collection
    rankers: Sequence[Ranker]
    rescorer: Scorer | None
    how: Selection

    def __call__(self, span: range) -> Block:
        pairs = self.rows[span.start : span.stop]
        known = [self._known(pair) for pair in pairs]
        queries = [ranker.read(pairs) for ranker in self.rankers]
        candidates = self._candidates(queries, known)
        scorer, asked = self.rankers[0], queries[0]
        if self.rescorer is not None:
            scorer, asked = self.rescorer, self.rescorer.read(pairs)
        parts = [(of.positives, of.negatives, found) for of, found in zip(known, candidates, strict=True)]
        scores = scorer.scores(asked, [np.concatenate(part) for part in parts])
        rows, counts = [], {"rows": Counter[str](), "candidates": Counter[str]()}
        for row, pair, part, own in zip(span, pairs, parts, scores, strict=True):
            edges = np.cumsum([len(numbers) for numbers in part[:2]])
            rows.append(self._mined(row, pair, part, np.split(own, edges), counts))
        return Block(rows, counts)

    def _known(self, pair: Pair) -> _Known:
        documents = self.collection.documents
        positives, negatives = self.collection.positives(pair.query), documents.add(pair.negatives)
        itself = documents.find(pair.query)
        excluded = frozenset((*positives, *negatives, *(() if itself is None else (itself,))))
        return _Known(np.array(positives), np.array(negatives, dtype=np.int64), excluded)

    def _candidates(self, queries: Sequence[Any], known: Sequence[_Known]) -> Numbers:
        """Of each query, the documents in the range of ranks, in their order."""
        first, last = self.how.ranks
        depth = last + max(len(of.excluded) for of in known)
        rankings = [
            [without(found, of.excluded)[:last] for found, of in zip(ranker.search(own, depth), known, strict=True)]
            for ranker, own in zip(self.rankers, queries, strict=True)
        ]
        ranked = rankings[0] if len(rankings) == 1 else [fused(each) for each in zip(*rankings, strict=True)]
        return [ranking[first - 1 : last] for ranking in ranked]

    def _mined(
        self,
        row: int,
        pair: Pair,
        numbers: tuple[np.ndarray, np.ndarray, np.ndarray],
        scores: Sequence[np.ndarray],
        counts: dict[str, Counter[str]],
    ) -> dict[str, Any]:
        """The row with its negatives.

        numbers, scores  of the query's positives, of the row's own negatives, and of the candidates
        """
        positives, _, candidates = numbers
        positive_scores, own_scores, found = scores
        if self.rescorer is not None:
            order = np.lexsort((candidates, -found))
            candidates, found = candidates[order], found[order]
        chosen = self._chosen(
            row, pair, positives, candidates, refusals(found, positive_scores, self.how), found, counts
        )
        texts = [pair.positive, *pair.extra_positives]
        score_of = dict(zip(positives.tolist(), positive_scores.tolist(), strict=True))
        mined = {
            "query": pair.query,
            "positive": texts if self.collection.several else pair.positive,
            "negatives": [*pair.negatives, *self.collection.documents.take(candidates[chosen])],
            "positive_scores": [score_of[number] for number in self.collection.documents.add(texts)],
            "negative_scores": [*own_scores.tolist(), *found[chosen].tolist()],
        }
        return mined | ({"instruction": pair.instruction} if self.collection.instructed else {})

    def _chosen(
        self,
        row: int,
        pair: Pair,
        positives: np.ndarray,
        candidates: np.ndarray,
        reasons: np.ndarray,
        scores: np.ndarray,
        counts: dict[str, Counter[str]],
    ) -> list[int]:
        """Places of the candidates that are taken, in their order."""
        documents, count = self.collection.documents, self.how.negatives
        left = np.flatnonzero(reasons == "")
        copies, chosen, copied = NearCopies([pair.query, *documents.take(positives)]), [], 0
        for place in left[drawn(scores[left], self.how, row)].tolist():
            if len(chosen) == count:
                break
            if copies.holds(documents.take(candidates[[place]])[0]):
                copied += 1
            else:
                chosen.append(place)
        found = counts["candidates"]
        found.update(reason for reason in reasons.tolist() if reason)
        found.update(
            {"near copies of a positive": copied, "taken": len(chosen), "not needed": len(left) - len(chosen) - copied}
        )
        whole = "with all" if len(chosen) == count else "with none of" if not chosen else "with fewer than"
        counts["rows"][f"{whole} {count} negatives"] += 1
        return sorted(chosen)

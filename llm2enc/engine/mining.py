"""Hard negatives for rows of pairs: found by an encoder, by BM25, or by both; chosen by rank and score.

mine("pairs.jsonl", "mined.jsonl", model="runs/mine/model")
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np

from llm2enc.data import Pair, Rows, beir, content_digest, examine
from llm2enc.encoding import open_encoder
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
from llm2enc.evaluation import Instructions
from llm2enc.recipe import FilesData
from llm2enc.storage import Facts, default_cache

# Rows that are mined and written at a time: what an interruption can lose. A rescorer reads a hundred texts for each.
_BLOCK, _RESCORED = 1024, 64
_COPIED = "near copy of the query or a positive"


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
    if instructions not in get_args(Instructions):
        raise InputError(f"instructions is {instructions!r}; expected {', '.join(get_args(Instructions))}")
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
    own = {} if encoder is None else encoder_facts(encoder)
    facts["model"] = own or None
    facts["rescore"] = None if scorer is None else scorer.facts
    counts = journal.finished(facts)
    if counts is None:
        rankers: list[Ranker] = []
        if encoder is not None:
            place = encoded(encoder, own, documents, cache or default_cache() / "vectors", show_progress)
            rankers.append(EncoderRanker(encoder, place, collection.searched, instructions))
        if bm25:
            rankers.append(Bm25Ranker(documents, collection.searched))
        miner = _Miner(rows, collection, rankers, scorer, how)
        names = {"pairs": str(pairs), "corpus": corpus and str(corpus), "model": model, "rescore": rescore}
        dropped = {"rows": {"dropped: no query or no positive": rows.dropped}}
        block = _BLOCK if scorer is None else _RESCORED
        counts = journal.run(facts, miner, block, names, dropped, show_progress)
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
class _Ranked:
    """The candidates of a row, in their order, and all scores of its query."""

    candidates: np.ndarray
    scores: np.ndarray
    """Of the candidates."""
    positive_scores: np.ndarray
    """Of `_Known.positives`."""
    negative_scores: np.ndarray
    """Of `_Known.negatives`."""


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
        rows, counts = [], {"rows": Counter[str](), "candidates": Counter[str]()}
        for row, pair, of, ranked in zip(span, pairs, known, self._ranked(pairs, known), strict=True):
            places, reasons = self._chosen(row, pair, of, ranked)
            rows.append(self._written(pair, of, ranked, places))
            counts["candidates"].update(reasons)
            whole = "all" if len(places) == self.how.negatives else "fewer than" if places else "none of"
            counts["rows"][f"with {whole} {self.how.negatives} negatives"] += 1
        return Block(rows, counts)

    def _known(self, pair: Pair) -> _Known:
        documents = self.collection.documents
        positives, negatives = self.collection.positives(pair.query), documents.add(pair.negatives)
        itself = documents.find(pair.query)
        excluded = frozenset((*positives, *negatives, *(() if itself is None else (itself,))))
        return _Known(np.array(positives), np.array(negatives, dtype=np.int64), excluded)

    def _ranked(self, pairs: Sequence[Pair], known: Sequence[_Known]) -> list[_Ranked]:
        """Of each row, the documents in the range of ranks; a rescorer orders them anew."""
        queries = [ranker.read(pairs) for ranker in self.rankers]
        candidates = self._candidates(queries, known)
        scorer, asked = self.rankers[0], queries[0]
        if self.rescorer is not None:
            scorer, asked = self.rescorer, self.rescorer.read(pairs)
        every = [np.concatenate([of.positives, of.negatives, own]) for of, own in zip(known, candidates, strict=True)]
        found = []
        for of, own, scores in zip(known, candidates, scorer.scores(asked, every), strict=True):
            first = len(of.positives)
            positives, negatives, new = np.split(scores, [first, first + len(of.negatives)])
            order = np.arange(len(own)) if self.rescorer is None else np.lexsort((own, -new))
            found.append(_Ranked(own[order], new[order], positives, negatives))
        return found

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

    def _chosen(self, row: int, pair: Pair, known: _Known, ranked: _Ranked) -> tuple[list[int], Counter[str]]:
        """Places of the candidates that are taken, in their order, and what became of all."""
        documents = self.collection.documents
        refused = refusals(ranked.scores, ranked.positive_scores, self.how)
        left = np.flatnonzero(refused == "")
        copies, chosen, copied = NearCopies([pair.query, *documents.take(known.positives)]), [], 0
        for place in left[drawn(ranked.scores[left], self.how, row)].tolist():
            if len(chosen) == self.how.negatives:
                break
            if copies.holds(documents.take(ranked.candidates[[place]])[0]):
                copied += 1
            else:
                chosen.append(place)
        reasons = Counter[str](reason for reason in refused.tolist() if reason)
        rest = len(left) - len(chosen) - copied
        return sorted(chosen), reasons + Counter({_COPIED: copied, "taken": len(chosen), "not needed": rest})

    def _written(self, pair: Pair, known: _Known, ranked: _Ranked, places: list[int]) -> dict[str, Any]:
        """The row with its negatives."""
        texts = [pair.positive, *pair.extra_positives]
        score_of = dict(zip(known.positives.tolist(), ranked.positive_scores.tolist(), strict=True))
        mined = {
            "query": pair.query,
            "positive": texts if self.collection.several else pair.positive,
            "negatives": [*pair.negatives, *self.collection.documents.take(ranked.candidates[places])],
            "positive_scores": [score_of[number] for number in self.collection.documents.add(texts)],
            "negative_scores": [*ranked.negative_scores.tolist(), *ranked.scores[places].tolist()],
        }
        return mined | ({"instruction": pair.instruction} if self.collection.instructed else {})

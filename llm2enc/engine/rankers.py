"""What ranks documents for queries (an encoder, BM25), and what scores documents that others found (a cross-encoder)."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from llm2enc.data import Pair
from llm2enc.encoding import LoadedModel, PartialFile, machine_facts, open_encoder, text_digest
from llm2enc.engine.documents import Documents
from llm2enc.engine.exact_search import pair_cosines, search
from llm2enc.errors import InputError, explained, require
from llm2enc.evaluation import Instructions, unit
from llm2enc.storage import Facts, check_room, sha256_of
from llm2enc.terminal import bar

_ENCODED = 2048  # documents that are encoded and written at a time: what an interruption can lose
_WORD = re.compile(r"\w+")

Numbers = list[np.ndarray]
"""Of each query, the numbers of documents."""


class Scorer(Protocol):
    """What scores queries with documents."""

    def read(self, pairs: Sequence[Pair]) -> Any:
        """The queries as `scores` takes them."""
        ...

    def scores(self, queries: Any, documents: Numbers) -> list[np.ndarray]:
        """The score, float64, of each query with each of its own documents."""
        ...


class Ranker(Scorer, Protocol):
    """What finds documents for queries."""

    def search(self, queries: Any, depth: int) -> Numbers:
        """At most `depth` documents of each query, the best first; of equal ones the first in the corpus."""
        ...


class EncoderRanker:
    """Exact search by the cosine of vectors."""

    def __init__(self, encoder: LoadedModel, vectors: Path, searched: int, instructions: Instructions):
        """`vectors` is the file of `encoded`; its first `searched` documents can be found."""
        self._encoder, self._vectors, self._searched = encoder, vectors, searched
        self._instructions: Instructions = instructions

    def read(self, pairs: Sequence[Pair]) -> np.ndarray:
        return query_vectors(self._encoder, pairs, self._instructions)

    def search(self, queries: np.ndarray, depth: int) -> Numbers:
        return list(search(queries, [self._vectors], depth, self._searched)[1])

    def scores(self, queries: np.ndarray, documents: Numbers) -> list[np.ndarray]:
        return pair_cosines(queries, self._vectors, documents)


class Rescorer(Scorer, Protocol):
    """What scores documents that others have found."""

    @property
    def facts(self) -> Facts:
        """What scores depend on besides the texts."""
        ...


class EncoderScorer:
    """Cosines with documents that are encoded when they are needed."""

    def __init__(self, name: str, documents: Documents, instructions: Instructions):
        self._encoder, self._documents = open_encoder(name), documents
        self._instructions: Instructions = instructions
        self.facts = encoder_facts(self._encoder)

    def read(self, pairs: Sequence[Pair]) -> np.ndarray:
        return query_vectors(self._encoder, pairs, self._instructions)

    def scores(self, queries: np.ndarray, documents: Numbers) -> list[np.ndarray]:
        needed = np.unique(np.concatenate(documents))
        vectors = finite(self._encoder.encode(self._documents.take(needed), prompt_name="document"))
        asked, stored = np.asarray(unit(queries)), np.asarray(unit(vectors))
        return [stored[np.searchsorted(needed, own)] @ query for query, own in zip(asked, documents, strict=True)]


class CrossEncoderScorer:
    """A model that reads query and document together."""

    def __init__(self, name: str, documents: Documents):
        require("sentence_transformers", extra="serve")
        from sentence_transformers import CrossEncoder

        with explained(name, "sentence-transformers opens no such cross-encoder: name another, or look at its files"):
            self._model = CrossEncoder(name, trust_remote_code=False, model_kwargs={"use_safetensors": True})
        if self._model.num_labels != 1:
            raise InputError(
                f"{name} gives {self._model.num_labels} scores to a pair; a cross-encoder that ranks gives one"
            )
        self._documents = documents
        files = sorted(path for path in Path(name).rglob("*") if path.is_file() and path.suffix != ".md")
        self.facts = {"encoder": sha256_of(files), **_machine()}

    def read(self, pairs: Sequence[Pair]) -> list[str]:
        return [pair.query for pair in pairs]

    def scores(self, queries: list[str], documents: Numbers) -> list[np.ndarray]:
        texts = [self._documents.take(own) for own in documents]
        read = [(query, text) for query, own in zip(queries, texts, strict=True) for text in own]
        found = np.asarray(self._model.predict(read, show_progress_bar=False), dtype=np.float64)
        return np.split(finite(found), np.cumsum([len(own) for own in documents])[:-1])


class Bm25Ranker:
    """Words that query and document share, by bm25s (Lucene's form, k1 1.5, b 0.75), without a list of stop words.

    A word is a run of letters and digits, without case: for languages that write words apart.
    """

    def __init__(self, documents: Documents, searched: int):
        require("bm25s", extra="mine")
        import bm25s

        self._searched = searched
        self._model = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        every = [words_of(documents.take(np.array([number]))[0]) for number in range(len(documents))]
        self._model.index(every, show_progress=False)

    def read(self, pairs: Sequence[Pair]) -> list[list[str]]:
        return [words_of(pair.query) for pair in pairs]

    def search(self, queries: list[list[str]], depth: int) -> Numbers:
        return [_highest(self._of(words)[: self._searched], depth) for words in queries]

    def scores(self, queries: list[list[str]], documents: Numbers) -> list[np.ndarray]:
        return [self._of(words)[own].astype(np.float64) for words, own in zip(queries, documents, strict=True)]

    def _of(self, words: list[str]) -> np.ndarray:
        """The scores (N,) of all documents."""
        return self._model.get_scores(words) if words else np.zeros(self._model.scores["num_docs"], dtype=np.float32)


def open_scorer(name: str, documents: Documents, instructions: Instructions) -> Rescorer:
    """The cross-encoder or encoder of a directory."""
    if is_cross_encoder(Path(name)):
        return CrossEncoderScorer(name, documents)
    return EncoderScorer(name, documents, instructions)


def is_cross_encoder(folder: Path) -> bool:
    """Whether a directory holds a model of pairs, by its configuration."""

    def read(name: str) -> dict[str, Any]:
        return json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}

    with explained(str(folder), "its configuration is no JSON; look at its files"):
        kind, architectures = read("config_sentence_transformers.json").get("model_type"), read("config.json")
    classifies = any(name.endswith("ForSequenceClassification") for name in architectures.get("architectures") or ())
    return kind == "CrossEncoder" or classifies


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _highest(scores: np.ndarray, depth: int) -> np.ndarray:
    """Numbers of the `depth` highest scores above 0, the best first; of equal ones the first."""
    shared = np.flatnonzero(scores)
    if len(shared) > depth:
        least = np.partition(scores[shared], -depth)[-depth]
        shared = shared[scores[shared] >= least]
    return shared[np.argsort(-scores[shared], kind="stable")][:depth]


# -------------------------------------------------------------------------------------------------------------- vectors


def encoder_facts(encoder: LoadedModel) -> Facts:
    """What the vectors of documents depend on besides their texts."""
    return {"encoder": encoder.fingerprint(), "cache_key": encoder.cache_key(prompt_name="document"), **_machine()}


def _machine() -> Facts:
    return machine_facts(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def query_vectors(encoder: LoadedModel, pairs: Sequence[Pair], instructions: Instructions) -> np.ndarray:
    """Vectors (Q, D) of the queries, each with what `instructions` tells it (see `evaluation.Instructions`)."""
    told = [pair.instruction if instructions == "task" else "" for pair in pairs]
    vectors: dict[int, np.ndarray] = {}
    for instruction in dict.fromkeys(told):
        rows = [row for row, own in enumerate(told) if own == instruction]
        prompt = {"prompt_name": "document" if instructions == "none" else "query"}
        asked = [pairs[row].query for row in rows]
        found = encoder.encode(asked, **({"instruction": instruction} if instruction else prompt))
        vectors |= dict(zip(rows, finite(found), strict=True))
    return np.stack([vectors[row] for row in range(len(pairs))])


def encoded(encoder: LoadedModel, facts: Facts, documents: Documents, cache: Path, show_progress: bool) -> Path:
    """The .npy file with the vectors (N, D) float32 of the documents, in `cache`; it goes on where it was interrupted.

    facts   of the encoder
    raises  Locked if another process encodes the same documents there, OSError if the file cannot be written
    """
    texts = documents.rows
    facts = facts | {"texts": text_digest(texts), "count": len(texts), "dtype": "<f4", "block": _ENCODED}
    place = cache / f"{text_digest([json.dumps(facts, sort_keys=True)])[:32]}.npy"
    if place.is_file():
        return place
    facts["width"] = encoder.encode(texts[:1], prompt_name="document").shape[1]
    cache.mkdir(parents=True, exist_ok=True)
    check_room(cache, 4 * len(texts) * facts["width"])
    partial = PartialFile(place)
    with partial.alone(), bar("encode documents", len(texts), show_progress) as move:
        partial.begin(facts)
        move(partial.count_done(facts))
        with partial.writer(facts, 0) as write:
            for gap in partial.missing(facts):
                for first in range(gap.start, gap.stop, _ENCODED):
                    some = texts[first : min(first + _ENCODED, gap.stop)]
                    write(first, finite(encoder.encode(some, prompt_name="document")))
                    move(len(some))
        partial.finish()
    return place


def finite(numbers: np.ndarray) -> np.ndarray:
    """The numbers as they are. InputError for nan or infinity."""
    if not np.isfinite(numbers).all():
        raise InputError("the model gives nan or infinity, by which nothing can be ranked; look at its weights")
    return numbers

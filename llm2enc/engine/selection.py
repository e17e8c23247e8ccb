"""Which of a query's ranked documents become its hard negatives: pure functions of numbers.

The rules are those of NV-Retriever (arXiv 2407.15831) and of the tools that took them over: a candidate must score strictly
less than the positive minus a margin (MarginPos), or than a share of it (PercPos, 95 % in the paper's best setting).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from llm2enc.audit import Shingles, shingles
from llm2enc.errors import InputError

Reference = Literal["max", "min", "mean"]
Sampling = Literal["top", "random", "softmax"]

RRF = 60  # Cormack, Clarke and Buettcher 2009: reciprocal rank fusion
_COPIED, _GRAMS = 0.5, 9  # nine 8-grams are 16 words


@dataclass(frozen=True)
class Selection:
    """How negatives are chosen. InputError for settings that choose none."""

    negatives: int = 7
    """How many a row gets. 7: as E5, KaLM and BGE train."""
    ranks: tuple[int, int] = (1, 100)
    """The first and last rank of candidates, from 1, among the documents that are neither a positive of the query nor the
    query itself, nor a negative that the row has already."""
    share: float | None = 0.95
    """A candidate scores strictly less than this share of the reference [NV-Retriever's PercPos]; of a negative reference r,
    less than r - (1 - share) |r|. None: no such rule."""
    margin: float | None = None
    """A candidate scores strictly less than the reference minus this [MarginPos]."""
    max_score: float | None = None
    """A candidate scores this at most [TopK-Abs]."""
    min_score: float | None = None
    """A candidate scores this at least."""
    reference: Reference = "min"
    """With several positives of a query, whose score the two rules above start from. `min` is the strictest [NeMo];
    sentence-transformers and KaLM take `max`."""
    sampling: Sampling = "top"
    """Which of the candidates that are left: the first ones, any (`random`), or by the softmax of their scores, without
    replacement."""
    seed: int = 0
    """Of `random` and `softmax`; each row draws by its own number."""

    def __post_init__(self) -> None:
        first, last = self.ranks
        for fault, words in (
            (self.negatives < 1, f"negatives is {self.negatives}; a row takes at least one negative"),
            (not 1 <= first <= last, f"ranks are {first}-{last}; the first is at least 1 and not beyond the last"),
            (
                last - first + 1 < self.negatives,
                f"ranks {first}-{last} hold fewer than {self.negatives} candidates; widen them",
            ),
            (self.share is not None and not 0 < self.share <= 1, f"share is {self.share}; expected above 0, at most 1"),
            (self.margin is not None and self.margin < 0, f"margin is {self.margin}; expected 0 or more"),
            (
                None not in (self.min_score, self.max_score) and self.min_score > self.max_score,  # pyright: ignore[reportOperatorIssue]
                f"min_score {self.min_score} is above max_score {self.max_score}, so that nothing is left",
            ),
            (self.reference not in get_args(Reference), f"reference is {self.reference!r}; expected max, min or mean"),
            (
                self.sampling not in get_args(Sampling),
                f"sampling is {self.sampling!r}; expected top, random or softmax",
            ),
            (self.seed < 0, f"seed is {self.seed}; expected 0 or more"),
        ):
            if fault:
                raise InputError(words)

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def fused(rankings: Sequence[np.ndarray]) -> np.ndarray:
    """The numbers in any ranking, by the sum of 1 / (60 + rank) over those that hold them; equal sums by number."""
    numbers, places = np.unique(np.concatenate(rankings), return_inverse=True)
    gains = np.concatenate([1 / (RRF + np.arange(1, len(ranking) + 1)) for ranking in rankings])
    return numbers[np.argsort(-np.bincount(places, gains), kind="stable")]


def without(ranking: np.ndarray, excluded: Iterable[int]) -> np.ndarray:
    return ranking[~np.isin(ranking, list(excluded))]


def refusals(scores: np.ndarray, positives: np.ndarray, how: Selection) -> np.ndarray:
    """Why each candidate cannot be a negative, in words; empty for those that can.

    scores     (C,) of the candidates
    positives  (P,) of the query's positives
    """
    reference = float({"max": np.max, "min": np.min, "mean": np.mean}[how.reference](positives))
    reasons = np.full(len(scores), "", dtype=object)

    def refuse(which: np.ndarray, reason: str) -> None:
        reasons[which & (reasons == "")] = reason

    if how.max_score is not None:
        refuse(scores > how.max_score, "above max_score")
    if how.min_score is not None:
        refuse(scores < how.min_score, "below min_score")
    if how.margin is not None:
        refuse(scores >= reference - how.margin, "within the margin of the positive")
    if how.share is not None:
        limit = reference * (how.share if reference >= 0 else 2 - how.share)
        refuse(scores >= limit, "above the share of the positive")
    return reasons


def drawn(scores: np.ndarray, how: Selection, row: int) -> np.ndarray:
    """The places of the candidates (C,) in the order in which they are taken.

    row  number of the row, which seeds its draws
    """
    if how.sampling == "top":
        return np.arange(len(scores))
    uniform = np.random.default_rng([how.seed, row]).random(len(scores))
    if how.sampling == "random":
        return np.argsort(uniform, kind="stable")
    gumbel = -np.log(-np.log(np.maximum(uniform, np.finfo(float).tiny)))
    return np.argsort(-(scores + gumbel), kind="stable")  # the order of draws without replacement by exp(score)


class NearCopies:
    """Texts that hold another one: half of the different 8-grams of the one with fewer occur in both, from 16 words on."""

    def __init__(self, texts: Sequence[str]):
        self._grams = _grams(texts)

    def holds(self, text: str) -> bool:
        (own,) = _grams([text])
        return any(len(own & other) >= _COPIED * min(len(own), len(other)) for other in self._grams if own and other)


def _grams(texts: Sequence[str]) -> list[set[int]]:
    """Keys of the 8-grams of each text; none for one below 16 words."""
    found: Shingles = shingles(texts)
    grams = [found.grams[found.owner == number] for number in range(len(texts))]
    return [set(own.tolist()) if len(own) >= _GRAMS else set() for own in grams]

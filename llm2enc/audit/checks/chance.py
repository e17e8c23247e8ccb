"""How often a batch meets the same text twice: a false negative of InfoNCE.

A batch is B rows of N drawn without replacement (data/batches.py). If c_d rows carry text d, the chance that all rows of
a batch carry different ones is e_B(c) / C(N, B), with e_B the elementary symmetric polynomial of degree B: each way to
choose B different texts, times the rows that can stand for each.
"""

from collections.abc import Sequence
from math import lgamma

import numpy as np

_lgamma = np.frompyfunc(lgamma, 1, 1)


def share_of_rows(counts: Sequence[int] | np.ndarray, batch: int) -> float:
    """Expected share of the rows of a batch that have a twin in it. Exact: the hypergeometric chance of each row.

    counts  (D,) rows that carry each distinct text
    """
    sizes, number = np.unique(np.asarray(counts), return_counts=True)
    total = int((sizes * number).sum())
    if total < 2 or batch < 2:
        return 0.0
    batch = min(batch, total)
    others = total - sizes  # rows with another text
    alone = np.where(
        others >= batch - 1,
        np.exp(
            _log_choose(np.maximum(others, batch - 1), batch - 1)
            - _log_choose(np.full(len(sizes), total - 1), batch - 1)
        ),
        0.0,
    )
    return float((sizes * number * (1 - alone)).sum() / total)


def share_of_batches(counts: Sequence[int] | np.ndarray, batch: int) -> float:
    """Expected share of batches in which at least two rows carry the same text. Exact but for rounding.

    e_B is found as a probability: let each text be in with odds c_d t, independently; then the number S of texts that are
    in is B with probability e_B(c) t^B / prod(1 + c_d t). With t such that E[S] = B this is no small number, and one
    discrete Fourier transform of the characteristic function gives it (Fernandez and Williams 2010).
    """
    sizes, number = np.unique(np.asarray(counts), return_counts=True)
    total, distinct = int((sizes * number).sum()), int(number.sum())
    batch = min(batch, total)
    if batch < 2 or distinct == total:
        return 0.0
    if distinct < batch:
        return 1.0
    tilt = _tilt(sizes, number, batch)
    log_probability = _log_poisson_binomial(sizes * tilt / (1 + sizes * tilt), number, batch)
    log_polynomial = log_probability + (number * np.log1p(sizes * tilt)).sum() - batch * np.log(tilt)
    log_different = log_polynomial - float(_log_choose(np.array([total]), batch)[0])
    return float(np.clip(-np.expm1(log_different), 0.0, 1.0))


def _tilt(sizes: np.ndarray, number: np.ndarray, batch: int) -> float:
    """t with sum of number x size t / (1 + size t) = batch, or just below where every text is needed; by bisection."""
    target = min(batch, number.sum() - 0.5)
    low, high = -60.0, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        odds = sizes * np.exp(middle)
        low, high = (middle, high) if (number * odds / (1 + odds)).sum() < target else (low, middle)
    return float(np.exp((low + high) / 2))


def _log_poisson_binomial(chances: np.ndarray, number: np.ndarray, value: int) -> float:
    """log P(S = value), S the sum of `number[k]` coins of `chances[k]` each, where E[S] is about `value`."""
    spread = np.sqrt((number * chances * (1 - chances)).sum())
    # Counted modulo `points`; what aliases onto `value` is at least 40 standard deviations off, or impossible.
    points = int(min(number.sum() + 1, 80 * spread + 200))
    angles = 2 * np.pi * np.arange(points) / points
    logs = np.zeros(points, dtype=complex)
    for chance, times in zip(chances, number, strict=True):
        logs += times * np.log(1 - chance + chance * np.exp(1j * angles))
    return float(np.log(np.exp(logs - 1j * angles * value).mean().real))


def _log_choose(among: np.ndarray, chosen: int) -> np.ndarray:
    return (_lgamma(among + 1) - _lgamma(chosen + 1) - _lgamma(among - chosen + 1)).astype(float)

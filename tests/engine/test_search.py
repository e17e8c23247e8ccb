"""Exact search: what a comparison with every document finds, in its order, whatever the blocks."""

import resource
from pathlib import Path

import numpy as np
import pytest

from llm2enc.engine import search
from tests.support.jobs import Job


def brute(queries: np.ndarray, documents: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Written out in float64, rows in fixed point as `evaluation.unit` promises; a stable sort keeps ties by number."""

    def unit(rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float64)
        return np.rint(rows / np.sqrt((rows * rows).sum(1, keepdims=True)) * 2**25) / 2**25

    scores = np.array([[float((q * d).sum()) for d in unit(documents)] for q in unit(queries)])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return np.take_along_axis(scores, order, axis=1), order


def shards_of(documents: np.ndarray, folder: Path, *cuts: int) -> list[Path]:
    parts = np.split(documents, cuts)
    for number, part in enumerate(parts):
        np.save(folder / f"{number}.npy", part)
    return [folder / f"{number}.npy" for number in range(len(parts))]


@pytest.mark.parametrize("depth", [1, 5, 90, 200])
@pytest.mark.parametrize("block", [1, 7, 10**6], ids="block-{}".format)
def test_equal_to_brute_force_with_ties_by_number(block: int, depth: int, tmp_path: Path, monkeypatch) -> None:
    """Few different vectors, so that most scores are equal."""
    dice = np.random.default_rng(depth)
    queries, documents = dice.integers(-1, 2, (6, 3)) + 0.5, dice.integers(-1, 2, (90, 3)) + 0.5
    monkeypatch.setattr("llm2enc.engine.exact_search._NUMBERS", 3 * block)
    found = search(queries, shards_of(documents, tmp_path, 10, 11, 50), depth)
    for ours, theirs in zip(found, brute(queries, documents, depth), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_only_the_first_documents_on_request(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    queries, documents = dice.normal(size=(5, 4)), dice.normal(size=(40, 4)).astype(np.float32)
    for limit in (1, 12, 13, 40):
        found = search(queries, shards_of(documents, tmp_path, 12, 30), 9, limit)
        for ours, theirs in zip(found, brute(queries, documents[:limit], 9), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_memory_does_not_grow_with_the_documents(tmp_path: Path) -> None:
    """The file alone takes 51 MB, in float64 102 MB; pages that were read count as long as they are mapped."""
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(200_000, 64)).astype(np.float32))

    def work() -> None:
        from llm2enc.engine import exact_search

        exact_search._SCORES = exact_search._NUMBERS = 2**18
        queries = np.random.default_rng(1).normal(size=(32, 64))
        search(queries, [tmp_path / "v.npy"], 10, 1000)  # whatever is loaded on first use
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        search(queries, [tmp_path / "v.npy"], 10)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

    job = Job(work, tmp_path / "log")
    assert job.wait() == 0, job.said()
    assert int(job.said().split()[-1]) < 25_000  # KiB

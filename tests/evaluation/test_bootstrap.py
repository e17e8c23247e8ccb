"""Resampling: against the textbook interval, against resamples written out row by row, and in pairs."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, v_measure_score

from llm2enc.evaluation import Interval, TaskResult, bootstrap, difference, draws, interval, mean_interval
from llm2enc.evaluation.metrics import statistic
from llm2enc.evaluation.tasks import Statistic
from llm2enc.evaluation.weighted import weighted_statistic


def result(items: np.ndarray, kind: Statistic = "mean", task: str = "t") -> TaskResult:
    value = statistic(kind, items)
    return TaskResult(task, "retrieval", "en", "main", value, {"main": value}, kind, items)


def sample(kind: Statistic, size: int, seed: int = 0) -> np.ndarray:
    """Items with ties, of a middling score."""
    generator = np.random.default_rng(seed)
    if kind == "mean":
        return generator.beta(2, 3, size)
    if kind == "v_measure":
        labels = generator.integers(5, size=size)
        return np.stack(
            [np.where(generator.random(size) < 0.6, labels, generator.integers(5, size=size)), labels], axis=1
        ).astype(float)
    wanted = generator.integers(0, 6, size) if kind == "spearman" else generator.integers(0, 2, size)
    return np.stack([np.round(wanted + generator.normal(0, 2, size), 1), wanted], axis=1).astype(float)


KINDS: tuple[Statistic, ...] = ("mean", "spearman", "average_precision", "v_measure")


def test_the_interval_of_a_mean_is_the_textbook_s():
    items = sample("mean", 2000)
    found = interval(items.mean(), draws(result(items)))
    wide = 1.96 * items.std() / np.sqrt(2000)
    # 1,000 draws place the 2.5 % points within 13 % of the half width, three standard errors.
    assert found.low == pytest.approx(items.mean() - wide, abs=0.13 * wide)
    assert found.high == pytest.approx(items.mean() + wide, abs=0.13 * wide)
    assert found.above_zero == 1.0 and found.certain


def test_the_interval_of_a_correlation_is_fisher_s():
    """The textbook interval of a correlation: atanh(r) has the standard error 1/sqrt(n - 3), here of normal ranks."""
    generator = np.random.default_rng(3)
    wanted = generator.normal(size=2000)
    items = np.stack([0.6 * wanted + 0.8 * generator.normal(size=2000), wanted], axis=1)
    correlation = spearmanr(*items.T).statistic
    found = interval(correlation, draws(result(items, "spearman")))
    # Bonett and Wright (2000): for Spearman's coefficient the variance is (1 + r^2 / 2) / (n - 3).
    wide = 1.96 * np.sqrt((1 + correlation**2 / 2) / 1997)
    assert np.arctanh(found.low) == pytest.approx(np.arctanh(correlation) - wide, abs=0.15 * wide)
    assert np.arctanh(found.high) == pytest.approx(np.arctanh(correlation) + wide, abs=0.15 * wide)


def _library(kind: Statistic, items: np.ndarray) -> float:
    if kind == "mean":
        return float(np.mean(items))
    found, wanted = items.T
    if kind == "spearman":
        constant = np.ptp(found) == 0 or np.ptp(wanted) == 0
        return 0.0 if constant else float(spearmanr(found, wanted).statistic)
    if kind == "average_precision":
        return float(average_precision_score(wanted, found)) if wanted.any() else 0.0
    return float(v_measure_score(wanted, found))


@pytest.mark.parametrize("kind", KINDS)
@given(size=st.integers(2, 25), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_weights_are_rows_written_so_often(kind: Statistic, size: int, seed: int):
    items, generator = sample(kind, size, seed), np.random.default_rng(seed)
    rows = generator.integers(size, size=(4, size))
    rows[0] = rows[0, 0]  # one row alone, which has nothing to be ranked or told apart
    weights = np.stack([np.bincount(drawn, minlength=size) for drawn in rows]).astype(float)
    expected = [_library(kind, items[drawn]) for drawn in rows]
    np.testing.assert_allclose(weighted_statistic(kind, items, weights), expected, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_surround_the_score_and_do_not_depend_on_the_block(kind: Statistic, monkeypatch: pytest.MonkeyPatch):
    measured = result(sample(kind, 300), kind)
    found = draws(measured, 200)
    assert found.shape == (200,) and found.mean() == pytest.approx(measured.score, abs=1e-12)
    assert found.std() > 1e-3
    monkeypatch.setattr(bootstrap, "_BLOCK", 7)
    np.testing.assert_allclose(draws(measured, 200), found, atol=1e-12)


def test_a_v_measure_is_not_lifted_by_rows_that_repeat():
    """20 classes at chance: drawn rows alone would say 0.06 to 0.09 more than the score."""
    generator = np.random.default_rng(0)
    items = generator.integers(20, size=(1000, 2)).astype(float)
    measured = result(items, "v_measure")
    bare = np.mean([v_measure_score(*items[generator.integers(1000, size=1000)].T) for _ in range(20)])
    assert bare - measured.score > 0.04
    found = interval(measured.score, draws(measured))
    assert found.low < measured.score < found.high < bare


def test_two_encoders_get_the_same_draws_and_two_tasks_others():
    items = sample("mean", 50)
    base = draws(result(items))
    # Twice the items and one more: with the same rows drawn, every draw is twice the former and one more.
    np.testing.assert_allclose(draws(result(2 * items + 1)), 2 * base + 1, atol=1e-12)
    assert np.array_equal(draws(result(items)), base)
    assert not np.allclose(draws(result(items, task="other")), base)


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_does_not_differ_from_itself(kind: Statistic):
    measured = [result(sample(kind, 80), kind), result(sample("mean", 40), task="u")]
    assert difference(measured, measured) == Interval(0.0, 0.0, 0.0, 0.0)
    assert not difference(measured, measured).certain


def test_a_shifted_copy_is_certainly_better():
    """By 0.01 of scores that vary by 0.2: only in pairs can it be told."""
    items = sample("mean", 100)
    worse, better = [result(items)], [result(items + 0.01)]
    found = difference(better, worse)
    assert (found.value, found.low, found.high) == pytest.approx((0.01, 0.01, 0.01))
    assert found.certain and found.above_zero == 1.0
    assert difference(worse, better).certain and difference(worse, better).above_zero == 0.0
    alone = [interval(o.score, draws(o)) for o in (worse[0], better[0])]
    assert alone[0].high > alone[1].low + 0.02


def test_chance_is_not_certain():
    """Equal encoders with independent noise: 5 of 100 differences may be called certain."""
    certain = 0
    for seed in range(100):
        first, second = (result(sample("mean", 60, 2 * seed + side), task=f"task {seed}") for side in (0, 1))
        certain += difference([first], [second], 200).certain
    assert 0 <= certain <= 12  # 12 or fewer of 100 with probability 0.9985


def test_the_mean_over_tasks_moves_less_than_one_task():
    many = [result(sample("mean", 100, seed), task=f"task {seed}") for seed in range(9)]
    found = mean_interval(many)
    assert found.value == pytest.approx(np.mean([one.score for one in many]))
    one = interval(many[0].score, draws(many[0]))
    # Independent tasks of one spread: the mean of nine varies a third as much.
    assert (found.high - found.low) / (one.high - one.low) == pytest.approx(1 / 3, abs=0.06)
    assert mean_interval(many[:1]) == one


def test_other_rows_are_refused():
    first = result(sample("spearman", 30), "spearman")
    moved = first.per_example.copy()
    moved[:, 0] = -moved[:, 0]
    difference([first], [result(moved, "spearman")])  # other predictions on the same rows
    other = result(first.per_example[::-1].copy(), "spearman")
    for wrong in (
        [dataclasses.replace(first, task="u")],
        [],
        [first, first],
        [result(first.per_example[1:], "spearman")],
        [other],
    ):
        with pytest.raises(ValueError, match="the same rows of the same tasks"):
            difference([first], wrong)

"""Fuzzed shapes and values: cuts, pooling, losses and codes against loops in plain Python, nan and infinity included."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example
from hypothesis import strategies as st

from llm2enc import distributed
from llm2enc.distributed import collectives
from llm2enc.encoding import calibrate
from llm2enc.encoding.quantization import quantize
from llm2enc.losses import Layout, cross_entropy_sum, info_nce, tokens
from llm2enc.model import POOLERS, pooled_edges
from llm2enc.training import BatchPartition
from tests.support.fuzzing import fuzz

SEEDS = st.integers(0, 2**32 - 1)


# -------------------------------------------------------------------------------------------------------------- splits


def work(partition: BatchPartition, lengths: list[int], max_tokens: int, processes: int) -> list[tuple[list[int], int]]:
    """(rows of the batch, seed) of every micro-batch, of all processes one after another."""
    found = []
    for process in range(processes):
        pretended = {"world_size": lambda: processes, "rank": lambda process=process: process}
        with mock.patch.multiple(distributed, **pretended), mock.patch.multiple(collectives, **pretended):
            rows = partition.rows()
            assert partition.counts()[process] == len(rows)
            own = torch.tensor(lengths[rows.start : rows.stop], dtype=torch.int64)
            parts = list(partition.micro_batches(own, max_tokens))
            found += [([rows[row] for row in part.rows.tolist()], part.seed) for part in parts]
    return found


@fuzz(
    60,
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    shards=st.integers(1, 50),
    processes=st.integers(1, 9),
    max_tokens=st.integers(1, 200),
    seed=st.integers(-(2**63), 2**64),
    step=st.integers(0, 10**9),
)
def test_any_number_of_processes_does_the_same_work(lengths, shards, processes, max_tokens, seed, step) -> None:
    partition = BatchPartition(len(lengths), shards, seed, step)
    alone = work(partition, lengths, max_tokens, 1)
    assert work(partition, lengths, max_tokens, processes) == alone
    assert sorted(row for rows, _ in alone for row in rows) == list(range(len(lengths)))
    assert len({part_seed for _, part_seed in alone}) == len(alone) and all(0 <= s < 2**63 for _, s in alone)
    count = min(shards, len(lengths))
    borders = [number * len(lengths) // count for number in range(count + 1)]
    for rows, _ in alone:
        assert len(rows) == 1 or sum(lengths[row] for row in rows) <= max_tokens
        assert sum(min(rows) < border <= max(rows) for border in borders[1:-1]) == 0  # none reaches into two shards


# ------------------------------------------------------------------------------------------------------------- pooling

SPECIAL_VALUES = st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf, 1e-30, 3e38])


@st.composite
def packed_states(draw: st.DrawFn) -> tuple[torch.Tensor, list[list[bool]]]:
    """States (T, D) and the pool flags of each text, one at least; some states are no numbers."""
    pool = draw(st.lists(st.lists(st.booleans(), min_size=1, max_size=8), min_size=1, max_size=6))
    pool = [[*row[:-1], row[-1] or not any(row)] for row in pool]
    generator = torch.Generator().manual_seed(draw(SEEDS))
    hidden = torch.randn(sum(map(len, pool)), draw(st.integers(1, 5)), generator=generator)
    for value in draw(st.lists(SPECIAL_VALUES, max_size=2)):
        hidden[draw(st.integers(0, len(hidden) - 1))] = value
    return hidden, pool


def by_loops(name: str, states: list[list[float]], pool: list[bool]) -> list[float]:
    """The vector of one text in double precision; only pooled states are looked at."""
    chosen = [state for state, pooled in zip(states, pool, strict=True) if pooled]
    weights = {
        "mean": [1] * len(chosen),
        "weighted_mean": list(range(1, len(chosen) + 1)),
        "first": [1] + [0] * (len(chosen) - 1),
        "last": [0] * (len(chosen) - 1) + [1],
    }[name]
    used = [(weight, state) for weight, state in zip(weights, chosen, strict=True) if weight]
    return [sum(weight * state[column] for weight, state in used) / sum(weights) for column in range(len(states[0]))]


@pytest.mark.parametrize("name", POOLERS)
@example(case=(torch.tensor([[math.inf], [2.0]]), [[False, True]]))  # infinity x a weight of 0 made it nan
@fuzz(40, case=packed_states())
def test_pooling_is_what_loops_over_the_pooled_states_give(name, case) -> None:
    hidden, pool = case
    lengths = torch.tensor([len(row) for row in pool])
    flat = torch.tensor([flag for row in pool for flag in row])
    found = POOLERS[name].function(hidden, flat, lengths)
    states = [part.tolist() for part in hidden.split(lengths.tolist())]
    wanted = torch.tensor([by_loops(name, *both) for both in zip(states, pool, strict=True)])
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6, equal_nan=True)
    first, last = pooled_edges(flat, lengths)
    starts = (torch.cumsum(lengths, 0) - lengths).tolist()
    assert first.tolist() == [start + row.index(True) for start, row in zip(starts, pool, strict=True)]
    assert last.tolist() == [
        start + max(i for i, f in enumerate(row) if f) for start, row in zip(starts, pool, strict=True)
    ]


# -------------------------------------------------------------------------------------------------------------- losses


@st.composite
def contrasts(draw: st.DrawFn) -> tuple:
    """Queries, documents, positives and what is allowed; some vectors are 0, equal or no numbers."""
    count, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    documents = count + draw(st.integers(0, 5))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    sides = [torch.randn(rows, width, generator=generator) for rows in (count, documents)]
    for side in sides:
        how = draw(st.sampled_from(["as it is", "as it is", "zero", "equal", "tiny", "nan"]))
        if how == "equal":
            side[:] = side[0].clone()
        elif how != "as it is":
            side[draw(st.integers(0, len(side) - 1))] *= {"zero": 0.0, "tiny": 1e-25, "nan": math.nan}[how]
    positives = draw(st.permutations(range(documents)))[:count]
    allowed = draw(st.none() | st.just(torch.rand(count, documents, generator=generator) < 0.5))
    return *sides, torch.tensor(positives), draw(st.sampled_from([0.01, 0.05, 1.0])), allowed


def nce_by_loops(queries, documents, positives, temperature, allowed) -> float:
    def unit(vector: list[float]) -> list[float]:
        length = max(math.sqrt(sum(value * value for value in vector)), 1e-12)
        return [value / length for value in vector]

    total = 0.0
    documents = [unit(document) for document in documents.tolist()]
    for row, (query, own) in enumerate(zip(queries.tolist(), positives.tolist(), strict=True)):
        query = unit(query)
        logits = [sum(q * d for q, d in zip(query, document, strict=True)) / temperature for document in documents]
        kept = [logit for n, logit in enumerate(logits) if allowed is None or n == own or allowed[row, n]]
        top = max(kept, key=lambda logit: (math.isnan(logit), logit))
        total += top + math.log(sum(math.exp(logit - top) for logit in kept)) - logits[own]
    return total / len(positives)


@fuzz(100, case=contrasts())
def test_info_nce_is_what_loops_give(case) -> None:
    queries, documents, positives, temperature, allowed = case
    owners = torch.zeros(len(documents), dtype=torch.int64)
    owners[positives] = torch.arange(len(positives))
    layout = Layout(positives, owners, None if allowed is None else ~allowed)
    found, wanted = info_nce(queries, documents, layout, temperature).item(), nce_by_loops(*case)
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4, nan_ok=True)


@fuzz(60, rows=st.integers(1, 9), width=st.integers(1, 12), seed=SEEDS, size=st.integers(1, 40), scale=st.floats(-3, 3))
def test_cross_entropy_in_slices_is_that_of_autograd(rows, width, seed, size, scale) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (10 * torch.randn(rows, width, generator=generator)).requires_grad_()
    targets = torch.randint(width, (rows,), generator=generator)
    wanted = scale * torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
    wanted.backward()
    for overwrite in (False, True):
        given = logits.detach().clone()
        with mock.patch.object(tokens, "ELEMENTS", size):
            value, gradient = cross_entropy_sum(given, targets, scale, overwrite)
        assert value.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-4)
        assert torch.allclose(gradient, logits.grad, atol=1e-5)
        assert torch.equal(given, logits) != overwrite or torch.equal(gradient, logits)


# --------------------------------------------------------------------------------------------------------------- codes

VALUES = st.floats(-1, 1).map(lambda value: round(value, 6)) | st.sampled_from([0.0, -0.0, 1e-20, 1e10, -1e10, 0.5])


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    width = draw(st.integers(1, 17))
    row = st.lists(VALUES, min_size=width, max_size=width)
    return tuple(np.array(draw(st.lists(row, min_size=2, max_size=5)), dtype=np.float32) for _ in range(2))


@fuzz(40, case=matrices(), shared=st.booleans())
def test_codes_are_the_steps_and_signs_that_loops_count(case, shared) -> None:
    samples, vectors = case
    ranges = calibrate(samples, shared)
    if shared:
        assert (ranges[1] == np.abs(samples).max()).all() and (ranges[0] == -ranges[1]).all()
    codes = quantize(vectors, "uint8", ranges)
    assert np.array_equal(quantize(vectors, "int8", ranges).astype(int), codes.astype(int) - 128)
    for column in range(vectors.shape[1]):
        low, high = map(float, ranges[:, column])
        for value, code in zip(vectors[:, column].tolist(), codes[:, column].tolist(), strict=True):
            if high == low:
                wanted = 0 if value < low + 1 else 255 if value >= low + 255 else math.floor(value - low)
            else:
                wanted = min(255, max(0, math.floor((value - low) / (high - low) * 255)))
            assert abs(code - wanted) <= 1  # float32 may put a value on a border into the next step
    bits = quantize(vectors, "ubinary")
    assert np.array_equal(quantize(vectors, "binary").astype(int), bits.astype(int) - 128)
    for row, vector in zip(bits.tolist(), vectors.tolist(), strict=True):
        signs = "".join("1" if value > 0 else "0" for value in vector)
        assert "".join(f"{byte:08b}" for byte in row) == signs.ljust(8 * len(row), "0")


@fuzz(40, case=matrices(), bad=st.sampled_from([math.nan, math.inf, -math.inf]), place=st.integers(0, 10**6))
def test_what_is_no_number_has_no_code(case, bad, place) -> None:
    samples, vectors = case
    ranges = calibrate(samples)
    vectors.flat[place % vectors.size] = bad
    for precision in ("int8", "uint8", "binary", "ubinary"):
        with pytest.raises(ValueError, match="nan or infinity"):
            quantize(vectors, precision, ranges if "int" in precision else None)
    with pytest.raises(ValueError, match="nan or infinity"):
        calibrate(vectors)
    ranges.flat[place % ranges.size] = bad
    with pytest.raises(ValueError, match="ranges hold nan, infinity"):
        quantize(samples, "int8", ranges)

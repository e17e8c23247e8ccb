"""Losses: numbers derived by hand, and value and gradient against the formula written out."""

import math

import pytest
import torch
from torch import Tensor

from llm2enc.losses import Layout, cross_entropy_sum, info_nce, target_weights, tokens

EAST, NORTH = [1.0, 0.0], [0.0, 1.0]


def layout(positives: list[int], documents: int, excluded: Tensor | None = None) -> Layout:
    """The positives among so many documents; all others belong to row 0."""
    owners = torch.zeros(documents, dtype=torch.int64)
    owners[positives] = torch.arange(len(positives))
    return Layout(torch.tensor(positives), owners, excluded)


def test_two_by_two_by_hand() -> None:
    """Cosines 1 and 0 at temperature 1: -log(e / (e + 1)) = log(1 + 1/e), for both queries."""
    queries = documents = torch.tensor([EAST, NORTH])
    assert info_nce(queries, documents, layout([0, 1], 2), 1.0).item() == pytest.approx(0.31326169)
    swapped = info_nce(queries, documents, layout([1, 0], 2), 1.0)
    assert swapped.item() == pytest.approx(1 + 0.31326169)  # log(1 + e)


def test_three_documents_at_two_temperatures_by_hand() -> None:
    """Cosines 0.6, 0.8 and -1 to one query, the first is right."""
    documents = torch.tensor([[0.6, 0.8], [0.8, -0.6], [-1.0, 0.0]])
    for temperature in (1.0, 0.2):
        cosines = [cosine / temperature for cosine in (0.6, 0.8, -1.0)]
        expected = math.log(sum(math.exp(cosine) for cosine in cosines)) - cosines[0]
        loss = info_nce(torch.tensor([EAST]), documents, layout([0], 3), temperature)
        assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_mean_over_queries_and_a_free_choice_of_positives() -> None:
    """Queries east, north, east over documents north, east, north: cosines 0 1 0, 1 0 1, 0 1 0."""
    loss = info_nce(torch.tensor([EAST, NORTH, EAST]), torch.tensor([NORTH, EAST, NORTH]), layout([1, 0, 2], 3), 1.0)
    expected = [math.log(2 + math.e) - 1, math.log(1 + 2 * math.e) - 1, math.log(2 + math.e)]
    assert loss.item() == pytest.approx(sum(expected) / 3)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_equal_vectors_give_log_n(count: int) -> None:
    vectors = torch.ones(count, 4)
    loss = info_nce(vectors, vectors, layout(list(range(count)), count), 0.02)
    assert loss.item() == pytest.approx(math.log(count), abs=1e-6)


def test_length_does_not_matter_and_16_bit_vectors_are_compared_in_float32() -> None:
    queries, documents = torch.tensor([EAST, NORTH]), torch.tensor([[3.0, 4.0], [4.0, 3.0]])
    own = layout([0, 1], 2)
    plain = info_nce(queries, documents, own, 0.02)
    torch.testing.assert_close(info_nce(queries * 8, documents * 2, own, 0.02), plain)
    # These numbers are exact in bfloat16, so only the arithmetic could differ.
    half = info_nce(queries.bfloat16(), documents.bfloat16(), own, 0.02)
    assert half.dtype == torch.float32
    assert half.item() == plain.item() == pytest.approx(10 + math.log1p(math.exp(-10)))  # (0.8 - 0.6) / 0.02


def test_excluded_documents_leave_the_denominator_and_the_positive_never_does() -> None:
    queries = torch.tensor([EAST, EAST])
    documents = torch.tensor([EAST, EAST, NORTH, [-1.0, 0.0]])
    excluded = torch.tensor([[False, True, False, True], [True, True, True, False]])
    loss = info_nce(queries, documents, layout([0, 1], 4, excluded), 1.0)
    first = math.log(math.e + 1) - 1  # over 1 and 0
    second = math.log(math.e + math.exp(-1)) - 1  # over its positive, excluded by name, and -1
    assert loss.item() == pytest.approx((first + second) / 2)
    everything = torch.ones(2, 4, dtype=torch.bool)
    assert info_nce(queries, documents, layout([0, 1], 4, everything), 1.0).item() == 0


def test_cross_entropy_by_hand() -> None:
    """Uniform over 4 is log 4; logit 3 against 0, 0, 0 is log(1 + 3 e^-3)."""
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]], dtype=torch.bfloat16)
    loss, gradient = cross_entropy_sum(logits, torch.tensor([2, 0]), scale=0.5, overwrite=False)
    assert loss.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    assert loss.item() == pytest.approx((math.log(4) + math.log1p(3 * math.exp(-3))) / 2, rel=1e-6)
    assert gradient[0].tolist() == [0.125, 0.125, -0.375, 0.125]  # (softmax - one-hot) / 2
    nothing, _ = cross_entropy_sum(logits[:0], torch.tensor([], dtype=torch.int64), 1.0, overwrite=False)
    assert nothing.item() == 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_cross_entropy_and_its_gradient_are_those_of_autograd(overwrite: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "ELEMENTS", 3 * 50)  # three rows at a time: 7 rows make three slices
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(7, 50, generator=generator)).requires_grad_()
    targets = torch.randint(50, (7,), generator=generator)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum") * 0.25
    expected.backward()
    given = logits.detach().clone()
    loss, gradient = cross_entropy_sum(given, targets, 0.25, overwrite)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, logits.grad, atol=1e-7, rtol=1e-5)
    assert (gradient.data_ptr() == given.data_ptr()) is overwrite
    assert torch.equal(given, logits.detach()) is not overwrite


@pytest.mark.parametrize("overwrite", [False, True])
def test_weighted_rows_of_logits(overwrite: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "ELEMENTS", 14)  # two rows at a time
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=generator).requires_grad_()
    weights, targets = torch.rand(5, generator=generator), torch.tensor([0, 3, 6, 3, 1])
    expected = 0.25 * (weights * torch.nn.functional.cross_entropy(logits, targets, reduction="none")).sum()
    expected.backward()
    loss, gradient = cross_entropy_sum(logits.detach().clone(), targets, 0.25, overwrite, weights)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, logits.grad)


def test_what_a_token_counts_by_hand() -> None:
    """Of 3, 1, 0, 0, 4 tokens in groups of two the groups have 4, 0 and 4, so that two groups count."""
    counts = torch.tensor([3, 1, 0, 0, 4])
    assert target_weights(counts, "mixed", 2)[[0, 1, 4]].tolist() == [1 / 8] * 3
    assert target_weights(counts, "mixed")[[0, 1, 4]].tolist() == [1 / 8] * 3  # 8 tokens
    assert target_weights(counts, "mixed", 1)[[0, 1, 4]].tolist() == pytest.approx([1 / 9, 1 / 3, 1 / 12])
    assert target_weights(counts, "token").tolist() == [1 / 5] * 5

"""Losses: numbers derived by hand, and value and gradient against the formula written out."""

import math

import pytest
import torch
from torch import Tensor

from llm2enc.losses import cross_entropy_sum, info_nce, tokens

EAST, NORTH = [1.0, 0.0], [0.0, 1.0]


def test_two_by_two_by_hand() -> None:
    """Cosines 1 and 0 at temperature 1: -log(e / (e + 1)) = log(1 + 1/e), for both queries."""
    queries = documents = torch.tensor([EAST, NORTH])
    assert info_nce(queries, documents, torch.tensor([0, 1]), 1.0).item() == pytest.approx(0.31326169)
    swapped = info_nce(queries, documents, torch.tensor([1, 0]), 1.0)
    assert swapped.item() == pytest.approx(1 + 0.31326169)  # log(1 + e)


def test_three_documents_at_two_temperatures_by_hand() -> None:
    """Cosines 0.6, 0.8 and -1 to one query, the first is right."""
    documents = torch.tensor([[0.6, 0.8], [0.8, -0.6], [-1.0, 0.0]])
    for temperature in (1.0, 0.2):
        cosines = [cosine / temperature for cosine in (0.6, 0.8, -1.0)]
        expected = math.log(sum(math.exp(cosine) for cosine in cosines)) - cosines[0]
        loss = info_nce(torch.tensor([EAST]), documents, torch.tensor([0]), temperature)
        assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_mean_over_queries_and_a_free_choice_of_positives() -> None:
    """Queries east, north, east over documents north, east: losses log(1 + 1/e), log(1 + 1/e), log(1 + e)."""
    loss = info_nce(torch.tensor([EAST, NORTH, EAST]), torch.tensor([NORTH, EAST]), torch.tensor([1, 0, 0]), 1.0)
    assert loss.item() == pytest.approx(0.31326169 + 1 / 3)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_equal_vectors_give_log_n(count: int) -> None:
    vectors = torch.ones(count, 4)
    loss = info_nce(vectors, vectors, torch.arange(count), 0.02)
    assert loss.item() == pytest.approx(math.log(count), abs=1e-6)


def test_length_does_not_matter_and_16_bit_vectors_are_compared_in_float32() -> None:
    queries, documents = torch.tensor([EAST, NORTH]), torch.tensor([[3.0, 4.0], [4.0, 3.0]])
    positives = torch.tensor([0, 1])
    plain = info_nce(queries, documents, positives, 0.02)
    torch.testing.assert_close(info_nce(queries * 8, documents * 2, positives, 0.02), plain)
    # These numbers are exact in bfloat16, so only the arithmetic could differ.
    half = info_nce(queries.bfloat16(), documents.bfloat16(), positives, 0.02)
    assert half.dtype == torch.float32
    assert half.item() == plain.item() == pytest.approx(10 + math.log1p(math.exp(-10)))  # (0.8 - 0.6) / 0.02


def test_documents_not_allowed_leave_the_denominator_and_the_positive_never_does() -> None:
    queries = torch.tensor([EAST, EAST])
    documents = torch.tensor([EAST, NORTH, [-1.0, 0.0]])
    allowed = torch.tensor([[True, True, False], [False, False, True]])
    loss = info_nce(queries, documents, torch.tensor([0, 0]), 1.0, allowed)
    first = math.log(math.e + 1) - 1  # over 1 and 0
    second = math.log(math.e + math.exp(-1)) - 1  # over its positive, not allowed by name, and -1
    assert loss.item() == pytest.approx((first + second) / 2)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert info_nce(queries, documents, torch.tensor([0, 1]), 1.0, nothing).item() == 0
    everything = torch.ones(2, 3, dtype=torch.bool)
    torch.testing.assert_close(
        info_nce(queries, documents, torch.tensor([0, 1]), 0.5, everything),
        info_nce(queries, documents, torch.tensor([0, 1]), 0.5),
    )


def written_out(
    queries: Tensor, documents: Tensor, positives: list[int], temperature: float, allowed: Tensor
) -> Tensor:
    losses = []
    for row, positive in enumerate(positives):
        cosines = [queries[row] @ document / queries[row].norm() / document.norm() for document in documents]
        counted = [c for n, c in enumerate(cosines) if n == positive or allowed[row, n]]
        losses.append(torch.log(sum(torch.exp(c / temperature) for c in counted)) - cosines[positive] / temperature)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_value_and_gradients_equal_the_formula_written_out(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, documents = (torch.randn(n, 5, generator=generator, requires_grad=True) for n in (4, 7))
    allowed = torch.rand(4, 7, generator=generator) < 0.6
    positives = [3, 0, 6, 3]
    ours = info_nce(queries, documents, torch.tensor(positives), temperature, allowed)
    theirs = written_out(queries, documents, positives, temperature, allowed)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, (queries, documents)), torch.autograd.grad(theirs, (queries, documents)), strict=True
    ):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


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

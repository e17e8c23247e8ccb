"""Losses of labelled pairs: golden numbers, identities, sentence-transformers' own, and formulas written out."""

import math

import pytest
import torch
from torch import Tensor

from llm2enc.losses import (
    angle,
    angle_similarity,
    cosent,
    cosine_mse,
    in_batch_pairs,
    margin_contrastive,
    softmax_classes,
    triplet,
)
from tests.support.toy import POSITIVES, QUERIES, assert_equal, at, peer, random

LABELS = torch.tensor([0.9, 0.1, 0.5], dtype=torch.float64)
FIVE = torch.tensor([2.0, 0.0, 2.0, 5.0, 3.5])  # with a tie


def test_the_golden_numbers() -> None:
    assert cosent(QUERIES, POSITIVES, LABELS, 20).item() == pytest.approx(1.215197, abs=5e-7)
    assert angle_similarity(QUERIES, POSITIVES).tolist() == pytest.approx([0.811160, 0.707107, 1.158456], abs=5e-7)
    assert angle_similarity(POSITIVES, QUERIES).tolist() == pytest.approx([1.158456, 1.224745, 0.811160], abs=5e-7)
    assert angle(QUERIES, POSITIVES, LABELS, 20).item() == pytest.approx(6.947009, abs=5e-7)


@pytest.mark.parametrize("loss", [cosent, angle])
def test_only_the_order_of_labels_counts_and_not_that_of_pairs(loss) -> None:
    first, second = random(5, 6), random(5, 6, seed=1)
    value = loss(first, second, FIVE, 20.0)
    assert loss(first, second, torch.zeros(5), 20.0).item() == 0
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(loss(first[order], second[order], FIVE[order], 20.0), value)
    torch.testing.assert_close(loss(first, second, FIVE**2 - 7, 20.0), value)
    torch.testing.assert_close(loss(3 * first, second / 5, FIVE, 20.0), value)


def test_a_batch_of_one_label_has_no_gradient() -> None:
    first, second = random(4, 6), random(4, 6, seed=1)
    cosent(first, second, torch.ones(4), 20.0).backward()
    assert not first.grad.any() and not second.grad.any()


def test_two_pairs_by_hand() -> None:
    """Cosines 0.6 (label 1) and 0.8 (label 0): log(1 + e^(0.2 scale)). In the right order it is log(1 + e^(-0.2 scale))."""
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    second = torch.tensor([[0.6, 0.8], [0.8, -0.6]])
    for labels, sign in (([1.0, 0.0], 1), ([0.0, 1.0], -1)):
        found = cosent(first, second, torch.tensor(labels), 20).item()
        assert found == pytest.approx(math.log1p(math.exp(sign * 4)), rel=1e-5)


def test_angle_is_a_similarity_that_is_one_for_equal_vectors_and_never_above_the_root_of_two() -> None:
    vectors = random(50, 8)
    assert angle_similarity(vectors, vectors).tolist() == pytest.approx([1.0] * 50)
    assert (angle_similarity(vectors, random(50, 8, seed=1)) <= 2**0.5).all()
    assert angle_similarity(at(45), at(0)).item() == pytest.approx(2**0.5)
    # The loss falls as x of the pair with the higher label rises.
    labels = torch.tensor([1.0, 0.0])
    low, high = (angle(at(0, 0), at(degrees, 120), labels, 20) for degrees in (30, 5))
    assert high < low


def test_an_odd_width_is_padded_by_one_zero() -> None:
    first, second = random(5, 7), random(5, 7, seed=1)
    padded = [torch.nn.functional.pad(side, (0, 1)) for side in (first, second)]
    assert torch.equal(angle(first, second, FIVE, 20.0), angle(*padded, FIVE, 20.0))


@pytest.mark.parametrize("width", [6, 7])
@pytest.mark.parametrize(("ours", "other"), [(cosent, "CoSENTLoss"), (angle, "AnglELoss")])
def test_rankings_are_those_of_sentence_transformers(ours, other: str, width: int) -> None:
    loss = peer(other)(None, scale=20.0)
    assert_equal(
        lambda first, second: ours(first, second, FIVE, 20.0),
        lambda first, second: loss.compute_loss_from_embeddings([first, second], FIVE.double()),
        [random(5, width), random(5, width, seed=1)],
    )


def test_angle_of_triples_is_that_of_sentence_transformers() -> None:
    """Positives are labelled 1, negatives 0."""
    loss = peer("AnglELoss")(None, scale=20.0)
    labels = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    assert_equal(
        lambda q, p, n: angle(torch.cat([q, q]), torch.cat([p, n]), labels, 20.0),
        lambda q, p, n: loss.compute_loss_from_embeddings([q, p, n], None),
        [random(3, 6, seed=seed) for seed in range(3)],
    )


def test_cosine_mse_is_that_of_sentence_transformers() -> None:
    loss = peer("CosineSimilarityLoss")(None)
    targets = torch.tensor([0.0, 0.25, 1.0, 0.5, 0.75])
    assert_equal(
        lambda first, second: cosine_mse(first, second, targets.double()),
        lambda first, second: torch.nn.functional.mse_loss(torch.cosine_similarity(first, second), targets.double()),
        [random(5, 6), random(5, 6, seed=1)],
    )
    first, second = random(5, 6).float(), random(5, 6, seed=1).float()
    found = cosine_mse(first, second, targets)
    torch.testing.assert_close(found, loss.compute_loss_from_embeddings([first, second], targets))


@pytest.mark.parametrize("margin", [1.0, 5.0])
def test_triplets_are_those_of_sentence_transformers(margin: float) -> None:
    loss = peer("TripletLoss")(None, triplet_margin=margin)
    inputs = [random(5, 6, seed=seed) for seed in range(3)]
    assert_equal(
        lambda q, p, n: triplet(q, p, n, margin),
        lambda q, p, n: loss.compute_loss_from_embeddings([q, p, n], torch.empty(0)),
        inputs,
    )
    far = inputs[0] + 100
    assert triplet(inputs[0], inputs[0], far, margin).item() == 0  # farther away than the margin asks for
    same = triplet(inputs[0], inputs[0], inputs[0], margin)
    assert same.item() == margin and not torch.autograd.grad(same, inputs[0])[0].any()


def test_margin_contrastive_is_that_of_sentence_transformers() -> None:
    loss = peer("ContrastiveLoss")(None, margin=0.5)
    labels = torch.tensor([1, 0, 0, 1, 0])
    assert_equal(
        lambda first, second: margin_contrastive(first, second, labels, 0.5),
        lambda first, second: loss.compute_loss_from_embeddings([first, second], labels),
        [random(5, 6), random(5, 6, seed=1)],
    )


def test_softmax_classes_written_out() -> None:
    classes = [2, 0, 1, 1]
    first, second = random(4, 3), random(4, 3, seed=1)
    weight, bias = random(3, 9, seed=2), random(3, seed=3)

    def written_out(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        total = first.new_zeros(())
        for row, wanted in enumerate(classes):
            features = [*first[row], *second[row], *(abs(a - b) for a, b in zip(first[row], second[row], strict=True))]
            logits = [
                sum(w * f for w, f in zip(line, features, strict=True)) + b
                for line, b in zip(weight, bias, strict=True)
            ]
            total = total - torch.log(torch.exp(logits[wanted]) / sum(torch.exp(logit) for logit in logits))
        return total / len(classes)

    assert_equal(
        lambda *given: softmax_classes(given[0], given[1], torch.tensor(classes), *given[2:]),
        written_out,
        [first, second, weight, bias],
    )


def test_in_batch_pairs_written_out() -> None:
    positive = torch.tensor([True, False, True])

    def written_out(first: Tensor, second: Tensor) -> Tensor:
        texts = [*first, *second]
        total = first.new_zeros(())
        for row in (0, 2, 3, 5):  # both texts of the positive pairs
            cosines = {
                other: texts[row] @ text / texts[row].norm() / text.norm()
                for other, text in enumerate(texts)
                if other != row
            }
            logits = {other: 20 * cosine for other, cosine in cosines.items()}
            total = total + torch.log(sum(torch.exp(logit) for logit in logits.values())) - logits[(row + 3) % 6]
        return total / 6

    assert_equal(
        lambda first, second: in_batch_pairs(first, second, positive, 20.0),
        written_out,
        [random(3, 4), random(3, 4, seed=1)],
    )
    same = torch.ones(3, 4)
    assert in_batch_pairs(same, same, torch.ones(3, dtype=torch.bool), 20.0).item() == pytest.approx(math.log(5))


def test_16_bit_vectors_are_compared_in_float32() -> None:
    first, second = random(5, 6).bfloat16(), random(5, 6, seed=1).bfloat16()
    wide = cosent(first.float(), second.float(), FIVE, 20.0)
    assert torch.equal(cosent(first, second, FIVE, 20.0), wide) and wide.dtype == torch.float32

"""Losses against a teacher: golden numbers, identities, sentence-transformers' own, and formulas written out."""

import pytest
import torch
from torch import Tensor

from llm2enc.losses import (
    distillation_kl,
    embedding_match,
    margin_mse,
    soft_cross_entropy,
    successive_cross_entropy,
)
from tests.support.toy import NEGATIVES, POSITIVES, QUERIES, assert_equal, peer, random

TEACHER = torch.tensor([[2.0, 0.5], [1.0, 1.5], [3.0, -1.0]], dtype=torch.float64)
STUDENT = torch.stack([(QUERIES * POSITIVES).sum(1), (QUERIES * NEGATIVES).sum(1)], 1) / 0.5
ALL = torch.ones(3, 2, dtype=torch.bool)
RAGGED = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])


def test_the_golden_numbers() -> None:
    kl, ce = (loss(STUDENT, TEACHER, ALL).item() for loss in (distillation_kl, soft_cross_entropy))
    assert kl == pytest.approx(0.255332, abs=5e-7)
    assert ce == pytest.approx(0.664663, abs=5e-7)
    assert ce - kl == pytest.approx(0.409331, abs=5e-7)  # the teacher's entropy


def test_a_student_with_the_teachers_scores_has_nothing_to_learn() -> None:
    student = TEACHER.clone().requires_grad_()
    kl = distillation_kl(student, TEACHER, ALL)
    assert kl.item() == 0
    assert torch.autograd.grad(kl, student)[0].abs().max() < 1e-16
    assert margin_mse(student, TEACHER, ALL).item() == 0


@pytest.mark.parametrize("loss", [distillation_kl, soft_cross_entropy, margin_mse])
def test_a_constant_added_to_all_teacher_scores_of_a_query_changes_nothing(loss) -> None:
    shifted = TEACHER + torch.tensor([[1.0], [-4.0], [9.0]])
    torch.testing.assert_close(loss(STUDENT, shifted, ALL), loss(STUDENT, TEACHER, ALL))


def softmax(scores: list[Tensor]) -> list[Tensor]:
    total = sum(torch.exp(score) for score in scores)
    return [torch.exp(score) / total for score in scores]


def test_soft_labels_over_groups_of_different_sizes_written_out() -> None:
    teacher = random(3, 3, seed=1).detach()

    def written_out(student: Tensor, with_entropy: bool) -> Tensor:
        total = student.new_zeros(())
        for row, size in enumerate((3, 1, 2)):
            wanted, found = softmax(list(teacher[row, :size])), softmax(list(student[row, :size]))
            for p, s in zip(wanted, found, strict=True):
                total = total - p * torch.log(s) + (0 if with_entropy else p * torch.log(p))
        return total / 3

    for loss, with_entropy in ((distillation_kl, False), (soft_cross_entropy, True)):
        assert_equal(
            lambda student, loss=loss: loss(student, teacher, RAGGED),
            lambda student, kept=with_entropy: written_out(student, kept),
            [random(3, 3)],
        )
    absent = teacher.masked_fill(~RAGGED, 1e6)
    assert torch.equal(
        distillation_kl(STUDENT[:, [0, 1, 1]], absent, RAGGED), distillation_kl(STUDENT[:, [0, 1, 1]], teacher, RAGGED)
    )


def test_kl_and_margins_are_those_of_sentence_transformers() -> None:
    vectors = [random(3, 4, seed=seed) for seed in range(3)]

    def scores(query: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return torch.stack([(query * positive).sum(1), (query * negative).sum(1)], 1)

    kl = peer("DistillKLDivLoss")(None, student_temperature=0.5, teacher_temperature=2.0)
    assert_equal(
        lambda *texts: 0.25 * distillation_kl(scores(*texts) / 0.5, TEACHER / 2, ALL),  # they multiply by T^2
        lambda *texts: kl.compute_loss_from_embeddings(list(texts), TEACHER),
        vectors,
    )
    margins = peer("MarginMSELoss")(None)
    assert_equal(
        lambda *texts: margin_mse(scores(*texts), TEACHER, ALL),
        lambda *texts: margins.compute_loss_from_embeddings(list(texts), TEACHER[:, 0] - TEACHER[:, 1]),
        vectors,
    )


def test_margins_are_averaged_over_all_negatives_there_are() -> None:
    """Rows with 2, 0 and 1 negatives: three margins."""
    teacher = random(3, 3, seed=1).detach()

    def written_out(student: Tensor) -> Tensor:
        off = [
            (student[row, 0] - student[row, place]) - (teacher[row, 0] - teacher[row, place])
            for row, place in ((0, 1), (0, 2), (2, 1))
        ]
        return sum(one**2 for one in off) / 3

    assert_equal(lambda student: margin_mse(student, teacher, RAGGED), written_out, [random(3, 3)])


@pytest.mark.parametrize("masked", [False, True])
def test_successive_targets_written_out(masked: bool) -> None:
    """Columns: p0 n00 n01 | p1 | p2 n20; what was a target is no negative of the next."""
    group, groups = torch.tensor([[0, 1, 2], [3, 0, 0], [4, 5, 0]]), [[0, 1, 2], [3], [4, 5]]
    teacher = random(3, 3, seed=1).detach()
    allowed = torch.ones(3, 6, dtype=torch.bool)
    if masked:
        allowed[0, [2, 4]] = False  # of which 2 is its own, and counts
        allowed[1, 0] = False

    def written_out(scores: Tensor) -> Tensor:
        total = scores.new_zeros(())
        for row, own in enumerate(groups):
            weights = softmax(list(teacher[row, : len(own)]))
            left = [column for column in range(6) if column in own or allowed[row, column]]
            for weight, target in zip(weights, own, strict=True):
                total = total - weight * torch.log(
                    softmax([scores[row, target], *(scores[row, c] for c in left if c != target)])[0]
                )
                left.remove(target)
        return total / 3

    assert_equal(
        lambda scores: successive_cross_entropy(scores, group, teacher, RAGGED, allowed if masked else None),
        written_out,
        [random(3, 6)],
    )


@pytest.mark.parametrize("distance", ["mse", "l2", "cosine"])
def test_embedding_match_is_that_of_sentence_transformers(distance: str) -> None:
    loss = peer("EmbedDistillLoss")(None, distance_metric=distance)
    teacher = random(5, 6, seed=1).detach()
    assert_equal(
        lambda student: embedding_match(student, teacher, distance),
        lambda student: loss.compute_loss_from_embeddings([student], [teacher]),
        [random(5, 6)],
    )
    same = teacher.clone().requires_grad_()
    assert embedding_match(same, teacher, distance).item() == pytest.approx(0, abs=1e-12)

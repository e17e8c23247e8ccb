"""Losses against a teacher: of its scores, of its vectors.

Legend: Q queries, G documents of the largest group, N documents, D width. A group is a query's own positive and its hard
negatives; `present` (Q, G) says which places hold a document.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llm2enc.losses.vectors import widened

Distance = Literal["mse", "l2", "cosine"]


def distillation_kl(student: Tensor, teacher: Tensor, present: Tensor) -> Tensor:
    """KL(teacher || student) of the softmax over each group, mean over queries, in nats.

    student  (Q, G) scores, divided by the temperature; so is the teacher's
    """
    return soft_cross_entropy(student, teacher, present) - soft_cross_entropy(teacher, teacher, present)


def soft_cross_entropy(student: Tensor, teacher: Tensor, present: Tensor) -> Tensor:
    """Cross-entropy of the student's softmax over each group against the teacher's, mean over queries, in nats.

    It is `distillation_kl` plus the teacher's entropy, which has no gradient in the student. Arguments as there.
    """
    student, teacher = (_in_group(scores, present) for scores in (student, teacher))
    log_student = student.log_softmax(-1).masked_fill(~present, 0.0)
    return -(teacher.softmax(-1) * log_student).sum(-1).mean()


def successive_cross_entropy(
    scores: Tensor, group: Tensor, teacher: Tensor, present: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """Each document of a group in turn as the target, weighted by the teacher's softmax: bge-m3's distillation.

    scores   (Q, N) of every query with every document, divided by the temperature
    group    (Q, G) int64, the columns of each query's group, in order; anything where none is present
    teacher  (Q, G) scores
    allowed  (Q, N) bool, False for documents that are no negatives of a query; its group always counts

    A document that has been the target leaves the denominator of those behind it (FlagEmbedding's `m3_kd_loss`). Mean over
    queries, in nats.
    """
    weights = _in_group(teacher, present).softmax(-1)
    logits = widened(scores)
    if allowed is not None:
        own = torch.zeros_like(allowed, dtype=torch.int8).scatter_add_(1, group, present.to(torch.int8)).bool()
        logits = logits.masked_fill(~(allowed | own), -torch.inf)
    total = logits.new_zeros(())
    for place in range(group.size(1)):
        target, there = group[:, place], present[:, place]
        losses = F.cross_entropy(logits, target, reduction="none")
        total = total + torch.where(there, weights[:, place] * losses, 0.0).mean()
        used = F.one_hot(target, logits.size(1)).bool() & there[:, None]
        logits = logits.masked_fill(used, -torch.inf)
    return total


def margin_mse(student: Tensor, teacher: Tensor, present: Tensor) -> Tensor:
    """Mean squared error of the margins positive - negative, over all hard negatives (arXiv 2010.02666, eq. 5).

    student  (Q, G) scores, the positive first; so are the teacher's
    """
    ours, theirs = (widened(scores[:, :1] - scores[:, 1:])[present[:, 1:]] for scores in (student, teacher))
    return F.mse_loss(ours, theirs)


def embedding_match(student: Tensor, teacher: Tensor, distance: Distance) -> Tensor:
    """Mean distance of vectors (N, D) from the teacher's: squared per coordinate, Euclidean, or 1 - cosine.

    l2 is EmbedDistill's (arXiv 2301.12005); the distance of equal vectors has the gradient zero.
    """
    student, teacher = widened(student), widened(teacher)
    if distance == "mse":
        return F.mse_loss(student, teacher)
    if distance == "l2":
        return (student - teacher).norm(dim=-1).mean()
    return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()


def _in_group(scores: Tensor, present: Tensor) -> Tensor:
    return widened(scores).masked_fill(~present, -torch.inf)

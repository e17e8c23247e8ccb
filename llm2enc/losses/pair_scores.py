"""Losses of pairs of texts that somebody has labelled: scores, classes, or a third text that is farther away.

Legend: N pairs, D width, C classes. Vectors may have any length where a cosine is compared; Euclidean distances and the
softmax layer take them as they are. Every loss is a scalar, in float32 at least.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llm2enc.losses.vectors import pair_cosines, unit, widened


def ranking(similarities: Tensor, labels: Tensor) -> Tensor:
    """log(1 + sum of exp(s_i - s_j) over all i, j with label i < label j): CoSENT's form.

    similarities  (N,) of each pair, scaled
    labels        (N,) only their order counts; equal ones are not compared
    """
    differences = similarities[:, None] - similarities[None, :]  # (N, N)
    misplaced = differences.masked_fill(labels[:, None] >= labels[None, :], -torch.inf).flatten()
    return torch.cat([misplaced.new_zeros(1), misplaced]).logsumexp(0)


def cosent(first: Tensor, second: Tensor, labels: Tensor, scale: float) -> Tensor:
    """CoSENT (Huang et al., doi 10.1109/TASLP.2024.3402087): `ranking` by cosine.

    first, second  (N, D) the two texts of each pair
    labels         (N,) the higher, the more alike
    scale          factor of the cosines
    """
    return ranking(pair_cosines(first, second) * scale, labels)


def angle_similarity(first: Tensor, second: Tensor) -> Tensor:
    """(N,) AnglE's x = |sum of re + sum of im| of the quotient of two vectors read as complex numbers, over their lengths.

    A vector is split into halves, (real, imaginary); with u = (a, b) and v = (c, d) of unit length

        x = | a.c + b.d  +  b.c - a.d |

    The first two products are the cosine. x(u, u) = 1, x(u, v) differs from x(v, u), and the largest x, sqrt(2), is not
    that of equal vectors: in a plane, v is then turned by -45 degrees. An odd width is padded by one zero.
    """
    first, second = (F.pad(unit(side), (0, side.size(-1) % 2)) for side in (first, second))
    (a, b), (c, d) = first.chunk(2, dim=-1), second.chunk(2, dim=-1)
    return (a * c + b * d + b * c - a * d).sum(-1).abs()


def angle(first: Tensor, second: Tensor, labels: Tensor, scale: float) -> Tensor:
    """AnglE (arXiv 2309.12871) as its authors' code computes it: `ranking` by `angle_similarity`. Arguments as `cosent`.

    The sign is that of a similarity: x rises for pairs with higher labels. The paper (eq. 3) writes the opposite order,
    that of a distance, for the same x; the code is what the published models were trained with.
    """
    return ranking(angle_similarity(first, second) * scale, labels)


def cosine_mse(first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of the cosines against targets (N,), as SBERT's regression (arXiv 1908.10084, section 3)."""
    return F.mse_loss(pair_cosines(first, second), widened(targets))


def softmax_classes(first: Tensor, second: Tensor, classes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Cross-entropy of a linear layer on (u, v, |u - v|), SBERT's classification (arXiv 1908.10084, section 3).

    classes  (N,) int64
    weight   (C, 3 D) and bias (C,) of the layer
    """
    first, second = widened(first), widened(second)
    return F.cross_entropy(F.linear(torch.cat([first, second, (first - second).abs()], -1), weight, bias), classes)


def triplet(queries: Tensor, positives: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """Mean of max(0, |q - p| - |q - n| + margin) over (N, D) triples, Euclidean (SBERT: margin 1).

    The distance of equal vectors has the gradient zero.
    """
    nearer, farther = ((widened(queries) - widened(side)).norm(dim=-1) for side in (positives, negatives))
    return F.relu(nearer - farther + margin).mean()


def margin_contrastive(first: Tensor, second: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Mean of (y d^2 + (1 - y) max(0, margin - d)^2) / 2 with the cosine distance d (Hadsell et al., CVPR 2006, eq. 4).

    labels  (N,) y: 1 for a pair that belongs together, 0 for one that does not
    """
    distances, labels = 1 - pair_cosines(first, second), widened(labels)
    return (labels * distances.square() + (1 - labels) * F.relu(margin - distances).square()).mean() / 2


def in_batch_pairs(first: Tensor, second: Tensor, positive: Tensor, scale: float) -> Tensor:
    """Cross-entropy of a text's partner among all 2 N - 1 other texts, for both texts of the pairs that are positive.

    positive  (N,) bool; the texts of the other pairs serve as negatives alone
    scale     factor of the cosines

    Summed over the texts of positive pairs and divided by all 2 N texts, as AnglE's code does.
    """
    count = len(first)
    texts = unit(torch.cat([first, second]))
    logits = (texts @ texts.T * scale).fill_diagonal_(-torch.inf)
    partners = torch.arange(2 * count, device=logits.device).roll(count)
    losses = F.cross_entropy(logits, partners, reduction="none")
    return (losses * positive.repeat(2)).mean()

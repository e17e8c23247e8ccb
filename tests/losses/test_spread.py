"""The spread-out term: its two published forms, and what they give at the ends."""

import pytest
import torch

from llm2enc.losses import spread_out
from tests.support.toy import POSITIVES, QUERIES, assert_equal, peer, random


def test_the_golden_numbers() -> None:
    assert sum(spread_out(side, 0.0).item() for side in (QUERIES, POSITIVES)) == pytest.approx(0.606927, abs=5e-7)
    assert sum(spread_out(side, 0.5).item() for side in (QUERIES, POSITIVES)) == 0


def test_orthogonal_vectors_give_nothing_and_equal_ones_one_a_side() -> None:
    assert spread_out(5 * torch.eye(4), 0.0).item() == 0
    assert spread_out(torch.ones(4, 4), 0.0).item() == pytest.approx(1)
    assert spread_out(torch.ones(4, 4), 0.25, mean_weight=1.0).item() == pytest.approx(1.75)


def test_the_centred_form_is_that_of_sentence_transformers() -> None:
    """Its losses are averaged over the sides, ours are of one."""
    theirs = peer("GlobalOrthogonalRegularizationLoss")(None)  # which never calls its model
    assert_equal(
        lambda vectors: spread_out(vectors, 1 / 3, mean_weight=1.0),
        lambda vectors: sum(theirs.compute_loss_from_embeddings([vectors]).values()),
        [random(6, 3) + 0.5],
    )

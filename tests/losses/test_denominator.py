"""Every denominator of the published systems: golden numbers, numbers derived by hand, and one slow reference that lists
the members of each row in a loop."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from llm2enc.losses import Guide, Layout, info_nce, matryoshka
from tests.losses.toy import NEGATIVES, POSITIVES, QUERIES, assert_equal, at, random

PAIRS = {"hard_negatives": "none"}
BOTH_TOWERS = {"queries_as_negatives": True, "documents_as_negatives": "positives"}
GTE = PAIRS | BOTH_TOWERS | {"reverse_rows": "joint", "count_positive_in_reverse": True}
QWEN3 = {"hard_negatives": "own"} | BOTH_TOWERS
GECKO = {"hard_negatives": "own", "queries_as_negatives": True}
GEMMA = {"hard_negatives": "own", "hardness": 5.0, "hardness_on": "own_hard"}
# At 40 degrees the second positive would be as near to the first as its query is, and rounding would decide.
GUIDE = Guide(at(0, 30, 100), torch.stack([at(20, 40 + 1e-6, 105), at(10, 75, 150)], 1).flatten(0, 1))


def rows(count: int, hard: int) -> Layout:
    """Rows that stand one after the other: positive, then hard negatives."""
    return Layout(torch.arange(count) * (1 + hard), torch.arange(count).repeat_interleave(1 + hard))


def documents(positives: Tensor = POSITIVES) -> Tensor:
    return torch.stack([positives, NEGATIVES], 1).flatten(0, 1)


# ------------------------------------------------------------------------------------------------------- the reference


def reference(q: Tensor, d: Tensor, layout: Layout, temperature: float | Tensor, **options: Any) -> Tensor:
    """The mean over rows of -log(positive / sum of members), every member on its own."""
    losses = [_row(i, q, d, layout, temperature, **options) for i in range(len(q))]
    return torch.stack(losses).mean()


def _row(
    i, q, d, layout, temperature, *, similarity="cosine", reverse_rows="none", focal_gamma=0.0, **options
) -> Tensor:
    def logit(a: Tensor, b: Tensor) -> Tensor:
        return _dot(a, b, similarity) / temperature

    p = layout.positives.tolist()
    positive = logit(q[i], d[p[i]])
    forward, backward = [positive], [positive]
    if reverse_rows == "joint" and options.get("count_positive_in_reverse"):
        forward.append(positive)
    for name, a, b, extra in _members(i, q, d, layout, similarity, reverse_rows, **options):
        (backward if name == "pq" and reverse_rows != "joint" else forward).append(logit(a, b) + extra)
    losses = []
    for members in (forward, backward):
        share = positive.exp() / sum(member.exp() for member in members)
        losses.append((1 - share) ** focal_gamma * -share.log() if focal_gamma else -share.log())
    if reverse_rows not in ("mean", "sum") or not options.get("in_batch", True):
        return losses[0]
    return (losses[0] + losses[1]) / (2 if reverse_rows == "mean" else 1)


def _members(
    i, q, d, layout, similarity, reverse_rows, *, in_batch=True, hard_negatives="all", queries_as_negatives=False,
    documents_as_negatives="none", guide=None, own_margin=None, own_margin_on=(), hardness=0.0, hardness_on="all",
    hard_negative_bias=0.0, count_positive_in_reverse=False,
) -> Iterator[tuple[str, Tensor, Tensor, float | Tensor]]:  # fmt: skip
    """(block, one side, the other, what is added to the logit) of each negative of row i."""
    p, owners = layout.positives.tolist(), layout.owners.tolist()
    texts = {"q": q, "d": d}
    guides = {} if guide is None else {"q": guide.queries, "d": guide.documents}
    own = _dot(q[i], d[p[i]], similarity).item()

    def banned(document: int) -> bool:
        return layout.excluded is not None and bool(layout.excluded[i, document])

    def near(left: tuple[str, int], right: tuple[str, int]) -> bool:
        return _dot(texts[left[0]][left[1]], texts[right[0]][right[1]], similarity).item() > own + own_margin

    def kept(left: tuple[str, int], right: tuple[str, int], kind: str) -> bool:
        if guides:
            limit = _dot(guides["q"][i], guides["d"][p[i]], "cosine")
            limit = limit - (abs(limit) * guide.margin if guide.relative else guide.margin)
            if _dot(guides[left[0]][left[1]], guides[right[0]][right[1]], "cosine") > limit:
                return False
        if own_margin is not None:
            if kind in own_margin_on and near(left, right):
                return False
            if kind == "dd" and "dd_by_qd" in own_margin_on and near(("q", i), right):
                return False
        return True

    for n, owner in enumerate(owners):
        hard, mine = n not in p, owner == i
        wanted = (
            (hard_negatives != "none" if hard else False)
            if mine
            else in_batch and (not hard or hard_negatives == "all")
        )
        if n != p[i] and wanted and not banned(n) and kept(("q", i), ("d", n), "qd"):
            heavier = {"own_hard": mine, "in_batch": not mine, "all": True}[hardness_on]
            extra = hardness * heavier * _dot(q[i], d[n], similarity).item() + hard_negative_bias * mine
            yield "qd", q[i], d[n], extra
    if not in_batch:
        return
    for j in range(len(q)):
        known = layout.excluded_queries is not None and bool(layout.excluded_queries[i, j])
        if queries_as_negatives and j != i and not known and kept(("q", i), ("q", j), "qq"):
            yield "qq", q[i], q[j], 0.0
        right = layout.excluded is not None and bool(layout.excluded[j, p[i]])
        if reverse_rows != "none" and j != i and not right and kept(("d", p[i]), ("q", j), "pq"):
            yield "pq", d[p[i]], q[j], 0.0
    for n in {"none": [], "positives": p, "all": range(len(d))}[documents_as_negatives]:
        if n != p[i] and not banned(n) and kept(("d", p[i]), ("d", n), "dd"):
            yield "pp", d[p[i]], d[n], 0.0


def _dot(a: Tensor, b: Tensor, similarity: str) -> Tensor:
    return a @ b / (a.norm() * b.norm() if similarity == "cosine" else 1)


# -------------------------------------------------------------------------------------------------------------- golden


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (0.551697, PAIRS),
        (1.178038, {}),  # E5-mistral, BGE, GRIT, LLM2Vec, DPR
        (0.570746, {"in_batch": False}),  # SFR's classes, NV-Embed stage 2, nemotron
        (0.925215, {"hard_negatives": "own"}),  # Gemini
        (1.154403, GECKO),
        (4.003760, GEMMA),  # EmbeddingGemma
        (1.607175, GTE),
        (1.378588, GTE | {"count_positive_in_reverse": False}),  # SimLM, E5's code
        (0.554854, PAIRS | {"reverse_rows": "mean"}),  # cpt-text, CLIP
        (1.109707, PAIRS | {"reverse_rows": "sum"}),  # jina v3
        (1.392194, QWEN3),
        (1.392194, QWEN3 | {"own_margin": 0.1, "own_margin_on": ("qd", "qq")}),
        (1.392194, QWEN3 | {"own_margin": 0.1, "own_margin_on": ("qd", "qq", "dd_by_qd")}),
        (1.392194, QWEN3 | {"own_margin": 0.1, "own_margin_on": ("qd", "qq", "dd")}),
        (1.433494, BOTH_TOWERS | {"guide": GUIDE}),  # GISTEmbed
    ],
)
def test_golden_numbers_of_the_published_denominators(value: float, options: dict) -> None:
    """At temperature 0.5, to the last digit that is known; and the reference's value and gradients."""
    q, d = QUERIES.clone().requires_grad_(), documents().requires_grad_()
    ours, theirs = (
        partial(function, layout=rows(3, 1), temperature=0.5, **options) for function in (info_nce, reference)
    )
    assert ours(q, d).item() == pytest.approx(value, abs=5e-7)
    assert_equal(ours, theirs, [q, d])


@pytest.mark.parametrize(
    ("value", "on"),
    [(1.860200, None), (1.710938, ("qd", "qq")), (1.710938, ("qd", "qq", "dd_by_qd")), (1.381128, ("qd", "qq", "dd"))],
)
def test_readings_of_qwen3_that_the_first_positive_at_60_degrees_tells_apart(value: float, on: tuple | None) -> None:
    options = QWEN3 | ({} if on is None else {"own_margin": 0.1, "own_margin_on": on})
    q, d = QUERIES.clone().requires_grad_(), documents(at(60, 55, 100)).requires_grad_()
    ours, theirs = (
        partial(function, layout=rows(3, 1), temperature=0.5, **options) for function in (info_nce, reference)
    )
    assert ours(q, d).item() == pytest.approx(value, abs=5e-7)
    assert_equal(ours, theirs, [q, d])


B, K = 4, 2


@pytest.mark.parametrize(
    ("members", "options"),
    [
        (B, PAIRS),
        (B * (1 + K), {}),
        (1 + K, {"in_batch": False}),
        (B + K, {"hard_negatives": "own"}),  # Gemini
        (2 * B - 1 + K, GECKO),
        (4 * B - 2, GTE),
        (B * (1 + K) + 3 * (B - 1), BOTH_TOWERS | {"reverse_rows": "joint"}),  # SimLM
        (1 + K + 3 * (B - 1), QWEN3),
        (1 + K + 2 * (B - 1) + B * (1 + K) - 1, QWEN3 | {"documents_as_negatives": "all"}),  # its trainer
    ],
)
def test_equal_vectors_give_the_logarithm_of_the_number_of_members(members: int, options: dict) -> None:
    same = torch.ones(B * (1 + K), 5, dtype=torch.float64)
    loss = info_nce(same[:B], same, rows(B, K), 0.02, **options)
    assert loss.item() == pytest.approx(math.log(members), rel=1e-12)


@pytest.mark.parametrize(
    ("floor", "options"),
    [
        (0, {}),
        (math.log(2), GTE),
        (0, GTE | {"count_positive_in_reverse": False}),
        (0, QWEN3),
        (0, {"reverse_rows": "sum"}),
    ],
)
def test_perfect_separation_has_the_floor_of_its_denominator(floor: float, options: dict) -> None:
    q = torch.eye(6, dtype=torch.float64)[:3]
    d = torch.eye(6, dtype=torch.float64)[[0, 3, 1, 4, 2, 5]]
    assert info_nce(q, d, rows(3, 1), 0.01, **options).item() == pytest.approx(floor, abs=1e-12)


# ----------------------------------------------------------------------------------------------------- the same in bulk

LAYOUT = Layout(torch.tensor([0, 3, 4, 6]), torch.tensor([0, 0, 0, 1, 2, 2, 3]))  # 2, 0, 1 and 0 hard negatives
EXCLUDED = torch.zeros(4, 7, dtype=torch.bool).index_put(
    (torch.tensor([0, 1, 3, 3]), torch.tensor([3, 5, 6, 0])), torch.tensor(True)
)
EXCLUDED_QUERIES = torch.zeros(4, 4, dtype=torch.bool).index_put(
    (torch.tensor([0, 2]), torch.tensor([2, 1])), torch.tensor(True)
)
MASKED = Layout(LAYOUT.positives, LAYOUT.owners, EXCLUDED, EXCLUDED_QUERIES)
OWN = {"own_margin": 0.05}
RANDOM_GUIDE = Guide(random(4, 3, seed=7).detach(), random(7, 3, seed=8).detach(), 0.1)
ALL = BOTH_TOWERS | {"documents_as_negatives": "all"}
COMBINATIONS: list[dict] = [
    PAIRS, {}, {"in_batch": False}, {"hard_negatives": "own"}, GECKO, GEMMA, GTE, QWEN3, ALL,
    BOTH_TOWERS | {"reverse_rows": "joint"},
    {"reverse_rows": "mean"}, {"reverse_rows": "sum", "queries_as_negatives": True}, {"similarity": "dot"},
    {"hard_negative_bias": 0.7}, {"hardness": 2.0, "hardness_on": "in_batch"}, {"hardness": 2.0, "hardness_on": "all"},
    {"focal_gamma": 0.5}, {"focal_gamma": 2.0, "reverse_rows": "mean"}, {"similarity": "dot", "hardness": 0.5},
    {"in_batch": False, "hardness": 2.0, "hard_negative_bias": -0.3, "focal_gamma": 2.0},
    OWN | {"own_margin_on": ("qd",)}, ALL | OWN | {"own_margin_on": ("qq", "dd")},
    ALL | OWN | {"own_margin_on": ("dd_by_qd",)},
    QWEN3 | OWN | {"own_margin_on": ("qd", "qq", "dd", "dd_by_qd"), "reverse_rows": "joint"},
    BOTH_TOWERS | {"guide": RANDOM_GUIDE, "reverse_rows": "joint"}, ALL | {"guide": RANDOM_GUIDE},
    {"guide": Guide(RANDOM_GUIDE.queries, RANDOM_GUIDE.documents, 0.3, relative=True), "reverse_rows": "sum"},
    ALL | OWN | {"own_margin_on": ("qd",), "guide": RANDOM_GUIDE, "hardness": 1.0, "hard_negative_bias": 0.2,
                 "focal_gamma": 2.0},
]  # fmt: skip


@pytest.mark.parametrize("layout", [LAYOUT, MASKED], ids=["all", "excluded"])
@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda options: " ".join(options) or "plain")
def test_value_and_gradients_are_those_of_the_members_in_a_loop(options: dict, layout: Layout) -> None:
    """Of a temperature that trains too."""
    inputs = [random(4, 3, seed=1), random(7, 3, seed=2), torch.tensor(0.4, dtype=torch.float64, requires_grad=True)]
    assert_equal(
        lambda q, d, t: info_nce(q, d, layout, t, **options),
        lambda q, d, t: reference(q, d, layout, t, **options),
        inputs,
    )


# -------------------------------------------------------------------------------------------------- what depends on what


def moved(options: dict, document: int | None = None, query: int | None = None) -> list[bool]:
    """Of which rows the loss depends on a text."""
    q, d = random(4, 3, seed=1), random(7, 3, seed=2)
    found = []
    for row in range(4):
        loss = _row(row, q, d, LAYOUT, 0.5, **options)
        gradients = torch.autograd.grad(loss, (q, d), allow_unused=True, materialize_grads=True)
        found.append(bool((gradients[1][document] if query is None else gradients[0][query]).any()))
    return found


def test_the_reference_depends_on_what_each_system_says() -> None:
    """Row 0 owns documents 0, 1, 2; row 2 owns 4 and 5."""
    assert moved({}, document=5) == [True, True, True, True]  # E5-mistral shares hard negatives
    assert moved({"in_batch": False}, document=5) == [False, False, True, False]  # SFR, nemotron
    assert moved(GECKO, document=5) == [False, False, True, False]
    assert moved(GECKO, query=1) == [True, True, True, True]
    assert moved({"hard_negatives": "own"}, query=1) == [False, True, False, False]  # Gemini: no same tower


def test_a_row_that_occurs_twice_leaves_the_loss_as_it_is_without_its_double() -> None:
    """Gemini's mask: identical targets."""
    q, d = random(4, 3, seed=1), random(4, 3, seed=2)
    alone = info_nce(q, d, rows(4, 0), 0.1)
    twice = [0, 1, 2, 3, 1]
    excluded = torch.zeros(5, 5, dtype=torch.bool)
    excluded[1, 4] = excluded[4, 1] = True
    layout = Layout(torch.arange(5), torch.arange(5), excluded)
    each = torch.stack([_row(i, q, d, rows(4, 0), 0.1) for i in (1, 1)]).mean()
    doubled = torch.stack([_row(i, q[twice], d[twice], layout, 0.1) for i in (1, 4)]).mean()
    torch.testing.assert_close(doubled, each, rtol=1e-12, atol=0)
    assert info_nce(q[twice], d[twice], layout, 0.1) > alone  # of the other rows it is a negative twice


def test_a_guide_that_knows_nothing_leaves_out_nothing_and_the_student_itself_all_that_is_nearer() -> None:
    """A constant guide finds every text, its own text too, at the positive's distance."""
    q, d = random(4, 3, seed=1), random(7, 3, seed=2)
    plain = info_nce(q, d, LAYOUT, 0.5, **BOTH_TOWERS)
    blind = Guide(torch.ones(4, 2, dtype=torch.float64), torch.ones(7, 2, dtype=torch.float64))
    torch.testing.assert_close(info_nce(q, d, LAYOUT, 0.5, **BOTH_TOWERS, guide=blind), plain)
    itself = Guide(q.detach(), d.detach())
    assert all(
        _dot(a, b, "cosine") <= _dot(q[i], d[LAYOUT.positives[i]], "cosine")
        for i in range(4)
        for _, a, b, _ in _members(i, q, d, LAYOUT, "cosine", "none", **BOTH_TOWERS, guide=itself)
    )
    assert info_nce(q, d, LAYOUT, 0.5, **BOTH_TOWERS, guide=itself) < plain


def test_dot_products_know_lengths_and_both_directions_are_symmetric() -> None:
    q, d = random(4, 3, seed=1), random(4, 3, seed=2)
    assert info_nce(2 * q, d, rows(4, 0), 1.0, similarity="dot") != info_nce(q, d, rows(4, 0), 1.0, similarity="dot")
    torch.testing.assert_close(info_nce(2 * q, d, rows(4, 0), 1.0), info_nce(q, d, rows(4, 0), 1.0))
    both = [info_nce(a, b, rows(4, 0), 0.5, reverse_rows="sum") for a, b in ((q, d), (d, q))]
    torch.testing.assert_close(*both, rtol=1e-12, atol=0)


def test_a_perfect_row_has_no_focal_gradient_and_no_nan() -> None:
    q = torch.eye(3, requires_grad=True)
    loss = info_nce(q, torch.eye(3), rows(3, 0), 1e-3, focal_gamma=0.5)
    (gradient,) = torch.autograd.grad(loss, q)
    assert loss.item() == 0 and gradient.isfinite().all()


# ----------------------------------------------------------------------------------------------------------- matryoshka


def test_one_width_is_the_loss_and_a_sum_is_as_many_means() -> None:
    q, d = random(4, 6, seed=1), random(7, 6, seed=2)
    loss = partial(info_nce, layout=LAYOUT, temperature=0.5)
    assert torch.equal(matryoshka(loss, q, d, {6: 1.0}, "sum"), loss(q, d))
    weights = {6: 1.0, 4: 0.3, 2: 0.2}
    total, mean = (matryoshka(loss, q, d, weights, how) for how in ("sum", "mean"))
    torch.testing.assert_close(total, 3 * mean, rtol=1e-12, atol=0)
    by_hand = sum(weight * reference(q[:, :width], d[:, :width], LAYOUT, 0.5) for width, weight in weights.items())
    torch.testing.assert_close(total, by_hand, rtol=1e-11, atol=0)


def test_a_width_sees_its_own_coordinates_alone() -> None:
    q, d = random(4, 6, seed=1), random(7, 6, seed=2)
    loss = matryoshka(partial(info_nce, layout=LAYOUT, temperature=0.5), q, d, {2: 1.0}, "sum")
    for gradient in torch.autograd.grad(loss, (q, d)):
        assert gradient[:, :2].all() and not gradient[:, 2:].any()


def test_kalm_weights_sum_up_at_equal_losses() -> None:
    """1, .3, .2, .1, .1 of ln 4, the loss of equal vectors at any width."""
    same = torch.ones(4, 6, dtype=torch.float64)
    weights = dict(zip((6, 5, 4, 3, 2), (1.0, 0.3, 0.2, 0.1, 0.1), strict=True))
    value = matryoshka(partial(info_nce, layout=rows(4, 0), temperature=0.01), same, same, weights, "sum")
    assert value.item() == pytest.approx(1.7 * math.log(4), rel=1e-12)

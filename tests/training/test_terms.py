"""Terms beside InfoNCE: golden numbers, the totals of E5 and AnglE, every term written out, gradients at every split."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm2enc import losses
from llm2enc.data import Pair, RowBatch, ScoredPair
from llm2enc.encoding import Encoder
from llm2enc.errors import DataError
from llm2enc.recipe import ContrastiveStage, PairScoresStage, TeacherSpec, load_recipe
from llm2enc.training import OBJECTIVES
from llm2enc.training.objectives import contrastive, pair_scores
from llm2enc.training.objectives.contrastive import ContrastiveBatch
from llm2enc.training.objectives.terms import PROJECTION, SOFTMAX, linear
from llm2enc.training.teachers import Lesson
from tests.support.builders import assert_same, gradients, make_encoder
from tests.support.toy import NEGATIVES, POSITIVES, QUERIES, assert_equal, random

COMMON = {"steps": 1, "batch_size": 3, "lr": 1e-3, "precision": "float32"}
DATA = [{"kind": "files", "path": "unused.jsonl"}]
TEACHER = {"model": "a-teacher"}
TRIPLES = [
    Pair(f"q{row}", f"p{row}", (f"n{row}",), "", "", (), scores[:1], scores[1:])
    for row, scores in enumerate([(2.0, 0.5), (1.0, 1.5), (3.0, -1.0)])
]
RAGGED = [
    Pair("the old bridge", "a bridge of stone", ("wool", "wine"), "", "", (), (2.0,), (0.5, 1.0)),
    Pair("market day", "the market", (), "", "", (), (1.0,), ()),
    Pair("the mill", "a mill by the water", ("tall trees",), "", "", (), (3.0,), (-1.0,)),
]
OWNERS, IS_POSITIVE = [0, 0, 0, 1, 2, 2], [True, False, False, True, True, False]


def stage_of(loss: dict, **fields) -> ContrastiveStage:
    given = {"objective": "contrastive", "data": DATA, "hard_negatives": 2, "loss": loss} | COMMON | fields
    return ContrastiveStage.model_validate_json(json.dumps(given))


def batch_of(
    encoder: Encoder, rows: list[Pair], loss: dict, in_batch: bool = True, **fields
) -> tuple[ContrastiveBatch, ContrastiveStage]:
    stage = stage_of(loss, **fields)
    return contrastive.collate(RowBatch(0, rows, "here", in_batch), stage, encoder.input_format, 0), stage


def with_lesson(batch: ContrastiveBatch, **fields) -> ContrastiveBatch:
    return replace(batch, lessons={TeacherSpec(**TEACHER): Lesson(**fields)})  # pyright: ignore[reportArgumentType]


def total(encoder: Encoder, batch: ContrastiveBatch):
    """The loss as a function of queries and documents."""
    parts = contrastive.terms(encoder, batch)
    return lambda queries, documents: sum(term(queries, documents) for term in parts.values())


def interleaved(positives: Tensor, negatives: Tensor) -> Tensor:
    return torch.stack([positives, negatives], 1).flatten(0, 1)


# ------------------------------------------------------------------------------------------------------- golden numbers


@pytest.mark.parametrize("in_batch", [True, False])
def test_e5_is_kl_of_raw_teacher_scores_plus_a_share_of_the_contrastive_loss(encoder: Encoder, in_batch: bool) -> None:
    loss = {"temperature": 0.5, "weight": 0.2, "soft_labels": {"kind": "kl"}}
    batch, _ = batch_of(encoder, TRIPLES, loss, in_batch)
    expected = 0.490939 if in_batch else 0.255332 + 0.2 * 0.570746
    found = total(encoder, batch)(QUERIES, interleaved(POSITIVES, NEGATIVES))
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_flagembedding_adds_soft_cross_entropy_to_the_hard_one(encoder: Encoder) -> None:
    batch, _ = batch_of(encoder, TRIPLES, {"temperature": 0.5, "soft_labels": {"kind": "soft_ce"}})
    found = total(encoder, batch)(QUERIES, interleaved(POSITIVES, NEGATIVES))
    assert found.item() == pytest.approx(1.178038 + 0.664663, abs=2e-6)


def test_spread_out_of_queries_and_positives(encoder: Encoder) -> None:
    for centre, expected in ((0, 0.606927), ("1/d", 0.0)):
        batch, _ = batch_of(encoder, TRIPLES, {"spread_out": {"centre": centre}})
        term = contrastive.terms(encoder, batch)["spread_out"]
        assert term(QUERIES, interleaved(POSITIVES, NEGATIVES)).item() == pytest.approx(expected, abs=5e-7)


def test_spread_out_is_nested_with_the_contrastive_loss(encoder: Encoder) -> None:
    nested = {"dims": [4, 2], "weights": [1, 0.5], "reduce": "sum"}
    batch, _ = batch_of(encoder, TRIPLES, {"spread_out": {"centre": "1/d"}, "matryoshka": nested})
    queries, documents = random(3, 4) + 1, random(6, 4, seed=1) + 1
    expected = sum(
        weight * losses.spread_out(side[:, :width], 1 / width)
        for width, weight in ((4, 1.0), (2, 0.5))
        for side in (queries, documents[0::2])
    )
    torch.testing.assert_close(contrastive.terms(encoder, batch)["spread_out"](queries, documents), expected)


def test_without_a_share_the_contrastive_loss_leaves_other_rows_without_gradient(encoder: Encoder) -> None:
    """alpha = 0: what stands in other rows plays no role."""
    batch, _ = batch_of(encoder, RAGGED, {"weight": 0, "soft_labels": {"kind": "kl"}})
    assert list(contrastive.terms(encoder, batch)) == ["soft_labels"]
    queries, documents = random(3, 8), random(6, 8, seed=1)
    total(encoder, batch)(queries, documents).backward()
    assert documents.grad is not None and (documents.grad.abs().sum(1) > 0).tolist() == [
        True,
        True,
        True,
        False,
        True,
        True,
    ]


# ------------------------------------------------------------------------------------------------------- written out


ANGLE = {
    "temperature": 0.05, "weight": 0.5,
    "pair_scores": [
        {"kind": "in_batch", "weight": 0.5, "scale": 20},
        {"kind": "angle", "weight": 0.02, "scale": 20},
        {"kind": "cosent", "weight": 0.3, "scale": 20},
    ],
}  # fmt: skip


def test_angle_s_total_over_triples(encoder: Encoder) -> None:
    """(ibn + cln) / 2 + angle_w x angle + cosine_w x cosine, with labels 1 and 0."""
    batch, _ = batch_of(encoder, TRIPLES, ANGLE)
    labels = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])

    def written_out(queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        q, p, n = (F.normalize(side, dim=-1) for side in (queries, positives, negatives))
        ibn = F.cross_entropy(20 * q @ p.T, torch.arange(3))
        cln = F.cross_entropy(20 * q @ torch.cat([p, n]).T, torch.arange(3))
        pairs = torch.cat([q, q]), torch.cat([p, n])
        return (ibn + cln) / 2 + 0.02 * losses.angle(*pairs, labels, 20) + 0.3 * losses.cosent(*pairs, labels, 20)

    assert_equal(
        lambda q, p, n: total(encoder, batch)(q, interleaved(p, n)),
        written_out,
        [random(3, 6, seed=seed) for seed in range(3)],
    )


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return one @ other / one.norm() / other.norm()


@pytest.mark.parametrize("kind", ["kl", "margin_mse", "m3"])
def test_soft_labels_of_a_teacher_over_rows_of_different_sizes(kind: str, encoder: Encoder) -> None:
    spec = {"kind": kind, "teacher": TEACHER, "teacher_temperature": 0.5, "student_temperature": 0.1, "weight": 3}
    batch, _ = batch_of(encoder, RAGGED, {"weight": 0, "soft_labels": spec})
    scores = torch.tensor([0.9, 0.2, 0.4, 0.8, 0.7, 0.1], dtype=torch.float64)
    batch = with_lesson(batch, scores=scores, vectors=None)
    rows = [[n for n, owner in enumerate(OWNERS) if owner == row] for row in range(3)]

    def written_out(queries: Tensor, documents: Tensor) -> Tensor:
        value = queries.new_zeros(())
        for row, own in enumerate(rows):
            student = torch.stack([cosine(queries[row], document) for document in documents]) / 0.1
            teacher = scores[own] / 0.5
            if kind == "kl":
                value = value + F.kl_div(student[own].log_softmax(0), teacher.softmax(0), reduction="sum") / 3
            elif kind == "margin_mse":  # over the three negatives there are
                value = value + ((student[own[0]] - student[own[1:]]) - (teacher[0] - teacher[1:])).square().sum() / 3
            else:
                left = list(range(6))
                for weight, target in zip(teacher.softmax(0), own, strict=True):
                    value = value - weight * student[left].log_softmax(0)[left.index(target)] / 3
                    left.remove(target)
        return 3 * value

    assert_equal(total(encoder, batch), written_out, [random(3, 4), random(6, 4, seed=1)])


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_students_are_compared_as_the_loss_compares(similarity: str, encoder: Encoder) -> None:
    batch, _ = batch_of(
        encoder, TRIPLES, {"similarity": similarity, "weight": 0, "temperature": 0.5, "soft_labels": {"kind": "kl"}}
    )
    term, documents = total(encoder, batch), interleaved(POSITIVES, NEGATIVES)
    longer = term(2 * QUERIES, documents)
    assert torch.equal(longer, term(QUERIES, documents)) == (similarity == "cosine")


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("distance", ["mse", "l2", "cosine"])
def test_embedding_match_sums_over_the_sides(distance: str, normalize: bool, encoder: Encoder) -> None:
    encoder.normalize = normalize
    spec = {"teacher": TEACHER, "distance": distance, "weight": 2}
    batch, _ = batch_of(encoder, RAGGED, {"weight": 0, "embedding_match": spec})
    teacher = random(9, 4, seed=2).detach()  # q0 p0 n00 n01 | q1 p1 | q2 p2 n20
    batch = with_lesson(batch, scores=torch.zeros(6), vectors=teacher)
    sides = {(0, 4, 6): [0, 4, 6], (1, 5, 7): [0, 3, 4], (2, 3, 8): [1, 2, 5]}

    def written_out(queries: Tensor, documents: Tensor) -> Tensor:
        value = queries.new_zeros(())
        for number, (wanted, places) in enumerate(sides.items()):
            ours = queries if number == 0 else documents[places]
            for mine, theirs in zip(ours, teacher[list(wanted)], strict=True):
                mine = mine / mine.norm() if normalize else mine
                off = {
                    "mse": ((mine - theirs) ** 2).mean(),
                    "l2": (mine - theirs).norm(),
                    "cosine": 1 - cosine(mine, theirs),
                }
                value = value + 2 * off[distance] / 3
        return value

    assert_equal(total(encoder, batch), written_out, [random(3, 4), random(6, 4, seed=1)])


def test_embedding_match_of_some_sides_and_through_a_projection(encoder: Encoder) -> None:
    encoder.normalize = False
    encoder.auxiliary = nn.ModuleDict({PROJECTION: linear(4, 5, 0, encoder.device).double()})
    layer = encoder.auxiliary[PROJECTION]
    spec = {"teacher": TEACHER, "distance": "mse", "on": ["query"], "projection": True}
    batch, _ = batch_of(encoder, RAGGED, {"weight": 0, "embedding_match": spec})
    teacher = random(9, 5, seed=2).detach()
    term = total(encoder, with_lesson(batch, scores=torch.zeros(6), vectors=teacher))
    queries, documents = random(3, 4), random(6, 4, seed=1)
    value = term(queries, documents)
    torch.testing.assert_close(value, F.mse_loss(queries @ layer.weight.T + layer.bias, teacher[[0, 4, 6]]))
    value.backward()
    assert documents.grad is None or not documents.grad.any()
    assert layer.weight.grad.any() and layer.bias.grad.any()


def test_triplets_are_those_of_every_hard_negative(encoder: Encoder) -> None:
    encoder.normalize = False
    batch, _ = batch_of(encoder, RAGGED, {"weight": 0, "pair_scores": [{"kind": "triplet", "margin": 5, "weight": 2}]})

    def written_out(queries: Tensor, documents: Tensor) -> Tensor:
        value = queries.new_zeros(())
        for query, positive, negative in ((0, 0, 1), (0, 0, 2), (2, 4, 5)):
            nearer, farther = ((queries[query] - documents[other]).norm() for other in (positive, negative))
            value = value + 2 * F.relu(nearer - farther + 5) / 3
        return value

    assert_equal(total(encoder, batch), written_out, [random(3, 4), random(6, 4, seed=1)])


def test_labels_of_scored_pairs_are_scaled_by_what_the_recipe_says(encoder: Encoder) -> None:
    rows = [ScoredPair("a", "b", 5.0, "", ""), ScoredPair("c", "d", 0.0, "", ""), ScoredPair("e", "f", 2.5, "", "")]
    stage = scored_stage([{"kind": "cosine_mse", "labels": [0, 5]}])
    batch = pair_scores.collate(RowBatch(0, rows, "here", True), stage, encoder.input_format, 0)
    encoder.backbone.train_everything(head=False)
    found = pair_scores.backward(encoder, batch, stage)["loss"]
    vectors = torch.from_numpy(encoder.encode([text for row in rows for text in (row.first, row.second)]))
    cosines = (vectors[0::2] * vectors[1::2]).sum(1)
    torch.testing.assert_close(found, (cosines - torch.tensor([1.0, 0.0, 0.5])).square().mean(), rtol=1e-5, atol=1e-6)
    assert batch.describe() == {"labels": "3 from 0 to 5"}


def scored_stage(pair_scores: list[dict], **fields) -> PairScoresStage:
    given = {"objective": "pair_scores", "data": DATA, "loss": {"pair_scores": pair_scores}} | COMMON | fields
    return PairScoresStage.model_validate_json(json.dumps(given))


# ----------------------------------------------------------------------------------------------------------- gradients

EVERYTHING = {
    "temperature": 0.2,
    "soft_labels": {"kind": "m3", "weight": 0.5},
    "embedding_match": {"teacher": TEACHER, "distance": "l2", "projection": True},
    "spread_out": {"centre": 0, "mean_weight": 1},
    "pair_scores": [{"kind": "angle"}, {"kind": "triplet"}, {"kind": "cosine_mse"}, {"kind": "contrastive"}],
}
SCORED = [ScoredPair(f"a text {i}", f"another one {i}", float(i % 2), "Alike?", "") for i in range(5)]
ALL_SCORED = [{"kind": kind} for kind in ("cosent", "angle", "in_batch", "cosine_mse", "contrastive")] + [
    {"kind": "softmax", "classes": 2}
]


@pytest.mark.parametrize("objective", ["contrastive", "pair_scores"])
def test_every_split_gives_the_gradient_of_the_whole_batch(objective: str) -> None:
    found = []
    for size in (10**6, 1):
        encoder = make_encoder()
        encoder.backbone.train_everything(head=False)
        sizes = {"micro_batch_tokens": size, "rng_shards": 1 if size > 1 else 3}
        if objective == "contrastive":
            batch, stage = batch_of(encoder, RAGGED, EVERYTHING, **sizes)
            batch = with_lesson(batch, scores=torch.zeros(6), vectors=random(9, 12, seed=2).detach().float())
            encoder.auxiliary = nn.ModuleDict({PROJECTION: linear(32, 12, 0, encoder.device)})
        else:
            stage = scored_stage(ALL_SCORED, **sizes)
            batch = pair_scores.collate(RowBatch(0, SCORED, "here", True), stage, encoder.input_format, 0)
            encoder.auxiliary = nn.ModuleDict({SOFTMAX: linear(96, 2, 0, encoder.device)})
        metrics = OBJECTIVES[objective].backward(encoder, batch, stage)
        found.append((metrics, gradients(encoder)))
    (whole, expected), (cut, gradient) = found
    assert whole.keys() == cut.keys() and len(whole) > 5
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-5, atol=1e-6)
    assert sum(name.startswith("auxiliary") for name in expected) == 2
    assert_same(gradient, expected, 2e-5)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("losses", "label", "message"),
    [
        ({"kind": "cosine_mse"}, 5.0, "here has the label 5; `cosine_mse` takes 0 to 1"),
        ({"kind": "softmax"}, 3.0, "here has the label 3; `softmax` takes whole numbers below 3"),
        ({"kind": "softmax"}, 0.5, "whole numbers"),
        ({"kind": "contrastive"}, 0.5, "takes 0 or 1"),
        ({"kind": "in_batch"}, 2.0, "takes 0 or 1"),
    ],
)
def test_labels_that_a_loss_has_no_meaning_for(losses: dict, label: float, message: str, encoder: Encoder) -> None:
    rows = RowBatch(0, [ScoredPair("a", "b", 1.0, "", ""), ScoredPair("c", "d", label, "", "")], "here", True)
    with pytest.raises(DataError, match=message):
        pair_scores.collate(rows, scored_stage([losses]), encoder.input_format, 0)


def test_rows_without_scores_and_batches_without_negatives(encoder: Encoder) -> None:
    with pytest.raises(DataError, match=r"here has a row without scores .* or a teacher"):
        batch_of(encoder, [*RAGGED, Pair("x", "y", (), "", "")], {"soft_labels": {"kind": "kl"}})
    with pytest.raises(DataError, match="here has a batch without a single hard negative, and `triplet` compares"):
        batch_of(encoder, [RAGGED[1]], {"pair_scores": [{"kind": "triplet"}]})


def test_scores_follow_the_documents_that_are_drawn(encoder: Encoder) -> None:
    row = Pair("q", "p0", ("n0", "n1", "n2", "n3"), "", "", ("p1", "p2"), (10.0, 11.0, 12.0), (0.0, 1.0, 2.0, 3.0))
    for step in range(6):
        stage = stage_of({"soft_labels": {"kind": "kl"}})
        batch = contrastive.collate(RowBatch(step, [row], "here", True), stage, encoder.input_format, 0)
        assert batch.scores is not None
        named = [float(text[1:]) + 10 * (text[0] == "p") for text in batch.texts[1:]]
        assert batch.scores.tolist() == named


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"weight": 0}, "`weight: 0` leaves InfoNCE out"),
        ({"pair_scores": [{"kind": "softmax"}]}, "`softmax` is a loss of scored pairs, and this stage reads pairs"),
        ({"pair_scores": [{"kind": "angle"}, {"kind": "angle"}]}, "`angle` stands there twice"),
        ({"pair_scores": [{"kind": "cosine_mse", "labels": [1, 1]}]}, "labels run from 1 to 1"),
        (
            {"embedding_match": {"teacher": TEACHER | {"kind": "cross_encoder"}, "distance": "l2"}},
            "no vectors of texts",
        ),
        ({"embedding_match": {"teacher": TEACHER, "distance": "l2", "on": ["query", "query"]}}, "twice"),
        (
            {"soft_labels": {"kind": "kl", "teacher": TEACHER | {"kind": "cross_encoder", "query_prompt": "q"}}},
            "reads the pair alone",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(loss: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stage_of(loss)


def test_a_recipe_with_every_term_survives_its_own_yaml(tmp_path: Path) -> None:
    scored = {"objective": "pair_scores", "data": DATA, "loss": {"pair_scores": ALL_SCORED}} | COMMON
    stages = [scored, {"objective": "contrastive", "data": DATA, "loss": EVERYTHING} | COMMON]
    recipe = load_recipe("pocket", [f"stages={json.dumps(stages)}"])
    (tmp_path / "written.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "written.yaml") == recipe


def test_what_other_stages_cannot_have() -> None:
    with pytest.raises(ValueError, match="`triplet` is a loss of pairs, and this stage reads scored pairs"):
        scored_stage([{"kind": "triplet"}])
    with pytest.raises(ValueError, match="`soft_labels` compares documents of one row, and `hard_negatives: 0` leaves"):
        stage_of({"soft_labels": {"kind": "kl"}}, hard_negatives=0)
    with pytest.raises(ValueError, match="`soft_labels` has no meaning in a simcse stage"):
        load_recipe("pocket", ["stages.simcse.loss.soft_labels.kind=kl"])

"""Published systems: every shipped recipe is documented, takes any model and any data, and has its system's loss."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llm2enc.data import Pair, RowBatch
from llm2enc.recipe import load_recipe, recipe_names
from llm2enc.text import InputFormat
from llm2enc.training import Teachers
from llm2enc.training.objectives import contrastive, terms
from llm2enc.training.teachers import Lesson
from tests.support.builders import INPUT, make_tokenizer

NAMES = recipe_names()
shipped = cache(load_recipe)
FORMAT = InputFormat(INPUT, make_tokenizer())  # no loss depends on its tokens
DOCUMENT = Path(__file__).parents[2] / "docs" / "systems.md"

# ------------------------------------------------------------------------------------------------------------ documents


def rows() -> Iterator[tuple[str, ...]]:
    """The table of docs/systems.md."""
    yield "recipe", "model", "attention, pooling", "stages: objective, steps x batch", "loss", "published"
    yield ("---",) * 6
    for recipe in sorted(map(shipped, NAMES), key=lambda recipe: (recipe.family.casefold(), recipe.name)):
        reads = [recipe.model.attention, recipe.pooling, *([recipe.head.kind] if recipe.head else [])]
        stages = [f"{stage.objective} {size(stage)}".strip() for stage in recipe.stages]
        losses = [stage.loss for stage in recipe.stages if hasattr(stage, "loss")]
        scores = [f"{benchmark} {score:g}" for benchmark, score in recipe.published.items()]
        yield (
            f"`{recipe.name}`", recipe.model.source, ", ".join(reads), " → ".join(stages),
            ", ".join(flat(changed(losses[-1]) if losses else {})),
            ", ".join(scores),
        )  # fmt: skip


def changed(loss: Any) -> dict[str, Any]:
    """What a loss sets, and its temperature whatever it is."""
    always = {"temperature": loss.temperature} if hasattr(loss, "temperature") else {}
    return always | loss.model_dump(mode="json", exclude_defaults=True)


def size(stage: Any) -> str:
    return f"{stage.steps:,} x {stage.batch_size:,}" if hasattr(stage, "steps") else ""


def flat(fields: dict[str, Any], parent: str = "") -> Iterator[str]:
    """Fields as `name value`, those of a part behind its name."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from flat(value, f"{parent}{name}.")
        elif value is True:
            yield parent + name
        else:
            yield f"{parent}{name} {json.dumps(value).replace(chr(34), '')}"


def test_the_table_is_that_of_the_recipes() -> None:
    lines = [f"| {' | '.join(row)} |" for row in rows()]
    before, _, behind = DOCUMENT.read_text(encoding="utf-8").partition("<!-- table -->\n")
    found = behind.partition("<!-- /table -->")[0].splitlines()
    assert before and found == lines, "write the table anew: python -m tests.recipe.test_systems"


def test_every_recipe_has_its_paragraph() -> None:
    paragraphs = re.split(r"\n#+ ", DOCUMENT.read_text(encoding="utf-8").partition("<!-- /table -->")[2])
    named = [name for part in paragraphs for name in re.findall(r"`([\w.-]+)`", part) if name in NAMES]
    assert sorted(set(named)) == NAMES
    headings = [name for part in paragraphs for name in re.findall(r"`([\w.-]+)`", part.partition("\n")[0])]
    assert len(headings) == len(set(headings)) and set(headings) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_its_source(name: str) -> None:
    """Each value of a stage has a comment, but for files that leave that to another one, by name."""
    text = (Path(__file__).parents[2] / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    stages = text.partition("\nstages:")[2].partition("\nevaluation:")[0]
    bare = [line.strip() for line in stages.splitlines() if re.search(r": -?[\d.]+(e-?\d+)?$", line)]
    head = text.partition("\nname:")[0]
    assert not bare or re.search(r"are those of\s+(# )?`([\w.-]+)`|numbers? (is|are) ours", " ".join(head.split())), (
        bare
    )


# ----------------------------------------------------------------------------------------------------------- replacing


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text('{"query": "q", "positive": "p", "negative": "n"}\n')
    return str(path)


@pytest.mark.parametrize("name", NAMES)
def test_any_model_and_any_data(name: str, pairs: str) -> None:
    own, other = shipped(name), load_recipe(name, model="pocket", data=pairs)
    assert (other.model.name, other.published) == ("pocket", {})
    assert [stage.objective for stage in other.stages] == [stage.objective for stage in own.stages]
    read = [source.path for stage in other.stages if hasattr(stage, "data") for source in stage.data]
    assert set(read) == {pairs}
    assert load_recipe(json.loads(other.model_dump_json())) == other


def test_llm2vecs_published_chains_are_parts_of_the_whole() -> None:
    mntp, simcse, supervised = shipped("llm2vec").stages
    chains = {name: shipped(f"llm2vec-{name}") for name in ("unsupervised", "supervised", "simcse")}
    assert chains["unsupervised"].stages == (mntp, simcse)
    assert chains["supervised"].stages == (mntp, supervised)
    assert chains["simcse"].stages == (mntp, simcse, supervised.model_copy(update={"lora": "continue"}))
    assert all(chain.input == shipped("llm2vec").input for chain in chains.values())


# -------------------------------------------------------------------------------------------------------------- losses


def unit(*angles: float) -> torch.Tensor:
    """Unit vectors (n, 2) at angles in degrees."""
    radians = torch.tensor(angles, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1)


TEACHER = ((2.0, 0.5), (1.0, 1.5), (3.0, -1.0))  # scores of each row's positive and hard negative


def pair(row: int, hard: bool) -> Pair:
    right, wrong = TEACHER[row]
    return Pair(f"q{row}", f"p{row}", (f"n{row}",) * hard, "", "", (), (right,), (wrong,) * hard)


@torch.no_grad()
def value(
    name: str,
    queries: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor | None = None,
    stage: int = -1,
    changes: tuple[str, ...] = (),
    source: int = 0,
    term: str | None = "contrastive",
    guide: torch.Tensor | None = None,
) -> float:
    """The loss that a stage of the recipe has of vectors (B, D), one hard negative a row or none.

    changes  to the stage's loss, as overrides; vectors of two numbers have no narrower ones, so there is no matryoshka
    source   whose rows they are, of the stage's data
    term     of the loss; None: all of them
    guide    vectors that a guide has of the texts, row by row
    """
    fields = shipped(name).model_dump(mode="json")
    fields["stages"] = [fields["stages"][stage] | {"lora": None}]  # an adapter of the stage before is none here
    spec = load_recipe(fields, [f"stages.0.loss.{change}" for change in ("matryoshka=null", *changes)]).stages[0]
    texts = [pair(row, negatives is not None) for row in range(len(queries))]
    batch = RowBatch(0, texts, "rows", spec.data[source].in_batch_negatives)
    made = contrastive.collate(batch, spec, FORMAT, seed=0)
    if guide is not None:
        made = replace(made, lessons={spec.loss.masks.guide.teacher: Lesson(torch.empty(0), guide)})
    documents = positives if negatives is None else torch.stack([positives, negatives], 1).flatten(0, 1)
    encoder = SimpleNamespace(device=torch.device("cpu"), normalize=False, dimensions=2)
    encoder.auxiliary = contrastive.auxiliary(encoder, spec, Teachers(()), 0)
    parts = contrastive.terms(encoder, made)
    return sum(float(part(queries, documents)) for part_name, part in parts.items() if term in (None, part_name))


# The toy batch of three rows: queries, positives, hard negatives, at temperature 0.5. The numbers were computed apart from
# this code, in numpy.
QUERIES, POSITIVES, NEGATIVES = unit(0, 40, 110), unit(10, 55, 100), unit(25, 80, 140)
PAIRS, SHARED, OWN, FOUR, BOTH = 0.551697, 1.178038, 0.570746, 1.607175, 0.554854
# recipe, stage, data source, hard negatives -> texts in a denominator of three rows, value on the toy batch
SYSTEMS = {
    **{
        (name, -1, 0, True): (6, SHARED)  # every positive, every hard negative
        for name in "bge bge-en-icl dpr e5-mistral echo-mean-mistral-7b echo-mistral-7b grit llm2vec llm2vec-simcse "
        "llm2vec-supervised matryoshka multilingual-e5-instruct nv-retriever repllama sfr-mistral sgpt sgpt-nli "
        "simcse-supervised".split()
    },
    **{(name, 0, 0, False): (3, PAIRS) for name in "e5 gecko gemini-embedding promptagator".split()},
    ("bge", 1, 0, False): (3, PAIRS),
    ("nv-embed", 0, 0, True): (6, SHARED),
    ("nv-embed", 1, 0, True): (2, OWN),
    ("llama-embed-nemotron", 0, 0, True): (2, OWN),
    ("llama-embed-nemotron", 1, 0, True): (2, OWN),
    ("sfr-mistral", 0, -1, True): (2, OWN),  # class labels
    ("gte", 0, 0, False): (10, FOUR),  # the positive counts twice
    ("gte-qwen2", 0, 0, False): (10, FOUR),
    ("gecko", 1, 0, True): (6, 1.154403),
    ("gemini-embedding", 1, 0, True): (4, 0.925215),
    ("embeddinggemma", 1, 0, True): (3 + math.exp(5), 4.003760),
    ("qwen3-embedding", 1, 0, True): (8, 1.392194),
    ("cpt-text", 0, 0, False): (3, BOTH),
    ("jina-v3", 0, 0, False): (3**2, 2 * BOTH),  # the sum of two directions
}
HALF = ("temperature=0.5",)
CASES = [pytest.param(*key, *found, id="-".join(map(str, key))) for key, found in SYSTEMS.items()]


@pytest.mark.parametrize(("name", "stage", "source", "hard", "texts", "golden"), CASES)
def test_the_loss_of_a_system(name: str, stage: int, source: int, hard: bool, texts: float, golden: float) -> None:
    negatives = NEGATIVES if hard else None
    assert value(name, QUERIES, POSITIVES, negatives, stage, HALF, source) == pytest.approx(golden, abs=2e-6)
    same = unit(30, 30, 30)
    assert value(name, same, same, same if hard else None, stage, HALF, source) == pytest.approx(math.log(texts))


@pytest.mark.parametrize(("name", "stage", "source", "hard", "texts", "golden"), CASES)
def test_no_loss_is_left_where_everything_is_in_its_place(
    name: str, stage: int, source: int, hard: bool, texts: float, golden: float
) -> None:
    """Positives equal their queries and all else is far away: zero, and ln 2 where the positive counts twice."""
    queries, negatives = 10 * unit(0, 180), 10 * unit(90, 270)  # so long for DPR, which compares lengths
    found = value(name, queries, queries, negatives if hard else None, stage, source=source)
    assert found == pytest.approx(math.log(2) if golden == FOUR else 0.0, abs=1e-6)


def test_gtes_positive_may_count_once() -> None:
    once = (*HALF, "count_positive_in_reverse=false")
    assert value("gte", QUERIES, POSITIVES, None, 0, once) == pytest.approx(1.378588, abs=2e-6)
    assert value("gte", unit(0, 180), unit(0, 180), None, 0, once[1:]) == pytest.approx(0.0, abs=1e-6)


def test_qwen3_masks_what_is_more_alike_than_the_positive_but_not_among_positives() -> None:
    """With the first positive at 60 degrees, q0 and q1 are more alike than q0 and its positive."""
    moved = torch.cat([unit(60), POSITIVES[1:]])
    assert value("qwen3-embedding", QUERIES, moved, NEGATIVES, 1, HALF) == pytest.approx(1.710938, abs=2e-6)
    unmasked = (*HALF, "masks.own_similarity=null")
    assert value("qwen3-embedding", QUERIES, moved, NEGATIVES, 1, unmasked) == pytest.approx(1.860200, abs=2e-6)
    among = (*HALF, "masks.own_similarity.on=[qd, qq, dd]")
    assert value("qwen3-embedding", QUERIES, moved, NEGATIVES, 1, among) == pytest.approx(1.381128, abs=2e-6)


@pytest.mark.parametrize("name", ["llama-embed-nemotron", "nv-embed"])
def test_rows_do_not_meet_where_only_own_negatives_count(name: str) -> None:
    """Changes of two rows add up: no term of the loss has vectors of both."""
    turned = [torch.cat([some[:1], unit(7), some[2:]]) for some in (QUERIES, POSITIVES, NEGATIVES)]
    last = [torch.cat([some[:2], unit(-50)]) for some in (QUERIES, POSITIVES, NEGATIVES)]
    both = [torch.cat([one[:2], other[2:]]) for one, other in zip(turned, last, strict=True)]
    at = [value(name, *vectors, 1, HALF) for vectors in ((QUERIES, POSITIVES, NEGATIVES), turned, last, both)]
    assert at[3] - at[2] == pytest.approx(at[1] - at[0], abs=1e-12) and abs(at[1] - at[0]) > 1e-3


@pytest.mark.parametrize("name", ["cpt-text", "jina-v3"])
def test_both_directions_count_alike(name: str) -> None:
    assert value(name, QUERIES, POSITIVES, None, 0, HALF) == pytest.approx(
        value(name, POSITIVES, QUERIES, None, 0, HALF)
    )


def test_dpr_compares_lengths_too_and_the_others_do_not() -> None:
    for name in ("dpr", "e5-mistral"):
        longer = value(name, 2 * QUERIES, POSITIVES, NEGATIVES, 0, HALF)
        assert (abs(longer - SHARED) > 0.1) == (name == "dpr")


def test_kalms_focal_weight_is_that_of_hard_rows() -> None:
    assert value("kalm-v2", QUERIES, POSITIVES, NEGATIVES, -1, (*HALF, "focal_gamma=0.0")) == pytest.approx(
        SHARED, abs=2e-6
    )
    same = unit(30, 30, 30)
    assert value("kalm-v2", same, same, same, -1, HALF) == pytest.approx((5 / 6) ** 0.5 * math.log(6))


def test_kalms_widths_and_gemmas() -> None:
    narrow = shipped("kalm-v2").stages[-1].loss.matryoshka
    assert (sum(narrow.weights), narrow.dims[0]) == (pytest.approx(1.7), 896)
    assert shipped("embeddinggemma").stages[1].loss.matryoshka.dims == (768, 512, 256, 128)


def test_gemma_spreads_queries_and_positives() -> None:
    spread = value("embeddinggemma", QUERIES, POSITIVES, NEGATIVES, 1, HALF, term="spread_out")
    assert spread == pytest.approx(0.606927, abs=2e-6)


def test_a_guide_hides_what_it_finds_closer_than_the_positive() -> None:
    # At 40 degrees the guide's second positive would be as near to the first as its query is, and rounding would decide.
    angles = unit(0, 30, 100), unit(20, 40 + 1e-6, 105), unit(10, 75, 150)
    toy = QUERIES, POSITIVES, NEGATIVES
    guide = torch.stack(angles, 1).flatten(0, 1)
    assert value("gistembed", *toy, 0, HALF, guide=guide) == pytest.approx(1.433494, abs=2e-6)
    # A guide to which all texts are alike hides none: three positives, three negatives, two queries, two positives again.
    same = unit(30, 30, 30)
    assert value("gistembed", same, same, same, 0, HALF, guide=unit(*[5] * 9)) == pytest.approx(math.log(10))
    assert value("gistembed", *toy, 0, HALF, guide=unit(*[5] * 9)) == pytest.approx(
        value("gistembed", *toy, 0, (*HALF, "masks.guide=null"))
    )


def test_e5_imitates_the_teacher() -> None:
    toy = QUERIES, POSITIVES, NEGATIVES
    assert value("e5", *toy, -1, HALF, term="soft_labels") == pytest.approx(0.255332, abs=2e-6)
    assert value("e5", *toy, -1, HALF, term=None) == pytest.approx(0.490939, abs=2e-6)  # and a fifth of InfoNCE


# ----------------------------------------------------------------------------------------------------- labelled pairs


@torch.no_grad()
def labelled(name: str, kind: str, labels: tuple[float, ...], first: torch.Tensor, second: torch.Tensor) -> float:
    """One term of a recipe's loss of labelled pairs, unweighted; SBERT's layer has learnt nothing."""
    spec = next(spec for spec in shipped(name).stages[0].loss.pair_scores if spec.kind == kind)
    layer = torch.nn.Linear(3 * first.size(1), 3, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    encoder = SimpleNamespace(normalize=False, auxiliary={terms.SOFTMAX: layer})
    return float(terms.pair_score(encoder, spec, first, second, torch.tensor(labels, dtype=torch.float64)))


LABELS = (0.9, 0.1, 0.5)


def test_angle_and_cosent_order_pairs_by_their_labels() -> None:
    assert labelled("angle", "angle", LABELS, QUERIES, POSITIVES) == pytest.approx(6.947009, abs=2e-6)
    assert labelled("angle-llama", "cosent", LABELS, QUERIES, POSITIVES) == pytest.approx(1.215197, abs=2e-6)
    for name, kind in (("angle", "angle"), ("angle-llama", "angle"), ("angle-llama", "cosent")):
        assert labelled(name, kind, (0.5, 0.5, 0.5), QUERIES, POSITIVES) == 0.0
        order = [2, 0, 1]
        shuffled = labelled(name, kind, tuple(LABELS[i] for i in order), QUERIES[order], POSITIVES[order])
        assert shuffled == pytest.approx(labelled(name, kind, LABELS, QUERIES, POSITIVES))


def test_sberts_losses_of_equal_vectors() -> None:
    same = unit(30, 30)
    assert labelled("sbert-nli", "softmax", (0, 2), same, same) == pytest.approx(math.log(3))
    assert labelled("sbert-sts", "cosine_mse", (1.0, 0.5), same, same) == pytest.approx(0.5**2 / 2)
    assert labelled("sbert-contrastive", "contrastive", (1, 0), same, same) == pytest.approx(0.5**2 / 4)
    assert value("sbert-triplet", same, same, same, term="triplet") == pytest.approx(1.0)  # the margin


def test_sberts_triplets_have_no_other_loss() -> None:
    far = 10 * unit(0, 180)
    assert value("sbert-triplet", far, far, -far, term=None) == 0.0


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    before, behind = text.split("<!-- table -->\n")[0], text.split("<!-- /table -->")[1]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows())
    DOCUMENT.write_text(f"{before}<!-- table -->\n{lines}\n<!-- /table -->{behind}", encoding="utf-8")

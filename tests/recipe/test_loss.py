"""The loss block: what has no meaning beside another is refused, with the reason and the path."""

import pytest

from llm2enc.errors import RecipeError
from llm2enc.recipe import LearnedTemperature, load_recipe


def fault(loss: str, objective: str = "contrastive", *more: str) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe("llm2vec", [f"stages.{objective}.loss={loss}", *more])
    (line,) = str(error.value).splitlines()[1:]
    return line.strip()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("{in_batch: false, hard_negatives: none}", "loss: `in_batch: false` and `hard_negatives: none` leave"),
        ("{in_batch: false, queries_as_negatives: true}", "loss: `queries_as_negatives` is about texts of other rows"),
        ("{in_batch: false, documents_as_negatives: all}", "loss: `documents_as_negatives` is about texts of other"),
        ("{in_batch: false, reverse_rows: sum}", "loss: `reverse_rows` is about texts of other rows"),
        ("{in_batch: false, hardness: {on: in_batch, alpha: 9}}", "loss: `hardness` on: in_batch is about documents"),
        ("{hard_negatives: none, hardness: {on: own_hard, alpha: 5}}", "loss: `hardness` is about hard negatives"),
        ("{hard_negatives: none, hard_negative_bias: 1}", "loss: `hard_negative_bias` is about hard negatives"),
        ("{hard_negatives: none, documents_as_negatives: all}", "loss: `documents_as_negatives: all` takes hard"),
        ("{reverse_rows: mean, count_positive_in_reverse: true}", "loss: `count_positive_in_reverse` is about a joint"),
        ("{masks: {own_similarity: {on: [qd, qq]}}}", "loss: `masks.own_similarity` on qq looks at queries"),
        ("{masks: {own_similarity: {on: [dd_by_qd]}}}", "loss: `masks.own_similarity` on dd looks at what"),
        ("{masks: {own_similarity: {on: []}}}", "loss.masks.own_similarity.on: "),
        ("{masks: {guide: {teacher: {model: a/b, kind: cross_encoder}}}}", "loss.masks.guide: a cross-encoder has no"),
        ("{matryoshka: {dims: [8, 8]}}", "loss.matryoshka: `dims` names a width twice: 8, 8"),
        ("{matryoshka: {dims: [8, 4], weights: [1]}}", "loss.matryoshka: `weights` has 1 numbers for 2 `dims`"),
        ("{matryoshka: {dims: [8, 4], dims_per_step: 3}}", "loss.matryoshka: `dims_per_step` is 3, and there are 2"),
        ("{temperature: {start: 20}}", "loss.temperature: cosines are divided by the temperature, and 20"),
        ("{temperature: {start: 0.5, bounds: [0.6, 1]}}", "loss.temperature: `bounds` [0.6, 1] must be"),
        ("{temperature: {start: 0.5, bounds: [1, 0.1]}}", "loss.temperature: `bounds` [1, 0.1] must be"),
        ("{temperature: high}", "loss.temperature: Input should be a valid number"),
    ],
)
def test_combinations_without_meaning_are_refused(loss: str, message: str) -> None:
    assert fault(loss).startswith(f"stages.2.{message}")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("{in_batch: false}", "`loss.in_batch: false` and"),
        ("{hard_negative_bias: 1}", "`loss.hard_negative_bias` is about"),
    ],
)
def test_what_needs_hard_negatives_is_refused_where_none_are_taken(loss: str, message: str) -> None:
    assert fault(loss, "contrastive", "stages.contrastive.hard_negatives=0").startswith(f"stages.2: {message}")


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        ("{hard_negatives: own}", "hard_negatives"),
        ("{in_batch: false}", "in_batch"),
        ("{hard_negative_bias: 1}", "hard_negative_bias"),
        ("{hardness: {on: own_hard, alpha: 1}}", "hardness"),
        ("{documents_as_negatives: all}", "documents_as_negatives: all"),
        ("{masks: {guide: {teacher: {model: a/b}}}}", "masks.guide"),
    ],
)
def test_what_has_no_meaning_for_two_views_is_refused_by_name(loss: str, name: str) -> None:
    assert fault(loss, "simcse").startswith(f"stages.1.loss: `{name}` has no meaning in a simcse stage")


def test_equal_texts_are_masked_in_simcse_unless_the_recipe_says_otherwise() -> None:
    stages = [
        load_recipe("llm2vec", overrides).stages[1] for overrides in ([], ["stages.1.loss.masks.duplicates=false"])
    ]
    assert [stage.loss.masks.duplicates for stage in stages] == [True, False]


def test_a_temperature_is_a_number_or_trains() -> None:
    learned = ["stages.2.loss.temperature={start: 0.07}", "stages.2.loss.temperature.bounds=[0.01, 1.0]"]
    recipe = load_recipe("llm2vec", learned)
    assert recipe.stages[2].loss.temperature == LearnedTemperature(start=0.07, bounds=(0.01, 1.0))
    assert load_recipe(recipe.model_dump(mode="json")) == recipe

"""The merge stage against the same merge written out in float64, resumed, chained, refused."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from llm2enc import Encoder, convert, load_recipe
from llm2enc.artifact import read_metadata
from llm2enc.conversion import merge_stage
from llm2enc.conversion import run as conversion
from llm2enc.conversion.run import Result
from llm2enc.recipe import Recipe
from tests.support.builders import assert_same
from tests.support.jobs import write_recipe
from tests.training.test_trainer import Killed

KEPT = {"steps": 4, "schedule_steps": 4, "save_every": 2, "lr": 0.03}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "AT_THE_END_OF_A_CONVERSION", ("files",))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe of one stage, as plain data."""
    path = write_recipe(tmp_path_factory.mktemp("recipe"), ("simcse",), **KEPT)
    return load_recipe(str(path)).model_dump(mode="json")


def with_stages(plain: dict[str, Any], *stages: dict[str, Any], **first: Any) -> Recipe:
    """The recipe with other fields in its first stage, and more stages behind it."""
    return load_recipe({**plain, "stages": [{**plain["stages"][0], **first}, *stages]})


def decoder(encoder: Encoder) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in encoder.backbone.decoder.state_dict().items()}


@pytest.fixture(scope="module")
def states(plain: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Tensor]]:
    """The weights of a run that stopped after so many steps, in float64; 0: before training."""
    found = {0: decoder(Encoder.from_recipe(load_recipe(plain)))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "AT_THE_END_OF_A_CONVERSION", ("files",))
        for steps in (1, 3, 4):
            place = tmp_path_factory.mktemp("states") / str(steps)
            found[steps] = decoder(convert(with_stages(plain, steps=steps), place).encoder)
    return {steps: {name: tensor.double() for name, tensor in state.items()} for steps, state in found.items()}


def slerp(one: Tensor, other: Tensor, t: float) -> Tensor:
    """The formula on flattened tensors; the chord where there is no arc."""
    cosine = (one.flatten() @ other.flatten() / one.norm() / other.norm()).clamp(-1, 1)
    angle = math.acos(float(cosine))
    if math.sin(angle) < 1e-6:
        return (1 - t) * one + t * other
    return (math.sin((1 - t) * angle) * one + math.sin(t * angle) * other) / math.sin(angle)


OF = [{"stage": 0, "step": 1}, {"stage": 0, "step": 3}, {"stage": 0}]
MERGES = {
    "soup": (
        {"of": OF},
        lambda s: {name: (s[1][name] + s[3][name] + s[4][name]) / 3 for name in s[0]},
    ),
    "weighted towards the base": (
        {"of": OF, "weights": [1, 2, 1], "base_weight": 0.25},
        lambda s: {n: 0.75 * (s[1][n] + 2 * s[3][n] + s[4][n]) / 4 + 0.25 * s[0][n] for n in s[0]},
    ),
    "towards the base alone": (
        {"of": [{"stage": 0}], "base_weight": 0.5},
        lambda s: {name: 0.5 * s[4][name] + 0.5 * s[0][name] for name in s[0]},
    ),
    "slerp": (
        {"of": OF, "method": "slerp", "weights": [1, 1, 2]},
        lambda s: {name: slerp(slerp(s[1][name], s[3][name], 0.5), s[4][name], 0.5) for name in s[0]},
    ),
}


@pytest.mark.parametrize("kind", MERGES)
def test_a_merge_is_the_formula_written_out(kind: str, plain, states, tmp_path: Path) -> None:
    fields, reference = MERGES[kind]
    recipe = with_stages(plain, {"objective": "merge", **fields}, keep_checkpoints=[1, 3])
    result = convert(recipe, tmp_path / "run")
    expected = {name: tensor.float() for name, tensor in reference(states).items()}
    assert_same(decoder(result.encoder), expected, tolerance=2e-7)
    assert max((expected[name] - states[4][name].float()).abs().max() for name in expected) > 1e-3
    assert_same(decoder(Encoder.load(tmp_path / "run" / "model")), decoder(result.encoder))
    check_what_is_told(result, fields)
    again = convert(recipe, tmp_path / "run", resume=True)
    assert again.already and again.history == result.history
    assert_same(decoder(again.encoder), decoder(result.encoder))


def check_what_is_told(result: Result, fields: dict[str, Any]) -> None:
    """Scores before and after, the chain of parents, and what was merged."""
    before, after = result.history[-2:]
    assert (before["stage"], after["stage"]) == ("after simcse", "after merge")
    assert after["parent"] == before["result"] and after["result"] == result.encoder.weights_fingerprint()
    assert before["scores"].keys() == after["scores"].keys() == {"sts"}
    record = after["merge"]
    names = [f"stage 0-simcse{', step ' + str(one['step']) if 'step' in one else ''}" for one in fields["of"]]
    assert [parent["name"] for parent in record["parents"]] == names
    assert record["method"] == fields.get("method", "average")
    assert record["base_weight"] == fields.get("base_weight", 0.0)
    metadata = read_metadata(result.folder / "model")
    assert metadata.history[-1].merge is not None and metadata.history[-1].merge.parents[0].name == names[0]
    card = (result.folder / "model" / "README.md").read_text()
    assert all(f"| {name}, `" in card for name in names) and card.count("## Merged") == 1
    assert not list((result.folder / "1-merge").glob(".*"))


def test_a_killed_merge_is_repeated_to_the_bit(plain, tmp_path: Path) -> None:
    """Killed when its ingredients are there, when they are merged, and when the result is stored."""
    recipe = with_stages(plain, {"objective": "merge", "of": OF, "method": "slerp"}, keep_checkpoints=[1, 3])
    whole = convert(recipe, tmp_path / "whole")
    modules = [(merge_stage, "merge"), (merge_stage.Encoder, "load"), (merge_stage.checkpoint, "finish")]
    for number, (module, name) in enumerate(modules):
        real = getattr(module, name)

        def dying(*given, real=real, **keywords):
            if isinstance(given[0], list) or given[0].name in ("merged", "1-merge"):
                raise Killed
            return real(*given, **keywords)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(module, name, dying)
            convert(recipe, tmp_path / "run", resume=number > 0)
    resumed = convert(recipe, tmp_path / "run", resume=True)
    assert_same(decoder(resumed.encoder), decoder(whole.encoder))
    assert [row["scores"] for row in resumed.history] == [row["scores"] for row in whole.history]


def test_another_run_is_an_ingredient_and_training_goes_on_behind_the_merge(plain, states, tmp_path: Path) -> None:
    convert(with_stages(plain, steps=3), tmp_path / "other")
    soup = {"objective": "merge", "of": [{"stage": 0}, {"encoder": str(tmp_path / "other")}]}
    more = {**plain["stages"][0], "steps": 2, "schedule_steps": 2}
    result = convert(with_stages(plain, soup, more), tmp_path / "run")
    merged = Encoder.from_recipe(load_recipe(plain))
    expected = {name: ((states[3][name] + states[4][name]) / 2).float() for name in states[0]}
    merge_stage.checkpoint.load_finished(tmp_path / "run" / "0-simcse", merged, load_recipe(plain).stages[0], 5)
    merge_stage.checkpoint.load_finished(tmp_path / "run" / "1-merge", merged, result_stage(soup, plain), 5)
    assert_same(decoder(merged), expected, tolerance=2e-7)
    chain = [(row["parent"], row["result"]) for row in result.history if "parent" in row]
    assert len(chain) == 3 and all(made == parent for (_, made), (parent, _) in pairwise(chain))
    record = json.loads((tmp_path / "run" / "1-merge" / "finished.json").read_text())["merge"]
    assert (
        record["parents"][1]["name"] == str(tmp_path / "other") and record["parents"][1]["recipes"][0]["name"] == "tiny"
    )


def result_stage(soup: dict[str, Any], plain: dict[str, Any]) -> Any:
    return with_stages(plain, soup).stages[1]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["pooling=last"], "pooling is 'last', not 'mean'"),
        (["input.max_tokens=32"], "another input format"),
    ],
)
def test_an_encoder_that_cannot_be_merged_is_refused_before_the_first_stage(
    overrides: list[str], said: str, plain, tmp_path: Path
) -> None:
    convert(load_recipe({**plain, "stages": []}, overrides), tmp_path / "other")
    soup = {"objective": "merge", "of": [{"stage": 0}, {"encoder": str(tmp_path / "other")}]}
    with pytest.raises(ValueError, match=f"cannot be merged with .*({said})"):
        convert(with_stages(plain, soup), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("soup", "said"),
    [
        ({"of": [{"stage": 0}]}, "1 encoders to merge; give at least two, or one with a base"),
        ({"of": OF, "weights": [1, 2]}, "2 weights for 3 encoders"),
        ({"of": OF, "weights": [1, -2, 3], "method": "slerp"}, "which means nothing on an arc"),
    ],
)
def test_a_merge_that_means_nothing_is_refused_before_the_first_stage(soup, said: str, plain, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"stage 1 \(merge\): .*{said}"):
        convert(with_stages(plain, {"objective": "merge", **soup}, keep_checkpoints=[1, 3]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ([{"stage": 0, "step": 2}], r"takes step 2 of stage 0, which keeps \[1, 3\]"),
        ([{"stage": 1}], "takes the weights of stage 1, which is no earlier one"),
        ([{"stage": 0, "encoder": "x"}], "give one of `stage`"),
        ([{"encoder": "x", "step": 1}], "give the number of that `stage` too"),
        ([{}], "give one of `stage`"),
    ],
)
def test_the_recipe_knows_what_there_is_to_merge(of: list[dict], said: str, plain) -> None:
    with pytest.raises(ValueError, match=said):
        with_stages(plain, {"objective": "merge", "of": of}, keep_checkpoints=[1, 3])


def test_no_adapter_goes_on_behind_a_merge(plain) -> None:
    more = {**plain["stages"][0], "lora": "continue"}
    with pytest.raises(ValueError, match="no adapter to go on with: the stage before it merges encoders"):
        with_stages(plain, {"objective": "merge", "of": [{"stage": 0}], "base_weight": 0.5}, more)

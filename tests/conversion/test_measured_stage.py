"""A run whose stage is measured while it trains: what is refused, stored and told."""

from pathlib import Path

import pytest

from llm2enc import convert, load_recipe
from llm2enc.artifact import read_metadata
from llm2enc.conversion import run as conversion
from tests.support.jobs import write_recipe

FIELDS = {"steps": 4, "evaluate_every": 1, "keep_best": "sts", "lr": 0.05}


def test_the_best_weights_of_a_run_are_exported_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "AT_THE_END_OF_A_CONVERSION", ("files",))
    path = write_recipe(tmp_path / "in", ("simcse",), **FIELDS)
    result = convert(load_recipe(str(path)), tmp_path / "run")
    row = result.history[-1]
    scores = [one["scores"]["sts"] for one in row["measurements"]]
    assert [one["step"] for one in row["measurements"]] == [1, 2, 3, 4] and len(set(scores)) > 1
    step = 1 + scores.index(max(scores))
    assert row["best"] == {"score_name": "sts", "score": max(scores), "step": step, "last": 4}
    assert row["scores"]["sts"] == pytest.approx(max(scores), abs=1e-6)  # merged now
    short = load_recipe(str(path), [f"stages.0.steps={step}", "stages.0.schedule_steps=4"])
    assert convert(short, tmp_path / "short").history[-1]["result"] == row["result"]
    (told,) = [one.best for one in read_metadata(tmp_path / "run" / "model").history if one.best]
    assert told.step == step
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"The weights of simcse are those after step {step} of the 4 that were trained" in card
    again = convert(load_recipe(str(path)), tmp_path / "run", resume=True)
    assert again.already and again.history == result.history


def test_a_score_that_is_not_measured_is_refused_before_anything_starts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(conversion.Encoder, "from_recipe", None)
    path = write_recipe(tmp_path / "in", ("simcse",), **FIELDS)
    recipe = load_recipe(str(path), ["stages.0.keep_best=sts/spearman"])
    with pytest.raises(ValueError, match=r"stages\.0\.keep_best is 'sts/spearman'; .* gives these scores: sts$"):
        convert(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()

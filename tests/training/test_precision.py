"""`precision: auto`: what it means here, and that a run goes on with what it meant where it began."""

from pathlib import Path

import pytest
import torch

from llm2enc import convert, load_recipe
from llm2enc.conversion import run as conversion
from llm2enc.recipe import ContrastiveStage
from llm2enc.training import precision, settled
from tests.support.builders import make_model, make_tokenizer, pairs_file

CPU = torch.device("cpu")


@pytest.mark.parametrize(("emulates", "meant"), [(True, "float32"), (False, "bfloat16")])
def test_auto_is_bfloat16_where_the_device_has_its_products(monkeypatch, tmp_path, emulates: bool, meant: str) -> None:
    monkeypatch.setattr(precision, "emulated", lambda dtype, device: emulates)
    fields = {"objective": "contrastive", "data": (pairs_file(tmp_path),), "steps": 1, "batch_size": 4, "lr": 1e-3}
    stages = [ContrastiveStage(precision=name, **fields) for name in ("auto", "float32", "bfloat16")]
    assert [stage.precision for stage in settled(stages, CPU)] == [meant, "float32", "bfloat16"]
    assert [stage.precision for stage in settled(stages, CPU, ["bfloat16"])] == ["bfloat16", "float32", "bfloat16"]


def test_a_run_goes_on_with_what_auto_meant_where_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "AT_THE_END_OF_A_CONVERSION", ("files",))
    make_model().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    data = pairs_file(tmp_path).model_dump(mode="json")
    stage = {"objective": "contrastive", "data": [data], "steps": 1, "batch_size": 4, "lr": 1e-3, "precision": "auto"}
    text = [{"slot": "text", "pool": True}]
    recipe = load_recipe(
        {
            "name": "run", "pooling": "mean", "model": {"name": str(tmp_path / "base"), "dtype": "float32"},
            "input": {"query": text, "document": text, "max_tokens": 32}, "stages": [stage],
        }
    )  # fmt: skip
    monkeypatch.setattr(precision, "emulated", lambda dtype, device: True)
    convert(recipe, tmp_path / "run")
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")).stages[0].precision == "float32"
    monkeypatch.setattr(precision, "emulated", lambda dtype, device: False)
    assert convert(recipe, tmp_path / "run", resume=True).already

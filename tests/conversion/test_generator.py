"""A run whose stages do more than compare vectors: RetroMAE before contrastive training, and GRIT with its generator."""

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm2enc import Encoder, convert, load_recipe
from llm2enc.audit import examine
from llm2enc.planning import here, plan
from tests.support import jobs
from tests.support.builders import dialogues_file, sentences
from tests.training.test_grit import greedy

COMMON = {
    "steps": 3, "batch_size": 4, "lr": 3e-3, "precision": "float32", "log_every": 1, "save_every": 2,
    "micro_batch_tokens": 200, "lora": {"r": 4, "alpha": 8},
}  # fmt: skip


def recipe_of(folder: Path, *stages: dict):
    """A recipe with these stages on tiny data; `pairs`, `texts` and `dialogues` stand for a source."""
    written = yaml.safe_load(jobs.write_recipe(folder, ("clm", "contrastive")).read_text())
    data = {"texts": written["stages"][0]["data"], "pairs": written["stages"][1]["data"]}
    data["dialogues"] = [dialogues_file(folder).model_dump(mode="json", exclude_defaults=True)]
    for stage in stages:
        if "generation" in stage:
            stage["generation"]["data"] = data["dialogues"]
    given = [COMMON | stage | {"data": data[stage["data"]]} for stage in stages]
    return load_recipe(written | {"stages": given, "evaluation": []})


def test_retromae_then_contrastive_then_grit(tmp_path: Path, in_process: None) -> None:
    generation = {"batch_size": 4, "group": 2}
    recipe = recipe_of(
        tmp_path,
        {"objective": "retromae", "data": "texts"},
        {"objective": "contrastive", "data": "pairs"},
        {"objective": "grit", "data": "pairs", "generation": generation},
    )
    planned = plan(recipe, here()).stages
    assert planned[0].trained > planned[1].trained == planned[2].trained  # by the decoder
    assert planned[2].texts == planned[1].texts + 4 and planned[2].basis.count("the first batch, tokenized") == 2
    report = examine(recipe=recipe)
    assert [source.name for source in report.sources] == [
        "texts",
        "pairs",
        "pairs",
        "dialogues",
    ] and not report.unreadable
    assert report.sources[3].columns["text"]["texts"] == 16

    result = convert(recipe, tmp_path / "run")
    assert all(parity.agrees for parity in result.parity) and len(result.parity) > 1, result.parity
    for index, stage in enumerate(recipe.stages):
        lines = (tmp_path / "run" / f"{index}-{stage.objective}" / "metrics.jsonl").read_text().splitlines()
        assert np.isfinite([json.loads(line)["loss"] for line in lines]).all()
    kept = {path.name for path in (tmp_path / "run" / "0-retromae").iterdir()}
    assert kept == {"adapter", "finished.json", "metrics.jsonl"}  # the decoder is gone
    vectors = result.encoder.encode(sentences(3))
    np.testing.assert_allclose(Encoder.load(tmp_path / "run" / "model").encode(sentences(3)), vectors, atol=1e-5)

    generator = tmp_path / "run" / "generator"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(generator), AutoTokenizer.from_pretrained(generator)
    asked = [{"role": "user", "content": "the old bridge"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    written = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert written[0, len(ids) :].tolist() == greedy(result.encoder, ids, 8)
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "base")(torch.tensor([ids])).logits
    assert (before - model(torch.tensor([ids])).logits).abs().max() > 1e-3  # trained at all

    files = {path.name: path.read_bytes() for path in generator.iterdir()}
    assert convert(recipe, tmp_path / "run", resume=True).already
    generator.rename(tmp_path / "gone")  # as if the run had been killed before it was written
    again = convert(recipe, tmp_path / "run", resume=True)
    assert again.already and again.encoder.weights_fingerprint() == result.encoder.weights_fingerprint()
    assert {path.name: path.read_bytes() for path in generator.iterdir()} == files

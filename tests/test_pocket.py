"""The packaged model is what its card says, and the script that made it runs."""

import gzip
import json
import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import llm2enc
from tools import build_pocket as build

FOLDER = Path(llm2enc.__file__).parent / "pocket"


def test_the_packaged_model_is_small_and_stock() -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert 5e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 8e6
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) <= 16 * 2**20


def test_it_has_learnt_to_predict() -> None:
    """Far better than chance on plain prose, and better than on the same words in another order."""
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    prose = "The city was founded in the nineteenth century and became the capital of the province after the war."

    def loss(text: str) -> float:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return model(input_ids=ids, labels=ids).loss.item()

    shuffled = " ".join(sorted(prose.split()))
    assert loss(prose) < 0.6 * math.log(model.config.vocab_size)
    assert loss(prose) < loss(shuffled)


def test_the_card_s_numbers_are_those_of_the_training(tmp_path: Path) -> None:
    numbers = json.loads((FOLDER / "training.json").read_text())
    card = (FOLDER / "README.md").read_text()
    assert f"{numbers['training_tokens'] / 1e6:.1f} million tokens" in card
    assert f"{numbers['validation_loss']:.2f} nats" in card


def test_the_script_that_made_it(tmp_path: Path, monkeypatch) -> None:
    lines = [f"Paragraph {n} speaks of rivers, towns and the people of the {n}th valley.\n" for n in range(200)]
    for name in [*(f"{source}.train" for source in build.SOURCES), "wiki.valid"]:
        with gzip.open(tmp_path / f"{name}.txt.gz", "wt") as file:
            file.writelines(lines)
    sizes = [
        f"stages.clm.{key}"
        for key in ("steps=2", "schedule_steps=10", "warmup_steps=0", "batch_size=2", "block_tokens=16")
    ]
    overrides = [argument for size in sizes for argument in ("--set", size)]
    monkeypatch.setattr("sys.argv", ["build", "--data", str(tmp_path), "-o", str(tmp_path / "out"), *overrides])
    build.main()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert model.dtype == torch.bfloat16
    numbers = json.loads((tmp_path / "out" / "model" / "training.json").read_text())
    assert numbers["training_tokens"] == 2 * 2 * 16 and math.isfinite(numbers["validation_loss"])

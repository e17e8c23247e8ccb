"""Every family's whole way: a causal LM on disk, converted, a step of LoRA training, merged, exported, opened elsewhere.

The other programs are trusted, not ours: sentence-transformers in a process that never imports llm2enc, ONNX Runtime and
transformers' own reading of GGUF in the tests of those forms.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llm2enc.encoding import Encoder
from llm2enc.recipe import Recipe, load_recipe
from llm2enc.training import train
from tests.support.builders import make_tokenizer, pairs_file, sentences
from tests.support.tiny import tiny_model

FAMILIES = "llama mistral qwen2 qwen3 gemma2 gemma3_text phi3 gpt_neox olmo2".split()
TEXTS = [*sentences(6), "Zürich, 東京 & Москва 🦜", "x", "def area(r):\n    return 3.14 * r ** 2", "word " * 90]
DIMENSIONS = 12  # of 32: a Matryoshka prefix

OPEN = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
assert not [name for name in sys.modules if name.startswith("llm2enc")]
folders, texts, dimensions, out = json.loads(sys.stdin.read())
found = {}
for folder in folders:
    model = SentenceTransformer(folder, device="cpu")
    config = model.transformers_model.config
    assert getattr(config, "is_causal", None) is False or config.use_bidirectional_attention  # the latter: Gemma 3
    found[folder + "|batch"] = model.encode(texts)
    found[folder + "|alone"] = np.stack([model.encode([text])[0] for text in texts])
    found[folder + "|query"] = model.encode(texts, prompt_name="query")
    found[folder + "|short"] = model.encode(texts, truncate_dim=dimensions, normalize_embeddings=True)
np.savez(out, **found)
"""


def recipe_of(folder: Path, family: str, data: Path) -> Recipe:
    whole = [{"special": "bos", "pool": True}, {"slot": "text", "pool": True}, {"special": "eos", "pool": True}]
    asking = [whole[0], {"slot": "instruction", "pool": True}, {"literal": ": ", "pool": True}, *whole[1:]]
    stage = {
        "objective": "contrastive",
        "data": [pairs_file(data).model_dump(mode="json")],
        "steps": 1,
        "batch_size": 8,
        "lr": 0.01,
        "lora": {"r": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"},
        "precision": "float32",
    }
    return load_recipe(
        {
            "name": f"round-{family}",
            "model": {"name": str(folder), "attention": "bidirectional", "dtype": "float32"},
            "input": {"query": asking, "document": whole, "max_tokens": 48, "prompts": {"query": "Find the answer"}},
            "pooling": "mean",
            "stages": [stage],
        }
    )


def converted(family: str, folder: Path) -> Encoder:
    """The encoder of a family after a step of LoRA training, saved in folder/out."""
    source, data = folder / "causal", folder / "data"
    data.mkdir(parents=True)
    tiny_model(family, vocab_size=324, max_position_embeddings=64).save_pretrained(source)
    make_tokenizer().save_pretrained(source)
    recipe = recipe_of(source, family, data)
    encoder = Encoder.from_recipe(recipe)
    before = encoder.encode(TEXTS)
    train(encoder, recipe.stages[0], folder / "0-contrastive", recipe.seed)
    assert np.abs(encoder.encode(TEXTS) - before).max() > 1e-3, f"{family}: training moved nothing"
    encoder.save(folder / "out")
    return encoder


def test_every_family_comes_out_with_the_vectors_it_was_trained_to(tmp_path: Path) -> None:
    encoders = {family: converted(family, tmp_path / family) for family in FAMILIES}
    folders = [str(tmp_path / family / "out") for family in FAMILIES]
    given = json.dumps([folders, TEXTS, DIMENSIONS, str(tmp_path / "found.npz")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", OPEN]
    done = subprocess.run(command, input=given, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "found.npz")
    for family, folder in zip(FAMILIES, folders, strict=True):
        encoder = encoders[family]
        expected = {
            "batch": encoder.encode(TEXTS),
            "alone": encoder.encode(TEXTS),
            "query": encoder.encode(TEXTS, prompt_name="query"),
            "short": encoder.encode(TEXTS, truncate_dim=DIMENSIONS),
        }
        facts = json.loads((Path(folder) / "llm2enc.json").read_text())
        assert facts["native"], f"{family}: {facts['reason']}"
        for kind, vectors in expected.items():
            np.testing.assert_allclose(found[f"{folder}|{kind}"], vectors, atol=2e-5, err_msg=f"{family}, {kind}")
        np.testing.assert_allclose(Encoder.load(folder).encode(TEXTS), expected["batch"], atol=2e-5, err_msg=family)


def test_a_causal_model_would_not_pass(tmp_path: Path) -> None:
    """The comparison above can fail: the same weights without the switch give other vectors."""
    encoder = converted("llama", tmp_path)
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "is_causal"}))
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(theirs, encoder.encode(TEXTS), atol=2e-2)

"""Every shipped recipe runs end to end on a tiny random model of its own family and a few rows of data.

The recipe's file is used as it is: only the model, the data and the sizes are replaced, by overrides.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llm2enc import Encoder, convert, load_recipe, recipe_names
from llm2enc.conversion import run as conversion
from llm2enc.planning import here, plan, report
from tests.support.teachers import write_encoder
from tests.support.tiny import tiny_model

# Part of a backbone's name -> the family of its miniature; the first that fits.
ARCHITECTURES = {
    "mistral": "mistral",
    "llama": "llama",
    "smollm2": "llama",
    "pocket": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma-2": "gemma2",
    "gemma-3": "gemma3_text",
    "pythia": "gpt_neox",
    "gpt-neo": "gpt_neo",
    "gpt-j": "gptj",
}
SENTENCES = [
    f"Sentence {n} tells of {word} and of nothing else at all." for n, word in enumerate("abcdefghijklmnop" * 4)
]
MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    (folder / "texts.txt").write_text("\n".join(SENTENCES))
    rows = [{"query": s[:12], "positive": s, "negative": SENTENCES[n - 1]} for n, s in enumerate(SENTENCES)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    taught = [row | {"positive_scores": [2.0], "negative_scores": [0.5]} for row in rows]
    (folder / "taught.jsonl").write_text("\n".join(map(json.dumps, taught)))
    labelled = [{"sentence1": row["query"], "sentence2": row["positive"], "score": n % 2} for n, row in enumerate(rows)]
    (folder / "labelled.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    dialogues = [
        {"messages": [{"role": "user", "content": s[:12]}, {"role": "assistant", "content": s}]} for s in SENTENCES
    ]
    (folder / "dialogues.jsonl").write_text("\n".join(map(json.dumps, dialogues)))
    texts = [{"kind": "files", "path": str(folder / "texts.txt")}]
    pairs = [{"kind": "files", "path": str(folder / "pairs.jsonl"), "instruction": "Find the sentence"}]
    found = {"block": texts, "text": texts, "pair": pairs}
    others = {"pair, scores": "taught", "scored pair": "labelled", "dialogue": "dialogues"}
    found |= {kind: [{"kind": "files", "path": str(folder / f"{name}.jsonl")}] for kind, name in others.items()}
    return {kind: json.dumps(sources) for kind, sources in found.items()}


def make_model(family: str, folder: Path, has_bos: bool) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>", *MARKS]
    backend.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=280, special_tokens=special, initial_alphabet=alphabet)
    )
    roles = {"eos_token": "</s>", "pad_token": "<pad>", **({"bos_token": "<s>"} if has_bos else {})}
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(folder)
    model = tiny_model(family, vocab_size=320, max_position_embeddings=2048)
    model.save_pretrained(folder)


def shrink(name: str, model: Path, data: dict[str, str]) -> list[str]:
    """Overrides that make a recipe small and leave its method alone."""
    changes = [f"model.name={model}", "model.revision=null", "model.dtype=float32", "evaluation=[]"]
    recipe = load_recipe(name)
    changes += ["model.layers=1"] * (recipe.model.layers is not None)
    if recipe.input.example is None:
        changes.append("input.max_tokens=320")
    for index, stage in enumerate(recipe.stages):
        if stage.objective == "merge":
            changes.append(f"stages.{index}.of=[{{stage: {index - 1}, step: 1}}, {{stage: {index - 1}}}]")
            continue
        row = "pair, scores" if getattr(stage, "reads_scores", False) else stage.row
        own = {"data": data[row], "steps": 2, "schedule_steps": 20, "warmup_steps": 1, "batch_size": 6}
        own |= {"precision": "float32", "micro_batch_tokens": 128, "rng_shards": 2, "log_every": 1, "strategy": "ddp"}
        own |= {"lr": max(stage.lr, 1e-4)}
        if stage.keep_checkpoints:
            own["keep_checkpoints"] = [1]
        if stage.row == "block":
            own["block_tokens"] = 32
        if stage.objective == "grit":
            own |= {"generation.data": data["dialogue"], "generation.batch_size": 2}
        changes += [f"stages.{index}.{key}={value}" for key, value in (own | narrow(stage, model.parent)).items()]
    return changes


def narrow(stage: Any, folder: Path) -> dict[str, Any]:
    """What a loss has for the width of 32 that miniatures have; a guide is made in the folder."""
    loss, own = getattr(stage, "loss", None), {}
    if widths := getattr(loss, "matryoshka", None):
        own["loss.matryoshka.dims"] = [32, 16, 8, 4, 2, 1][: len(widths.dims)]
    if getattr(getattr(loss, "layers", None), "compression", None):
        own["loss.layers.compression"] = 16
    if getattr(getattr(loss, "masks", None), "guide", None):
        own["loss.masks.guide.teacher.model"] = str(write_encoder(folder / "guide"))
    return own


def family(name: str) -> str:
    source = load_recipe(name).model.source.lower()
    return next(family for part, family in ARCHITECTURES.items() if part in source)


# Recipes of every kind that the others repeat: each family of LLM2Vec's, and systems of other objectives and losses.
QUICK = {
    *("bge", "dpr", "grit", "qwen3-embedding"),
    *("echo-mistral-7b", "gemma-2-9b", "gemma-3-270m", "llama-3-8b", "llm2vec", "mistral-7b", "pocket", "pocket-echo"),
    *("qwen2.5-7b", "qwen3-0.6b", "smollm2-135m"),
}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in recipe_names()]
)
def test_miniature(name: str, tiny_data: dict[str, str], tmp_path: Path, in_process: None) -> None:
    recipe = load_recipe(name)
    has_bos = any(part.special == "bos" for part in recipe.input.document)
    make_model(family(name), tmp_path / "base", has_bos)
    small = load_recipe(name, shrink(name, tmp_path / "base", tiny_data))

    result = convert(small, tmp_path / "run")

    for index, stage in enumerate(small.stages):
        if stage.objective == "merge":
            continue
        lines = (tmp_path / "run" / f"{index}-{stage.objective}" / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in lines]
        assert len(losses) == 2 and np.isfinite(losses).all()
    exported = json.loads((tmp_path / "run" / "model" / "llm2enc.json").read_text())
    chain = [(row["parent"], row["result"]) for row in exported["history"] if "parent" in row]
    assert len(chain) == len(small.stages)
    dropped = small.head is not None and small.head.training_only  # a head that counts as weights until it is dropped
    assert (chain[-1][1] == exported["fingerprint"]) != dropped
    assert all(made == parent for (_, made), (parent, _) in pairwise(chain))
    reopened = Encoder.load(tmp_path / "run" / "model")
    np.testing.assert_allclose(reopened.encode(SENTENCES), result.encoder.encode(SENTENCES), atol=1e-5)
    assert all(parity.agrees for parity in result.parity), result.parity
    assert all(parity.cosine is not None for parity in result.parity) == exported["native"], result.parity
    # Trained at all: the untrained model gives other vectors.
    assert np.abs(Encoder.from_recipe(small).encode(SENTENCES) - reopened.encode(SENTENCES)).max() > 1e-4


@pytest.mark.parametrize("more", [[], ["stages.1.lora=continue", "stages.2.lora=continue"]], ids=["fresh", "continue"])
def test_a_run_goes_on_where_it_stopped(more, tiny_data: dict[str, str], tmp_path: Path, monkeypatch) -> None:
    """A second call with resume loads finished stages and gives the same weights, bit for bit."""
    monkeypatch.setattr(conversion, "AT_THE_END_OF_A_CONVERSION", ("files",))
    make_model("llama", tmp_path / "base", has_bos=True)
    small = load_recipe("pocket", [*shrink("pocket", tmp_path / "base", tiny_data), *more])
    first = convert(small, tmp_path / "run")
    with pytest.raises(ValueError, match="--resume"):
        convert(small, tmp_path / "run")
    second = convert(small, tmp_path / "run", resume=True)
    assert first.encoder.backbone.fingerprint() == second.encoder.backbone.fingerprint()
    assert first.history == second.history
    chain = [(row["parent"], row["result"]) for row in first.history if "parent" in row]
    assert all(made == parent for (_, made), (parent, _) in pairwise(chain))
    assert chain[-1][1] == first.encoder.backbone.fingerprint()
    other = load_recipe("pocket", [*shrink("pocket", tmp_path / "base", tiny_data), "seed=1"])
    with pytest.raises(ValueError, match="another recipe"):
        convert(other, tmp_path / "run", resume=True)


def test_a_mixture_of_experts_is_adapted_where_it_merges_and_the_rest_is_named(
    tiny_data: dict[str, str], tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(conversion, "AT_THE_END_OF_A_CONVERSION", ("files",))
    monkeypatch.setenv("COLUMNS", "200")
    base, said = tmp_path / "base", "on 11 % of the layers' weights, not on experts, gate"
    make_model("mixtral", base, has_bos=True)
    small = load_recipe("llm2vec", shrink("llm2vec", base, tiny_data))
    assert "0-mntp: the adapter is " + said in report.lines(plan(small, here()))
    result = convert(small, tmp_path / "run")
    assert capsys.readouterr().err.count(said) == 3  # the table before step 1 of each stage
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert card.count(f"was {said}.") == 3 and f"The adapter of contrastive was {said}." in card
    plain = Encoder.from_recipe(small).backbone.decoder.state_dict()
    trained = result.encoder.backbone.decoder.state_dict()
    moved = {name.split(".")[-2] for name in plain if not plain[name].equal(trained[name])}
    assert moved == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_a_later_stage_that_cannot_be_trained_is_refused_before_the_first(
    tiny_data: dict[str, str], tmp_path: Path
) -> None:
    make_model("mixtral", tmp_path / "base", has_bos=True)
    changes = [*shrink("llm2vec", tmp_path / "base", tiny_data), "stages.2.lora.targets=[q_proj, gate]"]
    with pytest.raises(ValueError, match=r"lora.targets \['gate'\] name the experts"):
        convert(load_recipe("llm2vec", changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_another_base_or_other_data(
    tiny_data: dict[str, str], tmp_path: Path, monkeypatch
) -> None:
    """Under the names that the recipe gives; with them back in their places it goes on."""
    monkeypatch.setattr(conversion, "AT_THE_END_OF_A_CONVERSION", ("files",))
    base, run = tmp_path / "base", tmp_path / "run"
    make_model("llama", base, has_bos=True)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES * 20))
    small = load_recipe("pocket", shrink("pocket", base, tiny_data | {"block": f"[{{kind: files, path: {texts}}}]"}))
    convert(small, run)
    weights, rows = (base / "model.safetensors").read_bytes(), texts.read_bytes()

    model = tiny_model("llama", seed=1, vocab_size=320, max_position_embeddings=2048)
    model.save_pretrained(base)
    with pytest.raises(ValueError, match=rf"{run} was begun with other weights of {base}.*--overwrite"):
        convert(small, run, resume=True)
    (base / "model.safetensors").write_bytes(weights)

    texts.write_bytes(rows.replace(b"nothing", b"another"))
    with pytest.raises(ValueError, match=r"0-mntp was begun with other contents of: data source 0 \(.*texts.jsonl\)"):
        convert(small, run, resume=True)
    texts.write_bytes(rows)
    assert convert(small, run, resume=True).already


def test_a_folder_of_someone_else_is_left_alone(tiny_data: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(ValueError, match="no run of llm2enc"):
            convert(load_recipe("pocket"), tmp_path, **how)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("objective", ["mntp", "clm"])
def test_a_stage_that_predicts_tokens_is_refused_on_a_base_without_a_head(
    objective: str, tiny_data: dict[str, str], tmp_path: Path
) -> None:
    make_model("llama", tmp_path / "base", has_bos=True)
    convert(conversion.training_free(str(tmp_path / "base")), tmp_path / "free")
    stage = {"objective": objective, "data": json.loads(tiny_data["block"]), "steps": 1, "batch_size": 2, "lr": 0.001}
    masks = {"mask_rate": 0.2, "mask_policy": "all"} if objective == "mntp" else {}
    changes = [f"model.name={tmp_path / 'free' / 'model'}", f"stages={json.dumps([stage | masks])}"]
    recipe = load_recipe("pocket", changes)
    with pytest.raises(
        ValueError, match=rf"{objective} stage predicts tokens, but this model has no language-model head"
    ):
        convert(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()

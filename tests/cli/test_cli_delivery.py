"""export, verify and merge on the command line: exit codes, messages and files, in this process."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from llm2enc import export
from llm2enc.artifact import read_metadata
from llm2enc.encoding import Encoder
from llm2enc.recipe import load_recipe
from tests.cli.test_cli import call, quick
from tests.export.test_mteb_stub import NATIVE
from tests.support.builders import make_encoder, sentences


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that every engine can read. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("native") / "mine"
    make_encoder(NATIVE).save(folder, recipe=load_recipe("pocket"), history=[])
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, pooled otherwise."""
    folder = tmp_path_factory.mktemp("other") / "theirs"
    make_encoder(NATIVE, pooling="last").save(folder)
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------------------------- export


def test_the_formats_are_listed_with_what_the_encoder_can_have(native: Path, capsys, tmp_path: Path) -> None:
    code, shown, _ = call(capsys, "export", "--list")
    assert code == 0 and "openvino" in shown and "can it?" not in shown
    make_encoder().save(tmp_path / "unpooled")  # its BOS is read and not pooled
    code, shown, _ = call(capsys, "export", tmp_path / "unpooled", "--list")
    assert code == 0 and "can it?" in shown
    # Reasons stand below the table, a line each, however narrow the terminal is.
    (line,) = [line for line in shown.splitlines() if line.startswith("adapter: ")]
    assert line.endswith("give the run's folder, as `llm2enc convert` left it.")
    assert files(tmp_path / "unpooled").isdisjoint({"mteb_model.py", "onnx/model.onnx"})


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ((), 2, "say what to export and how"),
        (("--dtype", "float16", "--push", "me/x"), 2, "--dtype is for what is written"),
        (("--to", "onxx"), 2, "no format onxx; expected sentence-transformers, onnx"),
        (("--to", "onnx", "--dtype", "q8_0"), 2, "q8_0: not a storage type of the formats asked for (onnx: float32"),
        (("--to", "sentence-transformers"), 2, "say where to write another one with -o"),
        (("--to", "onnx", "--to", "mteb", "-o", "new"), 2, "onnx, mteb: of no use in new without the tokenizer"),
        (("-o", "new", "--dtype", "float16", "--dtype", "bfloat16"), 2, "one directory holds one storage type"),
        (("--to", "adapter"), 3, "adapter: an adapter is made of the stages of a run"),
        (("--to", "mteb", "--to", "adapter"), 3, "adapter: "),
    ],
)
def test_what_can_not_be_exported_is_refused_before_anything_is_written(
    arguments: tuple[str, ...], code: int, message: str, native: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    quick(monkeypatch, tmp_path)
    before = files(native)
    found, _, said = call(capsys, "export", native, *arguments)
    assert (found, message in said) == (code, True), said
    assert files(native) == before and not list(tmp_path.iterdir())


def test_a_form_that_the_encoder_can_not_have_gives_three(tmp_path: Path, capsys) -> None:
    make_encoder().save(tmp_path / "unpooled")
    before = files(tmp_path)
    code, _, said = call(capsys, "export", tmp_path / "unpooled", "--to", "mteb", "--to", "onnx")
    assert code == 3 and said.startswith("error: onnx: ") and "`{literal: " in said
    assert files(tmp_path) == before


def test_a_form_that_turns_out_to_give_other_vectors_gives_three(native: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("onnxruntime")
    before = files(native)
    monkeypatch.setattr("llm2enc.export.graph.FLOORS", {"float32": 1.1, "float16": 1.1})
    code, _, said = call(capsys, "export", native, "--to", "onnx")
    assert code == 3 and "does not give this encoder's vectors" in said and files(native) == before


def test_a_folder_without_an_encoder_is_named(tmp_path: Path, capsys) -> None:
    code, _, said = call(capsys, "export", tmp_path, "--to", "onnx")
    assert code == 2 and f"{tmp_path} is neither a directory written by llm2enc nor a run" in said


def test_an_export_never_lands_in_another_encoder_or_on_its_source(
    native: Path, other: Path, tmp_path: Path, capsys
) -> None:
    before = files(native), files(other)
    for name in ("onnx", "gguf", "mteb"):
        code, _, said = call(capsys, "export", native, "--to", name, "-o", other)
        assert code == 2 and f"{other} holds another encoder than {native}" in said
    code, _, said = call(capsys, "export", native, "-o", native, "--dtype", "float16")
    assert code == 2 and "is the directory to be exported, and would lose its other formats" in said
    (tmp_path / "thesis.txt").write_text("years of work")
    code, _, said = call(capsys, "export", native, "-o", tmp_path)
    assert code == 2 and "not empty and no export of llm2enc" in said
    code, _, said = call(capsys, "export", native, "--to", "gguf", "-o", tmp_path / "thesis.txt")
    assert code == 2 and "thesis.txt is a file" in said
    assert (files(native), files(other)) == before and files(tmp_path) == {"thesis.txt"}


def test_the_directory_is_the_default_and_q8_0_of_another_form_leaves_its_type(
    native: Path, tmp_path: Path, capsys
) -> None:
    code, _, said = call(capsys, "export", native, "-o", tmp_path / "half", "--dtype", "bfloat16")
    assert code == 0 and f"compare with ours: llm2enc verify {tmp_path / 'half'}" in said
    assert {str(t.dtype) for t in load_file(tmp_path / "half" / "model.safetensors").values()} == {"torch.bfloat16"}
    facts = read_metadata(tmp_path / "half")
    assert facts.recipe == read_metadata(native).recipe
    pytest.importorskip("gguf")
    code, _, said = call(
        capsys, "export", tmp_path / "half", "--to", "mteb", "--to", "sentence-transformers", "--to", "gguf",
        "--dtype", "q8_0", "-o", tmp_path / "again",
    )  # fmt: skip
    assert code == 0 and "note: Give llama.cpp a physical batch" in said
    assert read_metadata(tmp_path / "again").fingerprint == facts.fingerprint
    assert "gguf/model-q8_0.gguf" in files(tmp_path / "again")
    assert "'GGUF'" in (tmp_path / "again" / "mteb_model.py").read_text()  # asked for first, and written last


def test_a_form_that_stands_alone_goes_anywhere(native: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("gguf")
    code, _, said = call(capsys, "export", native, "--to", "gguf", "-o", tmp_path / "files")
    assert code == 0 and files(tmp_path / "files") == {"gguf/model-f16.gguf"}
    assert "llm2enc verify" not in said  # which would look for it in a directory


# ---------------------------------------------------------------------------------------------------------------- verify


def test_an_exported_graph_is_verified_and_a_damaged_directory_fails(native: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    folder = tmp_path / "model"
    code, _, said = call(
        capsys, "export", native, "-o", folder, *"--to mteb --to onnx --to sentence-transformers".split()
    )
    assert code == 0 and f"wrote {folder / 'onnx' / 'model.onnx'}" in said
    assert "'ONNX'" in (folder / "mteb_model.py").read_text()
    code, shown, _ = call(capsys, "verify", folder, "--engines", "onnx", "--json")
    (row,) = [row for row in json.loads(shown)["rows"] if row["engine"] == "onnx"]
    assert code == 0 and row["verdict"] == "agrees" and row["cosine"] > 0.9999

    weights = load_file(folder / "model.safetensors")
    weights["layers.0.mlp.down_proj.weight"] *= -1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    code, shown, _ = call(capsys, "verify", folder, "--engines", "llm2enc")
    assert code == 1 and "differs" in shown
    (folder / "llm2enc.json").write_text('{"format": 1, ')
    code, _, said = call(capsys, "export", folder, "--to", "mteb")
    assert code == 2 and "llm2enc.json is damaged" in said


def test_engines_are_for_directories_of_ours(tmp_path: Path, capsys) -> None:
    code, _, said = call(capsys, "verify", tmp_path, "--engines", "onnx")
    assert code == 2 and "--engines is for those only" in said


# ----------------------------------------------------------------------------------------------------------------- merge


def test_a_soup_is_scored_before_and_after(native: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("llm2enc.evaluation.benchmark.LOCAL_SECONDS", 0.0)
    quick(monkeypatch, tmp_path)
    lines = [f'"{text}","{" ".join(reversed(text.split()))}"\n' for text in sentences(8)]
    (tmp_path / "pairs.csv").write_text("one,two\n" + "".join(lines))
    encoder = Encoder.load(native)
    for parameter in encoder.backbone.decoder.parameters():
        parameter.data *= 1.05
    encoder.save(tmp_path / "second")
    both = (native, tmp_path / "second")
    code, shown, said = call(capsys, "merge", *both, "-o", "soup", "--tasks", "pairs.csv", "--weights", "2,1")
    assert (code, "encoder: soup" in said) == (0, True), said
    assert "gain over the best" in shown and "mean over types" in shown
    assert (tmp_path / "runs/evaluate/merge-soup/merge.md").read_text().startswith("| task | metric | 0: mine | 1: sec")

    code, shown, said = call(capsys, "merge", *both, "-o", "soup", "--tasks", "pairs.csv", "--json")
    found = json.loads(shown)
    assert [parent["weight"] for parent in found["parents"]] == [1, 1] and found["scores"][0]["task"] == "pairs"

    # Exported in another type, it still says what it is made of.
    call(capsys, "export", "soup", "-o", "half", "--dtype", "float16")
    assert read_metadata(tmp_path / "half").merge == read_metadata(tmp_path / "soup").merge
    assert "## Merged" in (tmp_path / "half" / "README.md").read_text()
    np.testing.assert_allclose(
        Encoder.load("half").encode(sentences(3)), Encoder.load("soup").encode(sentences(3)), atol=1e-2
    )


def test_a_merge_that_can_not_be_is_refused_before_it_begins(
    native: Path, other: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    quick(monkeypatch, tmp_path)
    for arguments, message in (
        ((native, native, "--weights", "2;1"), "--weights is '2;1'; expected numbers with commas"),
        ((native, native, "--tasks", "./none"), "./none: no such file or folder"),
        ((native, other), "pooling is 'last', not 'mean'"),
        ((native,), "1 encoders to merge"),
        ((native, native, "--method", "ties"), "the method is 'ties'"),
        ((native, native, "--base-weight", "0.5"), "give both or neither"),
        ((native, native, "--towards", "0.5"), "--towards is called --base-weight now"),
        ((native, native, "--towards", "0.5"), "base_weight is 0.5: give both or neither"),
        ((native, native, "--towards", "0.5", "--base-weight", "0.2"), "give one of them"),
        ((native, tmp_path), "is neither a directory written by llm2enc nor a run"),
    ):
        code, _, said = call(capsys, "merge", *arguments, "-o", "soup")
        assert (code, message in said) == (2, True), said
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------------ push


@pytest.mark.parametrize(
    "command", [("export", "DIR", "--to", "mteb"), ("merge", "DIR", "DIR", "-o", "soup"), ("convert", "pocket")]
)
def test_a_push_without_a_token_is_refused_before_anything_heavy(
    command: tuple[str, ...], native: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    quick(monkeypatch, tmp_path)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    before = files(native)
    arguments = [native if argument == "DIR" else argument for argument in command]
    code, _, said = call(capsys, *arguments, "--push", "me/my-encoder")
    assert code == 2 and "there is no token for the hub" in said
    code, _, said = call(capsys, *arguments, "--push", "my-encoder")
    assert code == 2 and "'my-encoder' is no name for a repository" in said
    assert files(native) == before and not list(tmp_path.iterdir())


def test_what_is_pushed_is_what_was_written(native: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    quick(monkeypatch, tmp_path)
    sent: list[Path] = []
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_nobodys")
    monkeypatch.setattr(export, "push", lambda folder, repo, private: sent.append(folder) or f"https://hub/{repo}")
    code, _, said = call(capsys, "export", native, "-o", "out", "--push", "me/x")
    assert code == 0 and "pushed: https://hub/me/x" in said
    code, _, said = call(capsys, "export", native, "--push", "me/x")
    assert code == 0 and sent == [Path("out"), native]
    code, _, said = call(capsys, "export", native, "--to", "gguf", "-o", "files", "--push", "me/x")
    assert code == 2 and "would hold no whole directory to push" in said and len(sent) == 2

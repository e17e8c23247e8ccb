"""A directory of llm2enc in every engine that is installed; a damaged one fails, and the report names the place."""

import ast
import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm2enc.artifact import read_metadata
from llm2enc.cli import verify as verify_command
from llm2enc.encoding import Encoder
from llm2enc.recipe import InputSpec, Part
from llm2enc.text import PROBES
from llm2enc.verification import Parity, verify, write_card
from llm2enc.verification import run as directory
from llm2enc.verification import subprocesses as running
from llm2enc.verification.probe_texts import LONG, WORK, fewer, runs, texts
from llm2enc.verification.report import Report
from llm2enc.verification.run import ENGINES
from tests.artifact.test_directory import make_encoder

pytest.importorskip("sentence_transformers")

BOTH = ("sentence-transformers", "transformers")
HERE = ("files", "llm2enc", *BOTH)
LED = (Part(special="bos", pool=True), Part(literal="passage: ", pool=True), Part(slot="text", pool=True))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with two prompts, a post-processor that adds <s> and </s>, and mean pooling."""
    folder = tmp_path_factory.mktemp("good") / "model"
    make_encoder().save(folder)
    return folder


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "copy")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def rows(report: Report) -> dict[str, Parity]:
    return {row.engine: row for row in report.rows}


# ------------------------------------------------------------------------------------------------------------- a good one


def test_transformers_is_opened_as_the_directory_asks(tmp_path: Path, in_process: None) -> None:
    """StableLM is bidirectional in eager attention alone; sdpa, the default, reads single texts as causal."""
    make_encoder("stablelm").save(tmp_path / "out")
    row = rows(verify(tmp_path / "out", ["transformers"]))["transformers"]
    assert row.verdict == "agrees" and "attn_implementation='eager'" in row.note
    change(tmp_path / "out" / "sentence_bert_config.json", model_args={"allow_all_kernels": False})
    assert rows(verify(tmp_path / "out", ["transformers"]))["transformers"].verdict == "differs"


def test_sentence_transformers_says_how_long_cut_vectors_are(good: Path, in_process: None) -> None:
    row = rows(verify(good, ["sentence-transformers"]))["sentence-transformers"]
    assert row.verdict == "agrees"
    assert re.search(r"`truncate_dim=16` gives vectors of length 0\.\d\d to 0\.\d\d: add `normalize_emb", row.note)


def test_a_good_directory_agrees_in_a_fresh_process(good: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "transformers.py").write_text("raise RuntimeError('taken from the folder one stands in')")
    monkeypatch.chdir(tmp_path)
    asked = ("files", "llm2enc", "transformers")
    report = verify(good, asked)
    assert report.agrees, report.rows
    row = rows(report)["transformers"]
    assert row.cosine > 0.99999 and row.difference < 1e-4 and row.version and not row.remedy
    verify_command._print_ours(report)
    assert "agrees" in capsys.readouterr().out
    answer = json.loads(json.dumps(report.to_json()))
    assert answer["agrees"] and [row["engine"] for row in answer["rows"]] == list(asked)


def test_the_scripts_know_nothing_of_llm2enc() -> None:
    scripts = sorted(running._SCRIPTS.glob("*.py"))
    assert {engine.script for engine in directory.OTHERS.values()} <= {path.stem for path in scripts}
    for path in scripts:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("llm2enc") for name in names), path


def test_every_text_is_read_alone_and_beside_others_with_every_prompt() -> None:
    given = texts(80)
    assert len(given) == len(PROBES) + 1 >= 24 and all(given.values()) and len(given[LONG]) > 80 * 7
    planned = runs(["query", "document"], ("alone", "right", "left"), list(given), 80)
    assert [(run.prompt, run.mode, run.side) for run in planned] == [
        (prompt, mode, side)
        for prompt in ("query", "document")
        for mode, side in (("alone", ""), ("right", "right"), ("left", "left"))
    ]
    assert all(set(run.order) == set(range(len(given))) for run in planned[:3])
    assert all(set(run.order) == set(range(len(PROBES))) for run in planned[3:])
    assert max(map(len, planned[0].batches)) == 1 < max(map(len, planned[1].batches))
    heavy = runs(["query"], ("alone", "right"), list(given), 8192)
    assert all(set(run.order) == set(range(len(PROBES))) for run in heavy)


def test_a_larger_model_reads_fewer_texts_at_the_end_of_its_conversion() -> None:
    given = texts(80)
    characters = sum(map(len, given.values()))
    assert fewer(given, int(WORK) // characters) == given
    sizes = [fewer(given, parameters) for parameters in (10**8, 10**9, 10**12)]
    assert len(given) > len(sizes[0]) > len(sizes[1]) > len(sizes[2]) == 2
    assert all(sum(map(len, kept.values())) <= WORK / size for kept, size in zip(sizes, (10**8, 10**9), strict=False))
    planned = runs(["query"], ("right",), list(sizes[1]), 80)
    assert planned[0].batches == [list(range(len(sizes[1])))]  # the last of them is no long text


def test_what_was_left_out_at_the_end_of_a_conversion_is_said(good: Path, monkeypatch) -> None:
    encoder = Encoder.load(good)
    assert all("texts" not in row.note for row in verify(good, ("llm2enc",), encoder).rows)
    monkeypatch.setattr("llm2enc.verification.probe_texts.WORK", 1)
    (row,) = verify(good, ("llm2enc",), encoder).rows
    assert row.agrees and row.note == f"it read 2 of {len(PROBES) + 1} texts: `llm2enc verify {good}` reads all"
    assert all(not row.note for row in verify(good, ("llm2enc",)).rows)


@pytest.mark.parametrize("pooling", ["weighted_mean", "last", "first"])
def test_every_pooling_is_done_by_hand_as_it_should(pooling: str, tmp_path: Path, in_process) -> None:
    make_encoder(pooling=pooling, normalize=False).save(tmp_path / "model")
    assert verify(tmp_path / "model", HERE).agrees


def test_prompts_that_are_not_pooled_are_left_out_by_hand_too(tmp_path: Path, in_process) -> None:
    ask = (Part(special="bos"), Part(slot="instruction"), Part(literal=":", when="instruction"))
    document = (Part(special="bos", pool=True), Part(slot="text", pool=True))
    spec = InputSpec(query=(*ask, document[1]), document=document, max_tokens=80, prompts={"query": "Find it"})
    make_encoder(spec=spec).save(tmp_path / "model")
    assert not json.loads((tmp_path / "model" / "1_Pooling" / "config.json").read_text())["include_prompt"]
    report = verify(tmp_path / "model", HERE)
    assert report.agrees and all(rows(report)[engine].verdict == "agrees" for engine in BOTH), report.rows


def test_what_sentence_transformers_can_not_do_is_not_compared(tmp_path: Path, in_process) -> None:
    plain = (Part(special="bos", pool=True), Part(slot="text", pool=True))
    spec = InputSpec(query=(*plain, Part(special="eos", pool=True)), document=plain, max_tokens=80)
    make_encoder(spec=spec).save(tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "llm2enc.json").read_text())
    assert not facts["native"]
    report = verify(tmp_path / "model", HERE)
    assert report.agrees
    for engine in BOTH:
        assert rows(report)[engine].verdict == "not comparable" and rows(report)[engine].note == facts["reason"]


def test_absolute_positions_excuse_padding_in_front_only(tmp_path: Path, in_process) -> None:
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}
    make_encoder("gpt2", **shape).save(tmp_path / "model")
    report = verify(tmp_path / "model", BOTH)
    assert report.agrees, report.rows
    assert all("pad on the right only" in row.note for row in report.rows)
    change(tmp_path / "model" / "tokenizer_config.json", padding_side="left")
    row = rows(verify(tmp_path / "model", ("sentence-transformers",)))["sentence-transformers"]
    assert row.verdict == "differs" and "in a batch" in row.note, row


# ---------------------------------------------------------------------------------------------------------- other formats


@pytest.fixture(scope="module")
def with_graphs(good: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories that hold `onnx` too: a good one, and one whose graph was made of the causal model."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("llm2enc.export.onnx")
    folder, found = tmp_path_factory.mktemp("graphs"), {}
    for name, bidirectional in (("good", True), ("causal", False)):
        make_encoder(bidirectional=bidirectional).save(folder / "plain")
        onnx.write(Encoder.load(folder / "plain"), folder / "plain", read_metadata(folder / "plain"))
        found[name] = shutil.copytree(good, folder / name)
        shutil.move(folder / "plain" / "onnx", found[name] / "onnx")
        shutil.rmtree(folder / "plain")
    return found


def test_graphs_of_onnx_and_openvino_agree(with_graphs: dict[str, Path], in_process: None) -> None:
    openvino = pytest.importorskip("openvino")
    (with_graphs["good"] / "openvino").mkdir()
    graph = openvino.convert_model(str(with_graphs["good"] / "onnx" / "model.onnx"))
    openvino.save_model(graph, with_graphs["good"] / "openvino" / "openvino_model.xml", compress_to_fp16=False)
    report = verify(with_graphs["good"], ("onnx", "openvino"))
    assert report.agrees and len(report.rows) == 2, report.rows
    assert all(row.cosine > 0.99999 and row.form for row in report.rows)


def test_a_graph_of_the_causal_model_is_recognised(with_graphs: dict[str, Path], in_process: None) -> None:
    (row,) = verify(with_graphs["causal"], ("onnx",)).rows
    assert row.verdict == "differs" and row.form == "onnx/model.onnx"
    assert "token ids are equal" in row.note
    assert "of the causal model: write onnx/model.onnx again: llm2enc export DIR --to onnx" in row.remedy


def test_llama_cpp_agrees_within_its_types(good: Path, tmp_path: Path, in_process: None) -> None:
    pytest.importorskip("llama_cpp")
    gguf = pytest.importorskip("llm2enc.export.gguf")
    copy = shutil.copytree(good, tmp_path / "copy")
    gguf.write(Encoder.load(copy), copy, read_metadata(copy), dtypes=("float32", "q8_0"))
    report = verify(copy, ("llama.cpp",))
    assert report.agrees and [row.dtype for row in report.rows] == ["float32", "q8_0"], report.rows
    assert all(LONG in row.note for row in report.rows)


# ---------------------------------------------------------------------------------------------------------- damaged ones


def flip_direction(folder: Path) -> None:
    change(folder / "config.json", is_causal=True)


def last_token_pooling(folder: Path) -> None:
    change(folder / "1_Pooling" / "config.json", pooling_mode="lasttoken")


def swapped_pooling(folder: Path) -> None:
    """1_Pooling of some other encoder: CLS, in the old schema and the new one."""
    content = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode": "cls"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(content))


def no_normalize(folder: Path) -> None:
    path = folder / "modules.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:2]))


def no_eos(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    processors = [content["post_processor"], *content["post_processor"].get("processors", [])]
    (template,) = [processor for processor in processors if processor["type"] == "TemplateProcessing"]
    assert template["single"].pop() == {"SpecialToken": {"id": "</s>", "type_id": 0}}
    path.write_text(json.dumps(content), encoding="utf-8")


def no_prompt(folder: Path) -> None:
    change(folder / "config_sentence_transformers.json", prompts={"query": "", "document": ""})


def short(folder: Path) -> None:
    change(folder / "sentence_bert_config.json", max_seq_length=20)


def long(folder: Path) -> None:
    change(folder / "sentence_bert_config.json", max_seq_length=90)


@pytest.mark.parametrize(
    ("damage", "file", "where", "remedy"),
    [
        (flip_direction, "config.json: is_causal is True", "states or pooling differ", "of the causal model"),
        (last_token_pooling, "1_Pooling/config.json: pooling_mode is 'lasttoken'", "for every text", "last pooling"),
        (swapped_pooling, "1_Pooling/config.json: pooling_mode is 'cls'", "for every text", "first pooling"),
        (no_normalize, "modules.json", "as long as ours", "2_Normalize"),
        (no_eos, "", "its last 1 are missing", "tokenizer.json"),
        (no_prompt, "config_sentence_transformers.json: prompts", "no prompt named", "llm2enc.json"),
        (short, "", "token ids differ for", "it cuts texts at 20 tokens"),
        (long, "", "token ids differ for", "it cuts texts at 90 tokens"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "",
)
def test_damage_is_found_and_named(
    damage: Callable[[Path], None], file: str, where: str, remedy: str, copy: Path, in_process: None
) -> None:
    damage(copy)
    report = verify(copy, HERE)
    found = rows(report)
    assert not report.agrees and found["llm2enc"].agrees
    assert found["files"].agrees if not file else file in found["files"].note
    for engine in BOTH:
        assert found[engine].verdict == "differs", found[engine]
        assert where in found[engine].note and remedy in found[engine].remedy, found[engine]


def test_a_text_too_long_to_be_run_is_compared_by_its_ids(copy: Path, in_process: None, monkeypatch) -> None:
    monkeypatch.setattr("llm2enc.verification.probe_texts.MOST_TOKENS", 79)
    (row,) = verify(copy, ("transformers",)).rows
    assert row.agrees and row.verdict == "agrees"
    change(copy / "sentence_bert_config.json", max_seq_length=79)
    (row,) = verify(copy, ("transformers",)).rows
    assert row.verdict == "differs" and "it cuts texts at 79 tokens" in row.remedy, row


def test_padding_on_the_other_side_is_named_though_rotary_positions_bear_it(copy: Path, in_process: None) -> None:
    change(copy / "tokenizer_config.json", padding_side="left")
    found = rows(verify(copy, HERE))
    assert found["files"].verdict == "differs" and "padding_side is 'left'" in found["files"].note
    assert all(found[engine].verdict == "agrees" for engine in BOTH)


def test_a_perturbed_weight_is_no_longer_what_was_written(copy: Path, in_process: None) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["layers.1.mlp.down_proj.weight"][3] += 0.5
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    found = rows(verify(copy, HERE))
    assert found["llm2enc"].verdict == "differs"
    assert "fingerprint" in found["llm2enc"].note and "golden" in found["llm2enc"].note
    assert found["transformers"].agrees  # it reads the same wrong weights


def test_one_bit_of_a_weight_is_enough(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["layers.1.mlp.down_proj.weight"].view(torch.int32)[0, 0] ^= 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    (row,) = verify(copy, ("llm2enc",)).rows
    assert row.verdict == "differs" and row.cosine > 0.9999 and "golden" not in row.note


def test_it_differs_from_the_encoder_in_memory_if_that_is_another(good: Path) -> None:
    assert verify(good, ("llm2enc",), make_encoder()).agrees
    (row,) = verify(good, ("llm2enc",), make_encoder(pooling="last")).rows
    assert row.verdict == "differs" and row.cosine < 0.99


def test_a_directory_that_does_not_open_is_a_failure(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"nothing")
    report = verify(copy)
    assert [row.verdict for row in report.rows] == ["agrees", "failed"] and not report.agrees


def test_an_unreadable_small_file_is_named(copy: Path) -> None:
    (copy / "modules.json").write_text("[")
    found = rows(verify(copy, ("files", "rules")))
    assert found["files"].verdict == "differs" and "modules.json" in found["files"].note
    assert found["rules"].verdict == "failed" and "modules.json is not JSON" in found["rules"].note


def test_a_default_prompt_that_was_taken_out_is_named(tmp_path: Path) -> None:
    """No engine shows it: each is given its prompts by name."""
    spec = InputSpec(query=LED, document=LED, max_tokens=80)
    make_encoder(spec=spec).save(tmp_path / "model")
    assert verify(tmp_path / "model", ("files",)).agrees
    change(tmp_path / "model" / "config_sentence_transformers.json", default_prompt_name=None)
    (row,) = verify(tmp_path / "model", ("files",)).rows
    assert row.verdict == "differs" and "default_prompt_name is None, expected 'document'" in row.note


def test_a_guard_that_was_taken_out_is_a_note_and_no_fault(copy: Path) -> None:
    content = json.loads((copy / "config.json").read_text())
    del content["pruned_heads"]
    (copy / "config.json").write_text(json.dumps(content))
    change(copy / "sentence_bert_config.json", model_args={})
    (row,) = verify(copy, ("files",)).rows
    assert row.agrees and row.verdict == "agrees" and "old releases" in row.note
    assert "pruned_heads" in row.note and "allow_all_kernels" in row.note and "transformer_task" not in row.note


def test_a_directory_of_an_earlier_release_is_read_without_its_prefixes(copy: Path, in_process: None) -> None:
    facts = json.loads((copy / "llm2enc.json").read_text(encoding="utf-8"))
    del facts["prefixes"], facts["tokenizer"]
    (copy / "llm2enc.json").write_text(json.dumps(facts))
    assert verify(copy, HERE).agrees


# ------------------------------------------------------------------------------------------------------------------ card


def test_the_rows_go_into_the_card_and_the_metadata(copy: Path) -> None:
    before = {name: (copy / name).read_text(encoding="utf-8") for name in ("README.md", "llm2enc.json")}
    rows = [
        Parity("transformers", 0.999999, difference=2.5e-7, version="5.23.0", seconds=3.0),
        Parity("onnx", 0.5, "for every text", "float16", "differs", "write it again", 0.3, "onnx/model_fp16.onnx"),
        Parity("openvino", None, "no openvino/model.xml", verdict="missing"),
        Parity("vllm", None, verdict="should agree", version="0.33.0"),
    ]
    for _ in range(2):  # the second time it takes the place of the first
        write_card(copy, Report(str(copy), rows))
        card = (copy / "README.md").read_text(encoding="utf-8")
        assert card.count("transformers 5.23.0") == 1 and "write it again" in card and "openvino" not in card
        assert "| vllm 0.33.0 | should agree (read, not run) |" in card
        facts = json.loads((copy / "llm2enc.json").read_text(encoding="utf-8"))
        assert [row["engine"] for row in facts["verification"]["rows"]] == ["transformers", "onnx", "openvino", "vllm"]
        assert facts["verification"]["agrees"] is False and "folder" not in facts["verification"]
    assert {**json.loads(before["llm2enc.json"]), "verification": facts["verification"]} == facts
    assert all(line in card for line in before["README.md"].splitlines())
    assert not list(copy.glob(".*partial*"))
    assert Encoder.load(copy).encode("a").shape == (32,)


@pytest.mark.parametrize("agrees", [True, False])
def test_a_proof_that_verify_ran_stands_at_the_next_load(agrees: bool, copy: Path, caplog) -> None:
    """As after a new release of torch, and a config.json that somebody edited."""
    facts = json.loads((copy / "llm2enc.json").read_text(encoding="utf-8"))
    facts["proof"]["versions"]["torch"] = "2.0"
    (copy / "llm2enc.json").write_text(json.dumps(facts))
    change(copy / "config.json", note="edited")
    Encoder.load(copy)
    assert "config.json is not the file that was written; torch is" in caplog.text
    caplog.clear()
    report = verify(copy, ("files", "llm2enc"))
    failed = Parity("onnx", 0.5, verdict="differs")
    write_card(copy, report if agrees else replace(report, rows=[*report.rows, failed]))
    Encoder.load(copy)
    assert ("the full proof ran again" in caplog.text) is not agrees


def test_a_directory_that_cannot_be_written_is_verified_all_the_same(copy: Path, monkeypatch, capsys) -> None:
    def closed(path: Path, text: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("llm2enc.verification.report.replace_text", closed)
    monkeypatch.setattr("llm2enc.verification.run.ENGINES", ("files", "llm2enc"))
    before = {path: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    verify_command.verify(str(copy), as_json=True)
    shown, said = capsys.readouterr()
    assert json.loads(shown)["agrees"] and f"note: {copy} is read-only" in said
    assert {path: path.read_bytes() for path in copy.iterdir() if path.is_file()} == before


def test_the_former_name_of_the_rules_is_taken_with_a_warning(good: Path, caplog) -> None:
    assert verify(good, ("contracts",)).rows == verify(good, ("rules",)).rows
    assert caplog.messages == ["the engine `contracts` is called `rules` now; the old name goes with release 0.2"]


# ------------------------------------------------------------------------------------------------- engines that cannot run


def test_what_is_not_there_or_not_installed_is_said_and_fails_only_if_asked_for(copy: Path, monkeypatch) -> None:
    (missing,) = verify(copy, ("onnx",)).rows
    assert missing.verdict == "missing" and missing.remedy == "llm2enc export DIR --to onnx"
    (copy / "gguf").mkdir()
    (copy / "gguf" / "model-f32.gguf").touch()
    monkeypatch.setattr(directory, "find_spec", lambda name: None)
    report = verify(copy, ("llama.cpp",))
    assert report.rows[0].verdict == "not installed" and "pip install llama-cpp-python" in report.rows[0].remedy
    assert not report.agrees and Report("x", report.rows).agrees


def test_an_engine_that_fails_or_hangs_says_how(copy: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(running, "_SCRIPTS", tmp_path)
    script = tmp_path / "in_transformers.py"
    for source, words in (
        (
            "raise ValueError('no such weight')",
            "ended with exit code 1: raise ValueError('no such weight') / ValueError",
        ),
        ("import os; os.abort()", "killed by signal 6"),
        ("", "ended with exit code 0"),
        ("import time; time.sleep(60)", "no answer within 0.5 seconds"),
    ):
        script.write_text(source)
        report = verify(copy, ("transformers",), seconds=0.5 if "sleep" in source else 60)
        assert report.rows[0].verdict == "failed" and words in report.rows[0].note, report.rows
        assert not report.agrees


def test_other_directories_and_engines_are_refused(good: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no engine named tensorrt; choose of files, llm2enc"):
        verify(good, ("tensorrt",))
    with pytest.raises(ValueError, match="verify_third_party"):
        verify(tmp_path)
    assert set(directory.AT_THE_END_OF_A_CONVERSION) < set(ENGINES)


def test_a_file_of_fewer_bits_has_the_room_of_its_type() -> None:
    names = {"model-q8_0": "q8_0", "model_fp16": "float16", "model-f16": "float16", "model-bf16": "bfloat16"}
    for name, dtype in {**names, "model": "float32", "model-f32": "float32"}.items():
        assert directory._dtype(Path(f"gguf/{name}.gguf")) == dtype

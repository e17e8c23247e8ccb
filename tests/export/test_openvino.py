"""The OpenVINO form: what OpenVINO gives in float32 for ids of the exported tokenizer, against `Encoder.encode`."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from llm2enc.export import openvino as target
from tests.export.test_onnx import FAMILIES, TEXT_ONLY, assert_same_vectors, first_moves, saved


@pytest.fixture(autouse=True)
def _one_openvino_thread(monkeypatch) -> None:
    monkeypatch.setitem(target.EXACT, "INFERENCE_NUM_THREADS", 1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A directory with both models: its folder, encoder, metadata and files."""
    folder = tmp_path_factory.mktemp("llama") / "model"
    encoder, metadata = saved(folder)
    return folder, encoder, metadata, target.write(encoder, folder, metadata, dtypes=("float16", "float32"))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_openvino_gives_the_vectors_of_encode(dtype: str, llama) -> None:
    folder, encoder, _, _ = llama
    run = target.runner(folder / "openvino" / target.FILES[dtype])
    assert_same_vectors(run, encoder, folder, {"float32": 5e-6, "float16": 5e-3}[dtype])
    assert first_moves(run, folder) > 1e-3


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_openvino_gives_the_vectors_of_every_family(family: str, tmp_path: Path) -> None:
    encoder, metadata = saved(tmp_path / "model", family, pooling="last", normalize=False)
    _, path = target.write(encoder, tmp_path / "model", metadata)
    run = target.runner(path)
    assert_same_vectors(run, encoder, tmp_path / "model", 3e-5)
    assert first_moves(run, tmp_path / "model") > 1e-3


def test_files_names_types_and_origin_are_those_of_the_contract(llama) -> None:
    import openvino

    folder, encoder, metadata, files = llama
    assert [path.relative_to(folder).as_posix() for path in files] == [
        "openvino/openvino_model.bin",
        "openvino/openvino_model.xml",
        "openvino/openvino_model_fp16.bin",
        "openvino/openvino_model_fp16.xml",
    ]
    assert {path.name for path in (folder / "openvino").iterdir()} == {path.name for path in files}
    assert files[2].stat().st_size < 0.6 * files[0].stat().st_size
    for path in (files[1], files[3]):
        model = openvino.Core().read_model(path)
        assert [(port.any_name, port.element_type.get_type_name()) for port in (*model.inputs, *model.outputs)] == [
            ("input_ids", "i64"),
            ("attention_mask", "i64"),
            ("last_hidden_state", "f32"),
            ("sentence_embedding", "f32"),
        ]
        assert all(dimension.is_dynamic for port in model.inputs for dimension in port.partial_shape)
        assert model.outputs[1].partial_shape[1].get_length() == encoder.dimensions
        assert model.get_rt_info(["llm2enc", "fingerprint"]).value == metadata.fingerprint


def test_rotary_frequencies_stay_exact_in_the_float16_model(llama) -> None:
    import openvino

    _, encoder, _, files = llama
    frequencies = encoder.backbone.decoder.rotary_emb.inv_freq.numpy()
    constants = [op for op in openvino.Core().read_model(files[3]).get_ops() if op.get_type_name() == "Constant"]
    same = [op for op in constants if op.data.size == frequencies.size and np.allclose(op.data.ravel(), frequencies)]
    assert same and all(op.get_element_type() == openvino.Type.f32 for op in same)
    halved = sum(op.data.size for op in constants if op.get_element_type() == openvino.Type.f16)
    assert halved == sum(weight.numel() for weight in encoder.backbone.decoder.parameters() if weight.dim() == 2)


def test_a_model_that_disagrees_is_refused_and_leaves_nothing(llama, tmp_path: Path, monkeypatch) -> None:
    import openvino

    _, _, _, files = llama
    encoder, metadata = saved(tmp_path / "model", pooling="first")
    monkeypatch.setattr(target, "_convert", lambda folder, metadata: openvino.Core().read_model(files[1]))  # pools all
    with pytest.raises(ValueError, match=r"openvino/openvino_model\.xml does not give .* where 0\.9999"):
        target.write(encoder, tmp_path / "model", metadata)
    assert not (tmp_path / "model" / "openvino").exists()
    assert not [entry for entry in (tmp_path / "model").iterdir() if entry.name.startswith(".")]


def test_what_a_graph_cant_say_and_a_missing_package_are_refused(tmp_path: Path, monkeypatch) -> None:
    encoder, metadata = saved(tmp_path / "model", spec=TEXT_ONLY)
    with pytest.raises(ValueError, match="'query' are read but not pooled"):
        target.write(encoder, tmp_path / "model", metadata)
    encoder, metadata = saved(tmp_path / "other", pooling="last", spec=TEXT_ONLY)  # its last token is the text's own
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openvino" else find(name))
    with pytest.raises(ValueError, match=r'openvino, not installed here: pip install "llm2enc\[openvino\]"'):
        target.write(encoder, tmp_path / "other", metadata)

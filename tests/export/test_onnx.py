"""The ONNX form: what ONNX Runtime gives for ids of the exported tokenizer, against `Encoder.encode`."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, PreTrainedTokenizerFast

from llm2enc.artifact import Metadata, read_metadata
from llm2enc.encoding import Encoder
from llm2enc.export import graph
from llm2enc.export import onnx as target
from llm2enc.export.graph import Expected, Graph, check
from llm2enc.model import POOLERS, Backbone
from llm2enc.recipe import InputSpec, Part
from llm2enc.text import InputFormat
from tests.support.builders import make_tokenizer, sentences
from tests.support.tiny import tiny_model

BOS, EOS = Part(special="bos", pool=True), Part(special="eos", pool=True)
TEXT, ASK = Part(slot="text", pool=True), Part(slot="instruction", pool=True)
SPEC = InputSpec(
    query=(BOS, ASK, Part(literal=": ", pool=True), TEXT, EOS),
    document=(BOS, TEXT, EOS),
    max_tokens=48,
    prompts={"query": "Find the answer"},
)
# No token of the prompt is pooled.
TEXT_ONLY = InputSpec(
    query=(Part(special="bos"), Part(slot="instruction"), Part(literal="\n"), TEXT, EOS),
    document=(BOS, TEXT, EOS),
    max_tokens=48,
    prompts={"query": "Find the answer"},
)
FAMILIES = [
    "llama", "gemma3_text", "gpt_neox",
    *(pytest.param(name, marks=pytest.mark.full) for name in "mistral qwen2 qwen3 gemma2 phi3 olmo2 gpt2 opt".split()),
]  # fmt: skip
WINDOWS = {"mistral": 3, "phi3": 3, "gemma2": 3, "gemma3_text": 3}

TEXTS = [*sentences(5, seed=3), "a", "the old town " * 30]


def saved(folder: Path, family: str = "llama", spec: InputSpec = SPEC, pooling: str = "mean", **options):
    """An exported directory of a tiny random encoder: the encoder, its metadata."""
    window = {"sliding_window": WINDOWS[family]} if family in WINDOWS else {}
    model = tiny_model(family, vocab_size=320, max_position_embeddings=128, pad_token_id=1, **window)
    bidirectional, normalize = options.pop("bidirectional", True), options.pop("normalize", True)
    input_format = InputFormat(spec, make_tokenizer())
    encoder = Encoder(Backbone(model, bidirectional), input_format, pooling, normalize).eval()
    encoder.save(folder)
    metadata = read_metadata(folder)
    # transformers opens any tokenizer beside a Qwen2 with Qwen2's own splitting of digits, which this one doesn't have.
    return encoder, metadata.model_copy(update={"native": True} if family == "qwen2" else {})


def inputs(folder: Path, texts: list[str], side: str = "right") -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask as a program has them that knows nothing of ours."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side=side)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
    return batch["input_ids"].astype(np.int64), batch["attention_mask"].astype(np.int64)


def assert_same_vectors(run: graph.Run, encoder: Encoder, folder: Path, tolerance: float) -> None:
    """One by one and padded on either side, documents and queries; and every state beside a plain transformers model."""
    vectors = encoder.encode(TEXTS)
    for number, text in enumerate(TEXTS):
        np.testing.assert_allclose(run(*inputs(folder, [text]))[1][0], vectors[number], atol=tolerance)
    asked = [f"Find the answer: {text}" for text in TEXTS]
    np.testing.assert_allclose(
        run(*inputs(folder, asked))[1], encoder.encode(TEXTS, prompt_name="query"), atol=tolerance
    )
    decoder = AutoModel.from_pretrained(folder)  # sdpa
    for side in ("right", "left"):
        ids, mask = inputs(folder, TEXTS, side)
        hidden, pooled = run(ids, mask)
        assert hidden.dtype == pooled.dtype == np.float32
        np.testing.assert_allclose(pooled, vectors, atol=tolerance)
        for row, (one, there) in enumerate(zip(ids, mask == 1, strict=True)):
            with torch.no_grad():
                alone = decoder(torch.from_numpy(one[there])[None]).last_hidden_state[0].numpy()
            scale = np.abs(alone).max()
            np.testing.assert_allclose(hidden[row, there] / scale, alone / scale, atol=4 * tolerance)


def first_moves(run: graph.Run, folder: Path) -> float:
    """How far the first token's state moves when the last of three changes, of its largest entry."""
    ids = inputs(folder, ["the old town"])[0][:, -3:]
    other = ids.copy()
    other[0, -1] += 7
    one, two = (run(row, np.ones_like(row))[0][0, 0] for row in (ids, other))
    return float(np.abs(one - two).max() / np.abs(one).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_runtime_gives_the_vectors_of_encode(family: str, tmp_path: Path) -> None:
    encoder, metadata = saved(tmp_path / "model", family)
    files = target.write(encoder, tmp_path / "model", metadata, dtypes=("float32", "float16"))
    assert [path.relative_to(tmp_path / "model").as_posix() for path in files] == [
        "onnx/model.onnx",
        "onnx/model_fp16.onnx",
    ]
    for path, tolerance in zip(files, (5e-6, 5e-3), strict=True):
        run = target.runner(path)
        assert_same_vectors(run, encoder, tmp_path / "model", tolerance)
        assert first_moves(run, tmp_path / "model") > 1e-3
    assert {path.name for path in (tmp_path / "model" / "onnx").iterdir()} == {path.name for path in files}


def test_names_types_and_sizes_are_those_of_the_contract(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    encoder, metadata = saved(tmp_path / "model")
    single, half = target.write(encoder, tmp_path / "model", metadata, dtypes=("float32", "float16"))
    for path in (single, half):
        session = onnxruntime.InferenceSession(path)
        assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
            ("input_ids", "tensor(int64)", ["batch", "sequence"]),
            ("attention_mask", "tensor(int64)", ["batch", "sequence"]),
        ]
        assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
            ("last_hidden_state", "tensor(float)", ["batch", "sequence", encoder.dimensions]),
            ("sentence_embedding", "tensor(float)", ["batch", encoder.dimensions]),
        ]
        assert session.get_modelmeta().custom_metadata_map["llm2enc.fingerprint"] == metadata.fingerprint
    shapes = {t.name: (tuple(t.dims), t.data_type) for t in onnx.load(half).graph.initializer}
    matrices = [kind for dims, kind in shapes.values() if len(dims) == 2 and min(dims) > 1]
    assert len(matrices) == 1 + 2 * 7 and set(matrices) == {onnx.TensorProto.FLOAT16}  # embedding, 7 per Llama layer
    others = {kind for dims, kind in shapes.values() if not (len(dims) == 2 and min(dims) > 1)}
    assert onnx.TensorProto.FLOAT16 not in others and onnx.TensorProto.FLOAT in others


@pytest.mark.parametrize("pooling", ["weighted_mean", "last", "first"])
def test_the_graph_pools_as_the_encoder_does(pooling: str, tmp_path: Path) -> None:
    encoder, metadata = saved(tmp_path / "model", pooling=pooling, normalize=pooling != "last")
    (path,) = target.write(encoder, tmp_path / "model", metadata)
    assert_same_vectors(target.runner(path), encoder, tmp_path / "model", 2e-5)


@pytest.mark.parametrize("pooling", list(POOLERS))
def test_pooling_weights_are_those_of_packed_rows(pooling: str) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0], [0, 1, 0, 0, 0]])
    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    weights = POOLERS[pooling].weights(mask, mask.cumsum(1)).float()
    ours = (weights[..., None] * hidden).sum(1) / weights.sum(1, keepdim=True)
    packed = hidden[mask == 1]
    wanted = POOLERS[pooling].function(packed, torch.ones(len(packed), dtype=torch.bool), mask.sum(1))
    torch.testing.assert_close(ours, wanted)


def test_a_causal_encoder_has_a_causal_graph(tmp_path: Path) -> None:
    encoder, metadata = saved(tmp_path / "model", pooling="last", bidirectional=False)
    (path,) = target.write(encoder, tmp_path / "model", metadata)
    run = target.runner(path)
    assert_same_vectors(run, encoder, tmp_path / "model", 5e-6)
    assert first_moves(run, tmp_path / "model") == 0


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_graph_that_disagrees_is_refused_and_what_was_there_stays(tmp_path: Path, monkeypatch) -> None:
    encoder, metadata = saved(tmp_path / "model")
    (path,) = target.write(encoder, tmp_path / "model", metadata)
    before = path.read_bytes()
    opened = graph.open_graph

    def causal(folder: Path, metadata: Metadata) -> Graph:
        module = opened(folder, metadata)
        module.decoder.config.is_causal = True
        return module

    monkeypatch.setattr(graph, "open_graph", causal)
    with pytest.raises(ValueError, match=r"onnx/model\.onnx does not give .* cosine .* 0\.\d{6} where 0\.9999"):
        target.write(encoder, tmp_path / "model", metadata)
    assert path.read_bytes() == before
    assert {entry.name for entry in (tmp_path / "model").iterdir() if entry.name.startswith(".")} == set()


def test_a_family_that_cant_be_traced_is_refused_by_name(tmp_path: Path, monkeypatch) -> None:
    encoder, metadata = saved(tmp_path / "model")
    monkeypatch.setattr(Graph, "forward", lambda self, ids, mask: (_ for _ in ()).throw(TypeError("no such luck")))
    with pytest.raises(ValueError, match=r"cannot trace a llama \(TypeError: no such luck\)"):
        target.write(encoder, tmp_path / "model", metadata)
    assert not (tmp_path / "model" / "onnx").exists()


def test_a_family_whose_trace_does_not_hold_is_exported_by_torch_export(tmp_path: Path, capfd) -> None:
    """Cohere's rotary embedding is traced with the lengths of the example; GLM-4's is not traced at all."""
    encoder, metadata = saved(tmp_path / "model", "cohere")
    files = target.write(encoder, tmp_path / "model", metadata, dtypes=("float32", "float16"))
    wanted = graph.expected(encoder, tmp_path / "model", metadata)
    for file, dtype in zip(files, ("float32", "float16"), strict=True):
        assert target.agreement(file, wanted, dtype).cosine > 0.999
    assert "Torch IR graph" not in capfd.readouterr().out


def test_prompts_that_are_not_pooled_are_refused(tmp_path: Path) -> None:
    encoder, metadata = saved(tmp_path / "model", spec=TEXT_ONLY)
    assert metadata.native and not json.loads((tmp_path / "model/1_Pooling/config.json").read_text())["include_prompt"]
    assert "'query' are read but not pooled" in target.unsupported_reason(encoder, metadata)
    with pytest.raises(ValueError, match="pool: true"):
        target.write(encoder, tmp_path / "model", metadata)
    # The last token is the text's own, whatever stands in front.
    assert target.unsupported_reason(encoder.variant(pooling="last"), metadata) == ""
    assert "not pooled" in target.unsupported_reason(encoder.variant(pooling="weighted_mean"), metadata)


def test_an_encoder_that_no_other_program_reads_is_refused_with_its_reason(tmp_path: Path) -> None:
    encoder, metadata = saved(tmp_path / "model")
    metadata = metadata.model_copy(update={"native": False, "reason": "the prompts query are left out."})
    assert "the prompts query are left out." in target.unsupported_reason(encoder, metadata)


def test_an_encoder_of_16_bits_becomes_the_graph_of_its_own_weights(tmp_path: Path) -> None:
    encoder, _ = saved(tmp_path / "single")
    encoder.backbone.to(torch.bfloat16)
    encoder.save(tmp_path / "half")
    (path,) = target.write(Encoder.load(tmp_path / "half"), tmp_path / "half", read_metadata(tmp_path / "half"))
    _, vectors = target.runner(path)(*inputs(tmp_path / "half", TEXTS))
    ours = Encoder.load(tmp_path / "half", dtype="float32").encode(TEXTS)
    np.testing.assert_allclose(vectors, ours, atol=1e-5)


def test_missing_packages_and_unknown_types_are_refused(tmp_path: Path, monkeypatch) -> None:
    encoder, metadata = saved(tmp_path / "model")
    for dtypes in ((), ("bfloat16",), ("float32", "int8")):
        with pytest.raises(ValueError, match="float32, float16"):
            target.write(encoder, tmp_path / "model", metadata, dtypes=dtypes)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(ValueError, match=r'onnxruntime, not installed here: pip install "llm2enc\[onnx\]"'):
        target.write(encoder, tmp_path / "model", metadata)


# --------------------------------------------------------------------------------------------------------------- check


def reference(bidirectional: bool = True) -> tuple[Expected, graph.Run]:
    """Texts with the vectors of a toy model, and that model: a state is its token's row plus the text's average row."""
    table = np.random.default_rng(0).normal(size=(20, 6))

    def run(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = table[ids] * mask[..., None]
        shared = rows.sum(1, keepdims=True) if bidirectional else rows.cumsum(1)
        hidden = table[ids] + shared / mask.sum(1)[:, None, None]
        return hidden, (hidden * mask[..., None]).sum(1) / mask.sum(1)[:, None]

    rows = [np.arange(start, start + count) for start, count in ((2, 3), (4, 9), (7, 1))]
    vectors = np.concatenate([run(row[None], np.ones((1, len(row)), dtype=np.int64))[1] for row in rows])
    return Expected(rows, vectors, 0, bidirectional), run


@pytest.mark.parametrize(
    "fault",
    {
        "padding is read": lambda run: lambda ids, mask: run(ids, np.ones_like(mask)),
        "padding on the left is taken for tokens": lambda run: lambda ids, mask: run(ids, np.sort(mask)[:, ::-1]),
        "another length": lambda run: lambda ids, mask: (run(ids, mask)[0], 1.1 * run(ids, mask)[1]),
        "no number": lambda run: lambda ids, mask: (run(ids, mask)[0], np.nan * run(ids, mask)[1]),
        "states that padding moves": lambda run: (
            lambda ids, mask: (
                run(ids, mask)[0] + (mask == 0).any(),
                run(ids, mask)[1],
            )
        ),
    }.items(),
    ids=lambda item: item[0],
)
def test_check_refuses_every_fault(fault) -> None:
    wanted, run = reference()
    assert check(run, wanted, "float32", "toy").cosine > 0.999999
    with pytest.raises(ValueError, match="toy does not give this encoder's vectors"):
        check(fault[1](run), wanted, "float32", "toy")


@pytest.mark.parametrize("bidirectional", [True, False])
def test_check_refuses_the_other_direction_though_every_vector_is_right(bidirectional: bool) -> None:
    wanted, run = reference(bidirectional)
    check(run, wanted, "float32", "toy")
    with pytest.raises(ValueError, match="causal" if not bidirectional else "bidirectional"):
        check(run, replace(wanted, bidirectional=not bidirectional), "float32", "toy")


# ------------------------------------------------------------------------------------------------- weights of their own


def test_many_weights_stand_in_a_file_of_their_own(tmp_path: Path, monkeypatch) -> None:
    import onnx

    encoder, metadata = saved(tmp_path / "model")
    (path,) = target.write(encoder, tmp_path / "model", metadata)
    inline = path.stat().st_size
    monkeypatch.setattr(target, "INLINE_BYTES", 10_000)
    files = target.write(encoder, tmp_path / "model", metadata, dtypes=("float32", "float16"))
    names = ["model.onnx", "model.onnx_data", "model_fp16.onnx", "model_fp16.onnx_data"]
    assert [file.name for file in files] == names
    assert files[0].stat().st_size < inline / 2
    for number in (0, 2):
        places = {
            entry.value
            for tensor in onnx.load(files[number], load_external_data=False).graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert places == {names[number + 1]}
    assert_same_vectors(target.runner(files[0]), encoder, tmp_path / "model", 5e-6)
    monkeypatch.undo()
    target.write(encoder, tmp_path / "model", metadata)
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", *names[2:]]


def test_weights_beyond_float16_are_refused() -> None:
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.full((4, 4), 7e4, dtype=np.float32), "w")
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    content = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", rows[:1], rows[1:], [weight])
    with pytest.raises(ValueError, match="65504"):
        target.halve(content)


def test_only_products_and_lookups_are_halved() -> None:
    from onnx import TensorProto, helper, numpy_helper

    values = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    weights = [numpy_helper.from_array(values, name) for name in ("product", "shared", "added", "inner")]
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in "xy"]
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["z"])], "b", [], [helper.make_tensor_value_info("z", 1, [4, 4])]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "product"], ["a"]),
        helper.make_node("MatMul", ["a", "shared"], ["b"]),
        helper.make_node("Add", ["b", "shared"], ["c"]),
        helper.make_node("Add", ["c", "added"], ["d"]),
        helper.make_node("MatMul", ["d", "inner"], ["e"]),
        helper.make_node("If", ["yes"], ["f"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["e", "f"], ["y"]),
    ]
    yes = numpy_helper.from_array(np.array(True), "yes")
    content = helper.make_graph(nodes, "g", rows[:1], rows[1:], [*weights, yes])
    target.halve(content)
    kinds = {tensor.name: tensor.data_type for tensor in content.initializer}
    assert kinds == {"product": 10, "shared": 1, "added": 1, "inner": 1, "yes": TensorProto.BOOL}
    assert [node.op_type for node in content.node][:4] == ["Cast", "MatMul", "Cast", "MatMul"]

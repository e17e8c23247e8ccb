"""GGUF files: read back by the package `gguf` and by transformers, and run by llama.cpp where it is installed."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from transformers import AddedToken, AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from llm2enc.artifact import read_metadata
from llm2enc.encoding import Encoder
from llm2enc.export import gguf as target
from llm2enc.export.gguf.families import FAMILIES
from llm2enc.model import POOLERS, Backbone
from llm2enc.recipe import InputSpec, LoraSpec, Part
from llm2enc.text import InputFormat
from tests.support.builders import make_tokenizer
from tests.support.tiny import tiny_model

BOS, EOS, TEXT = Part(special="bos", pool=True), Part(special="eos", pool=True), Part(slot="text", pool=True)
ASK = Part(slot="instruction", pool=True)
WHOLE = InputSpec(query=(BOS, ASK, TEXT, EOS), document=(BOS, TEXT, EOS), max_tokens=60, prompts={"ask": "Find: "})
METADATA = read_metadata(Path(__file__).parents[1] / "fixtures" / "format-1").model_copy(
    update={
        "native": True,
        "reason": "",
        "prompts": {"query": "", "document": "", "ask": "Find: "},
        "prefixes": None,
        "fingerprint": "abc",
        "recipe": {"name": "a-recipe"},
    }
)
# Miniatures have a window of 3 tokens and Gemma's scale of full-size heads; these are what llama.cpp can do.
SETTINGS: dict[str, dict[str, Any]] = {
    **{family: {"sliding_window": 60} for family in ("mistral", "qwen2", "qwen3", "phi3")},
    "llama": {"attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "gemma2": {"sliding_window": 60, "query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8},  # its window is 3 tokens to either side, and stays
}
TEXTS = (
    "the river runs through the old town",
    "when trade in salt made it rich every spring boats bring wool wine",
    "a",
    "Zürich – naïve café",
    "東京 🦜!",
)
LANGUAGES = (
    "The river runs through the old town, doesn't it? I'LL say so.", "def area(r):\n    return 3.14 * r ** 2\n",
    "  spaces   around  ", "two\nlines\r\n\n\tand a tab", "Größe, Straße, naïve café", "Ελληνικά κείμενα 123 4567",
    "Быстрая река течёт", "हिन्दी में एक वाक्य।", "นี่คือประโยคภาษาไทย", "هذا نص باللغة العربية ١٢٣", "זהו משפט בעברית",
    "日本語のテスト文です。", "한국어 문장입니다.", "Tiếng Việt có dấu", "ქართული ენა", "አማርኛ",
    "🦜🏳️‍🌈 👩‍👩‍👧", "½ ² Ⅷ ① ٣ 12345", "...!!!???---___===", "\u00a0nbsp\u2003em\u200bzw e\u0301", "a",
)  # fmt: skip


def make(
    family: str = "llama",
    spec: InputSpec = WHOLE,
    pooling: str = "mean",
    bidirectional: bool = True,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **overrides: Any,
) -> Encoder:
    """A tiny random encoder; no norm weight is 1 and no bias 0, so that each must arrive."""
    tokenizer = tokenizer or make_tokenizer()
    model = tiny_model(family, **{"vocab_size": len(tokenizer), **SETTINGS.get(family, {}), **overrides}).base_model
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return Encoder(Backbone(model, bidirectional), InputFormat(spec, tokenizer), pooling).eval()


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def stored(path: Path) -> dict[str, np.ndarray]:
    """Every tensor in float32, with rows and columns as torch has them."""
    return {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors}


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


# ---------------------------------------------------------------------------------------------------------------- file


def test_the_file_says_how_to_read_the_model(tmp_path: Path) -> None:
    encoder = make("qwen3", pooling="last")
    (path,) = target.write(encoder, tmp_path, METADATA)
    found = fields(path)
    assert path == tmp_path / "gguf" / "model-f16.gguf" and list(path.parent.iterdir()) == [path]
    assert found["general.architecture"] == "qwen3" and found["general.name"] == "a-recipe"
    assert found["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert found["qwen3.attention.causal"] is False
    assert found["qwen3.pooling_type"] == gguf.PoolingType.LAST
    assert found["qwen3.context_length"] == 60
    assert found["tokenizer.ggml.add_bos_token"] is True and found["tokenizer.ggml.add_eos_token"] is True
    assert found["tokenizer.ggml.bos_token_id"] == 0 and found["tokenizer.ggml.eos_token_id"] == 1
    assert json.loads(found["llm2enc.prompts"]) == METADATA.prompts
    assert "qwen3.attention.causal" not in fields(
        target.write(make("qwen3", bidirectional=False), tmp_path, METADATA)[0]
    )


def test_poolings_have_llama_cpps_numbers() -> None:
    numbers = {name: pooler.gguf for name, pooler in POOLERS.items() if pooler.gguf is not None}
    assert numbers == {"mean": gguf.PoolingType.MEAN, "last": gguf.PoolingType.LAST, "first": gguf.PoolingType.CLS}


def test_a_template_without_ends_adds_none(tmp_path: Path) -> None:
    spec = InputSpec(query=(ASK, TEXT), document=(TEXT,), max_tokens=60)
    found = fields(target.write(make(spec=spec), tmp_path, METADATA)[0])
    assert found["tokenizer.ggml.add_bos_token"] is False and found["tokenizer.ggml.add_eos_token"] is False


def test_bidirectional_architectures_are_those_older_releases_refuse(tmp_path: Path) -> None:
    for family, names in (("llama", ("llama-embed", "llama")), ("gemma3_text", ("gemma-embedding", "gemma3"))):
        for bidirectional, name in zip((True, False), names, strict=True):
            (path,) = target.write(make(family, bidirectional=bidirectional), tmp_path, METADATA)
            assert fields(path)["general.architecture"] == name


def test_files_differ_in_the_types_of_matrices_only(tmp_path: Path) -> None:
    encoder = make("qwen2")
    full, half, eighth = target.write(encoder, tmp_path, METADATA, dtypes=("float32", "float16", "q8_0"))
    for path, kind in ((full, "F32"), (half, "F16"), (eighth, "Q8_0")):
        shapes = {tensor.name: len(tensor.shape) for tensor in gguf.GGUFReader(path).tensors}
        assert types(path) == {name: kind if count == 2 else "F32" for name, count in shapes.items()}
    assert fields(eighth)["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    exact, rounded = stored(full), stored(eighth)
    for name, values in exact.items():
        # One scale per 32 weights: half a step of 1/127 of the largest of them, and the scale is a float16.
        blocks = np.abs(values.reshape(-1, 32 if values.ndim == 2 else 1)).max(1, keepdims=True)
        off = np.abs(rounded[name].reshape(len(blocks), -1) - values.reshape(len(blocks), -1))
        assert (off <= blocks * (0.5 / 127 + 1e-3)).all()


def test_rows_that_are_no_multiple_of_32_stay_in_16_bits(tmp_path: Path) -> None:
    encoder = make(hidden_size=48, num_attention_heads=4, head_dim=12)
    (path,) = target.write(encoder, tmp_path, METADATA, dtypes=("q8_0",))
    assert types(path)["blk.0.attn_q.weight"] == "F16"  # rows of 48
    assert types(path)["blk.0.ffn_down.weight"] == "Q8_0"  # rows of 64


def test_a_matrix_beyond_float16_stays_in_float32(tmp_path: Path) -> None:
    encoder = make()
    with torch.no_grad():
        encoder.backbone.decoder.layers[0].mlp.up_proj.weight[0, 0] = 70000.0
    (path,) = target.write(encoder, tmp_path, METADATA)
    assert types(path)["blk.0.ffn_up.weight"] == "F32" and types(path)["blk.1.ffn_up.weight"] == "F16"


def test_weights_of_16_bits_are_written_exactly(tmp_path: Path) -> None:
    encoder = make()
    encoder.backbone.to(torch.bfloat16)
    (path,) = target.write(encoder, tmp_path, METADATA, dtypes=("float32",))
    np.testing.assert_array_equal(
        stored(path)["token_embd.weight"], encoder.backbone.decoder.embed_tokens.weight.detach().float().numpy()
    )


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", fail)
    with pytest.raises(OSError, match="disk full"):
        target.write(make(), tmp_path, METADATA)
    assert not list((tmp_path / "gguf").iterdir())


def test_a_name_that_changes_llama_cpps_tokenizer_is_not_written(tmp_path: Path) -> None:
    (path,) = target.write(make(), tmp_path, METADATA.model_copy(update={"recipe": {"name": "Phi-3-mini"}}))
    assert fields(path)["general.name"] == "encoder"


# ------------------------------------------------------------------------------------------------------------- weights

# What transformers 5.23 reads: architectures made for embeddings it does not know, so those families are causal here.
READ_BY_TRANSFORMERS = {
    "llama": False, "mistral": False, "qwen2": True, "qwen3": True, "gemma2": True, "gemma3_text": False, "phi3": True,
}  # fmt: skip
SHAPE = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads rms_norm_eps"
).split()


@pytest.mark.parametrize("family", READ_BY_TRANSFORMERS)
def test_transformers_reads_the_same_model(family: str, tmp_path: Path) -> None:
    overrides = {"attention_bias": False, "mlp_bias": False, "head_dim": 8} if family == "llama" else {}
    encoder = make(family, bidirectional=READ_BY_TRANSFORMERS[family], **overrides)
    (path,) = target.write(encoder, tmp_path, METADATA, dtypes=("float32",))
    config, found = encoder.backbone.config, AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    assert {name: getattr(found, name) for name in SHAPE} == {
        name: pytest.approx(getattr(config, name)) for name in SHAPE
    }
    # It does not read every key (widths of heads, Gemma's scales), so the model is built by our configuration. A Mistral
    # is a Llama to it, and the fused matrices of Phi-3 have names only in the model with a head.
    given = found if family == "mistral" else copy.deepcopy(config)
    kind = AutoModelForCausalLM if family == "phi3" else AutoModel
    model = kind.from_pretrained(path.parent, gguf_file=path.name, config=given, dtype=torch.float32).base_model
    theirs = Encoder(Backbone(model, encoder.backbone.bidirectional), encoder.input_format, "mean").eval()
    np.testing.assert_allclose(theirs.encode(list(TEXTS)), encoder.encode(list(TEXTS)), atol=2e-6)


def test_rows_of_queries_and_keys_are_neighbours_where_llama_cpp_turns_neighbours(tmp_path: Path) -> None:
    encoder = make(head_dim=8)
    (path,) = target.write(encoder, tmp_path, METADATA, dtypes=("float32",))
    ours = encoder.backbone.decoder.layers[1].self_attn
    for name, part in (("attn_q", ours.q_proj), ("attn_k", ours.k_proj)):
        for kind, values in (("weight", part.weight), ("bias", part.bias)):
            values, found = values.detach().numpy(), stored(path)[f"blk.1.{name}.{kind}"]
            # transformers turns dimensions i and i + 4 of 8 together, llama.cpp 2 i and 2 i + 1
            for row in range(len(values)):
                head, place = divmod(row, 8)
                i, half = divmod(place, 2)
                assert (found[row] == values[8 * head + i + 4 * half]).all()
    assert (stored(path)["blk.1.attn_v.weight"] == ours.v_proj.weight.detach().numpy()).all()


def test_queries_keys_and_values_of_gpt_neox_stand_apart(tmp_path: Path) -> None:
    encoder = make("gpt_neox")
    (path,) = target.write(encoder, tmp_path, METADATA, dtypes=("float32",))
    fused = encoder.backbone.decoder.layers[0].attention.query_key_value
    for kind, values in (("weight", fused.weight), ("bias", fused.bias)):
        found = stored(path)[f"blk.0.attn_qkv.{kind}"]
        for head in range(4):  # heads of 8
            for number in range(3):
                theirs = found[32 * number + 8 * head : 32 * number + 8 * head + 8]
                ours = values[24 * head + 8 * number : 24 * head + 8 * number + 8]
                assert (theirs == ours.detach().numpy()).all()


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_gemmas_norms_are_written_as_what_they_multiply_by(family: str, tmp_path: Path) -> None:
    encoder = make(family)
    (path,) = target.write(encoder, tmp_path, METADATA, dtypes=("float32",))
    decoder, found = encoder.backbone.decoder, stored(path)
    pairs = {"output_norm": decoder.norm, "blk.0.post_ffw_norm": decoder.layers[0].post_feedforward_layernorm}
    if family == "gemma3_text":
        pairs["blk.0.attn_q_norm"] = decoder.layers[0].self_attn.q_norm
    for name, norm in pairs.items():
        np.testing.assert_array_equal(found[f"{name}.weight"], norm.weight.detach().numpy() + 1)


def test_a_head_of_zeros_stands_in_where_llama_cpp_wants_one(tmp_path: Path) -> None:
    (path,) = target.write(make("olmo2"), tmp_path, METADATA)
    assert stored(path)["output.weight"].shape == (320, 32) and not stored(path)["output.weight"].any()
    assert "output.weight" not in types(target.write(make("qwen3"), tmp_path, METADATA)[0])


def test_rotary_factors_are_written_for_what_reads_them(tmp_path: Path) -> None:
    scaled = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    encoder = make(rope_parameters=scaled, head_dim=8)
    factors = stored(target.write(encoder, tmp_path, METADATA)[0])["rope_freqs.weight"]
    # Wave lengths 2 pi 10^i: below 32 / 4 unchanged, beyond 32 / 1 eight times as long, between them blended.
    np.testing.assert_allclose(factors[[0, 2, 3]], [1, 8, 8], rtol=1e-6)
    smooth = (32 / (20 * np.pi) - 1) / (4 - 1)
    assert factors[1] == pytest.approx(8.0 if smooth < 0 else 1 / ((1 - smooth) / 8 + smooth))


def test_yarn_and_linear_scaling_are_named(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    found = fields(target.write(make("qwen3", rope_parameters=yarn), tmp_path, METADATA)[0])
    assert found["qwen3.rope.scaling.type"] == "yarn" and found["qwen3.rope.scaling.factor"] == 4.0
    assert found["qwen3.rope.scaling.original_context_length"] == 32
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    found = fields(target.write(make("qwen2", rope_parameters=linear), tmp_path, METADATA)[0])
    assert found["qwen2.rope.scaling.type"] == "linear" and found["qwen2.rope.scaling.factor"] == pytest.approx(4)


def test_gemma3s_windows_and_second_frequencies_are_written(tmp_path: Path) -> None:
    found = fields(target.write(make("gemma3_text"), tmp_path, METADATA)[0])
    assert found["gemma-embedding.attention.sliding_window"] == 6  # 3 tokens to either side, which it halves
    kinds = make("gemma3_text").backbone.config.layer_types
    assert found["gemma-embedding.attention.sliding_window_pattern"] == [kind == "sliding_attention" for kind in kinds]
    assert found["gemma-embedding.rope.freq_base"] == 1e6 and found["gemma-embedding.rope.freq_base_swa"] == 1e4
    assert fields(target.write(make("gemma3_text", bidirectional=False), tmp_path, METADATA)[0])[
        "gemma3.attention.sliding_window"
    ] == 3  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "stablelm"}, "model_type 'stablelm' has no rules"),
        ({"pooling": "weighted_mean"}, "no pooling 'weighted_mean'"),
        ({"family": "mistral", "sliding_window": 59}, "has no window for mistral.*max_tokens: 59"),
        ({"family": "gemma2", "sliding_window": 59}, "looks to the left only"),
        ({"family": "gemma2", "attn_logit_softcapping": None}, "attn_logit_softcapping is off"),
        ({"family": "gemma3_text", "query_pre_attn_scalar": 16}, "query_pre_attn_scalar is 16.* by 8"),
        ({"family": "qwen2", "head_dim": 16}, "4 heads of 16"),
        ({"family": "qwen3", "attention_bias": True}, "o_proj have a bias"),
        ({"family": "gpt_neox", "attention_bias": False}, "dense, query_key_value have no bias"),
        ({"family": "gpt_neox", "hidden_act": "relu"}, "activation is 'relu'"),
        (
            {"family": "olmo2", "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            }}, "rotary kind 'llama3'",
        ),
        (
            {"family": "qwen3", "max_position_embeddings": 50, "rope_parameters": {
                "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0,
            }}, "beyond 50 tokens.*max_tokens: 50",
        ),
        ({"spec": InputSpec(query=(ASK, TEXT), document=(BOS, BOS, TEXT), max_tokens=60)}, "adds 2 and 0"),
        ({"spec": InputSpec(query=(ASK, TEXT), document=(TEXT, EOS, EOS), max_tokens=60)}, "adds 0 and 2"),
        (
            {"spec": InputSpec(query=(BOS, ASK, TEXT), document=(Part(special="bos"), TEXT), max_tokens=60)},
            "leaves some of them out",
        ),
        (
            {"pooling": "last", "spec": InputSpec(query=(ASK, TEXT), document=(TEXT, Part(special="eos")), max_tokens=60)},
            "leaves some of them out",
        ),
    ],
)  # fmt: skip
def test_what_llama_cpp_cant_do_is_refused_before_anything_is_written(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    encoder = make(**arguments)
    assert target.unsupported_reason(encoder, METADATA).startswith("no GGUF: ")
    with pytest.raises(ValueError, match=message):
        target.write(encoder, tmp_path, METADATA)
    assert not list(tmp_path.iterdir())


def test_what_the_metadata_or_an_adapter_forbid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Echo reads the text twice"):
        target.write(
            make(), tmp_path, METADATA.model_copy(update={"native": False, "reason": "Echo reads the text twice."})
        )
    encoder = make()
    encoder.backbone.add_lora(LoraSpec(r=2, alpha=4.0, targets=("q_proj",)), seed=0)
    with pytest.raises(ValueError, match="merge_lora"):
        target.write(encoder, tmp_path, METADATA)


def test_prompts_are_those_written_out(tmp_path: Path) -> None:
    """`prompts` may hold a mark in place of what the template has there, which llama.cpp would read as a character."""
    metadata = METADATA.model_copy(
        update={"prompts": METADATA.prompts | {"ask": "Find:␣"}, "prefixes": METADATA.prompts}
    )
    (path,) = target.write(make(), tmp_path, metadata)
    assert json.loads(fields(path)["llm2enc.prompts"])["ask"] == "Find: "
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("Find:", lstrip=True)])
    metadata = METADATA.model_copy(update={"prompts": {"ask": "␣"}, "prefixes": {"ask": "Find: "}})
    assert "prompts contain Find:, which takes whitespace" in target.unsupported_reason(
        make(tokenizer=tokenizer), metadata
    )


def test_types_and_the_missing_package_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="float32, float16, q8_0"):
        target.write(make(), tmp_path, METADATA, dtypes=("int4",))
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "MODEL_ARCH_NAMES", {})
        with pytest.raises(ValueError, match="does not know 'llama-embed'"):
            target.write(make(), tmp_path, METADATA)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r'pip install "llm2enc\[gguf\]"'):
        target.write(make(), tmp_path, METADATA)


def test_a_causal_window_is_written_where_llama_cpp_counts_it_alike(tmp_path: Path) -> None:
    (path,) = target.write(make("gemma2", bidirectional=False, sliding_window=3), tmp_path, METADATA)
    assert fields(path)["gemma2.attention.sliding_window"] == 3


def test_notes_name_the_batch_and_what_each_file_needs() -> None:
    (only,) = target.notes(make(), METADATA)
    assert "-c 60 -b 60 -ub 60" in only
    assert any("-np 1" in note for note in target.notes(make(pooling="last"), METADATA))
    assert any("March 2026" in note for note in target.notes(make("qwen3"), METADATA))


# ----------------------------------------------------------------------------------------------------------- llama.cpp


def run(path: Path, texts: tuple[str, ...] = TEXTS, **options: Any) -> np.ndarray:
    """llama.cpp's vectors, with float32 keys and values."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(
        str(path), embedding=True, n_ctx=256, n_batch=256, n_ubatch=256, n_threads=1, n_threads_batch=1, verbose=False,
        **{"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, **options},
    )  # fmt: skip
    return np.array([model.embed(text, normalize=True) for text in texts])


def ids(path: Path, texts: tuple[str, ...]) -> list[list[int]]:
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(path), embedding=True, n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False)
    return [model.tokenize(text.encode(), add_bos=True, special=True) for text in texts]


def worst(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum(1).min())


@pytest.mark.parametrize("bidirectional", [True, False], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_gives_our_vectors(family: str, bidirectional: bool, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    encoder = make(family, bidirectional=bidirectional)
    want = encoder.encode(list(TEXTS))
    least = {"float32": 0.999999, "float16": 0.99999, "q8_0": 0.998} if bidirectional else {"float32": 0.999999}
    for path, similarity in zip(
        target.write(encoder, tmp_path, METADATA, dtypes=list(least)), least.values(), strict=True
    ):
        assert worst(run(path), want) > similarity
    assert worst(encoder.variant(causal=bidirectional).encode(list(TEXTS)), want) < 0.99  # the test could fail


@pytest.mark.parametrize("pooling", ["first", "last"])
def test_llama_cpp_pools_as_we_do(pooling: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    for family in ("llama", "qwen3", "gemma3_text"):
        encoder = make(family, pooling=pooling)
        (path,) = target.write(encoder, tmp_path, METADATA, dtypes=("float32",))
        assert worst(run(path), encoder.encode(list(TEXTS))) > 0.999999


ROTARY = {
    "llama3": ("llama", {"low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    "linear": ("qwen2", {}),
    "yarn": ("qwen3", {}),
    "longrope": ("phi3", {"short_factor": [1.0, 1.2, 1.5, 2.0], "long_factor": [1.0, 3.0, 5.0, 7.0]}),
}


@pytest.mark.parametrize("kind", ROTARY)
def test_llama_cpp_turns_by_our_angles(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    family, more = ROTARY[kind]
    original = 64 if kind == "longrope" else 16
    shape = {"original_max_position_embeddings": original} if kind == "longrope" else {"head_dim": 8}
    rotary = {
        "rope_type": kind,
        "rope_theta": 100.0,
        "factor": 4.0,
        "original_max_position_embeddings": original,
        **more,
    }
    encoder = make(family, rope_parameters=rotary, max_position_embeddings=4 * original, **shape)
    (path,) = target.write(encoder, tmp_path, METADATA, dtypes=("float32",))
    want = encoder.encode(list(TEXTS))
    assert worst(run(path), want) > 0.999999
    default = {"rope_type": "default", "rope_theta": 100.0}
    other = make(family, rope_parameters=default, max_position_embeddings=4 * original, **shape)
    assert worst(other.encode(list(TEXTS)), want) < 0.999  # the test could fail


def test_without_the_key_llama_cpp_is_causal(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    encoder = make("qwen3")
    (path,) = target.write(encoder, tmp_path, METADATA, dtypes=("float32",))
    without = run(path, kv_overrides={"qwen3.attention.causal": True})
    assert worst(without, encoder.encode(list(TEXTS))) < 0.99
    assert worst(without, encoder.variant(causal=True).encode(list(TEXTS))) > 0.999999


def test_llama_cpp_gives_the_packaged_models_vectors(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    encoder = Encoder.from_causal_lm("pocket", WHOLE.model_copy(update={"max_tokens": 250}))
    (path,) = target.write(encoder, tmp_path, METADATA, dtypes=("float32",))
    assert ids(path, LANGUAGES) == [encoder.input_format.pack([text]).ids.tolist() for text in LANGUAGES]
    assert worst(run(path, LANGUAGES), encoder.encode(list(LANGUAGES))) > 0.999999
    prompted = run(path, tuple("Find: " + text for text in LANGUAGES))
    assert worst(prompted, encoder.encode(list(LANGUAGES), prompt_name="ask")) > 0.999999

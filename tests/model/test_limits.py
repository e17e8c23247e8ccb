"""Long texts: within its limit a text's states are those of the text alone, whatever the kind of positions, and the
windows; beyond it the text is refused before weights are read.

The reference is a fresh copy of the model for every text, in transformers' own eager attention: no packing, no state of
an earlier call. Windows are also held against a dense mask written out here.
"""

import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llm2enc.comparison.systems import check as check_subjects
from llm2enc.conversion import convert, training_free
from llm2enc.encoding import Encoder
from llm2enc.model import Backbone, inspect, limits
from llm2enc.recipe import InputSpec, ModelSpec, Part, load_recipe
from llm2enc.text import InputFormat
from tests.model.test_families import (
    USABLE,
    _assert_equal_gradients,
    _gradients,
    _packed,
    _projection,
    _reference,
    _states,
)
from tests.support.builders import INPUT, make_encoder, make_model, make_tokenizer, sentences
from tests.support.tiny import tiny_config, tiny_model

BARE = InputSpec(document=(Part(slot="text", pool=True),), query=(Part(slot="text", pool=True),), max_tokens=64)
POSITIONS, ORIGINAL = 48, 16
FOUR = [1.0, 1.5, 2.0, 3.0]  # a factor for each frequency of a head of 8

# rope_type -> settings, and the longest text that is exact
ROPES: dict[str, tuple[dict, int]] = {
    "default": ({}, 48),
    "linear": ({"factor": 4.0}, 192),
    "dynamic": ({"factor": 4.0}, 48),
    "yarn": ({"factor": 6.0, "original_max_position_embeddings": ORIGINAL}, 96),
    "longrope": (
        {
            "factor": 3.0,
            "short_factor": FOUR,
            "long_factor": [4 * number for number in FOUR],
            "original_max_position_embeddings": ORIGINAL,
        },
        16,
    ),
    "llama3": (
        {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": ORIGINAL,
        },
        48,
    ),
    "proportional": ({"partial_rotary_factor": 0.5}, 48),
}
BATCHWISE = ("dynamic", "longrope")

# What else depends on positions: per-layer rotary settings, rotated parts of a head, scores that grow with the position,
# learned and precomputed tables.
_LOCAL = {"rope_type": "default", "rope_theta": 100.0}
ODD: dict[str, dict] = {
    "gemma3_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
            "sliding_attention": _LOCAL,
        },
    },
    "olmo3": {
        "rope_parameters": {
            "full_attention": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 3.0,
                "original_max_position_embeddings": 16,
            },
            "sliding_attention": _LOCAL,
        },
    },
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 3.0,
            "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.5,
        },
    },
    **{family: {} for family in "gpt_neox phi glm gpt2 gptj ctrl opt xglm".split()},
}


def _rope(kind: str) -> dict:
    settings = {"rope_type": kind, "rope_theta": 10000.0, **ROPES[kind][0]}
    return {"rope_parameters": settings, "max_position_embeddings": POSITIONS}


def _texts(lengths: tuple[int, ...]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(4, 120, (length,), generator=generator).tolist() for length in lengths]


def _alone(family: str, texts: list[list[int]], **overrides) -> list[Tensor]:
    """States of each text from a model that has never seen another one."""
    with torch.no_grad():
        return [_states(_reference(family, False, **overrides), text) for text in texts]


def _close(states: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def _assert_exact(family: str, lengths: tuple[int, ...], **overrides) -> None:
    """A pack equals each text alone, and so do gradients; and a pack after a pack of the longest equals it too."""
    texts, backbone = _texts(lengths), Backbone(tiny_model(family, **overrides), bidirectional=True)
    expected = torch.cat(_alone(family, texts, **overrides))
    states = backbone.hidden(_packed(texts))
    _close(states.detach(), expected)
    reference = _reference(family, False, **overrides)
    projected = _projection(torch.cat([_states(reference, text) for text in texts]))
    _assert_equal_gradients(_gradients(backbone.model, _projection(states)), _gradients(reference, projected))
    with torch.no_grad():
        for text, alone in zip(texts, expected.split(list(lengths)), strict=True):
            _close(backbone.hidden(_packed([text])), alone)


# ------------------------------------------------------------------------------------------------------------- positions


def test_every_rotary_kind_of_transformers_is_here() -> None:
    assert ROPES.keys() == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize("kind", ROPES)
def test_up_to_the_limit_a_vector_is_that_of_the_text_alone(kind: str) -> None:
    longest = ROPES[kind][1]
    found = limits.longest_input(tiny_config("llama", **_rope(kind)))
    assert found is not None and found.tokens == longest
    _assert_exact("llama", (3, longest, 1, min(longest, 17), longest - 1), **_rope(kind))


@pytest.mark.parametrize("kind", ROPES)
def test_the_saved_directory_gives_the_same_in_a_padded_batch_of_transformers(kind: str, tmp_path: Path) -> None:
    """What other programs do: texts of all lengths up to the limit in one padded batch, cut at max_seq_length."""
    spec = BARE.model_copy(update={"max_tokens": ROPES[kind][1]})
    backbone = Backbone(tiny_model("llama", vocab_size=320, pad_token_id=1, **_rope(kind)), bidirectional=True)
    encoder = Encoder(backbone, InputFormat(spec, make_tokenizer(pad_token="<pad>")), "mean").eval()
    encoder.save(tmp_path)
    decoder, texts = AutoModel.from_pretrained(tmp_path).eval(), ["Q", *sentences(3), "Q" * 300]
    limit = json.loads((tmp_path / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    assert batch["input_ids"].size(1) == ROPES[kind][1]
    with torch.no_grad():
        states = decoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    weights = batch["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=1)
    np.testing.assert_allclose(vectors.numpy(), encoder.encode(texts), atol=1e-5)


@pytest.mark.parametrize("kind", BATCHWISE)
def test_beyond_the_limit_a_vector_would_depend_on_its_companions(kind: str) -> None:
    """What is refused, and why: the short text changes, and with `dynamic` so does one that comes after a long one."""
    short, long = _texts((12, ROPES[kind][1] + 20))
    alone = _alone("llama", [short], **_rope(kind))[0]
    backbone = Backbone(tiny_model("llama", **_rope(kind)), bidirectional=True)
    with torch.no_grad():
        packed = backbone.hidden(_packed([short, long]))[: len(short)]
    assert (packed - alone).abs().max() > 0.01 * alone.abs().max()


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3", "default", "proportional"])
def test_the_other_kinds_are_functions_of_the_position_even_beyond(kind: str) -> None:
    """So who raises max_position_embeddings gets what transformers computes, and nothing depends on companions."""
    _assert_exact("llama", (3, ROPES[kind][1] + 20, 12), **_rope(kind))


@pytest.mark.parametrize("family", ODD)
def test_odd_positions_count_from_the_start_of_each_text(family: str) -> None:
    config = tiny_config(family, **ODD[family])
    assert limits.longest_input(config).tokens == 64
    _assert_exact(family, (5, 64, 1, 33, 63), **ODD[family])


def test_positions_matter_to_the_odd_families() -> None:
    """The premise of the test above: read from another place, the same text has other states."""
    for family in ODD:
        decoder = _reference(family, False, **ODD[family]).base_model
        row = torch.tensor(_texts((5,)))
        with torch.no_grad():
            here, there = (
                decoder(input_ids=row, position_ids=places[None], use_cache=False).last_hidden_state
                for places in (torch.arange(5), torch.tensor([0, 9, 18, 40, 41]))
            )
        assert (here - there).abs().max() > 0.01, family


@pytest.mark.parametrize(
    ("family", "key"), [("deepseek_v32", "index_topk"), ("glm_moe_dsa", "index_topk"), ("doge", "keep_window_size")]
)
def test_sparse_attention_is_dense_and_exact_up_to_its_limit(family: str, key: str) -> None:
    assert limits.longest_input(tiny_config(family, **{key: 8})).tokens == 8
    _assert_exact(family, (8, 3, 1, 7, 8), **{key: 8})  # a row of 27 tokens, where each text has 8 at most


# --------------------------------------------------------------------------------------------------------------- windows

WINDOW = 6
_ONE_MASK = ("mistral", "mixtral", "phi3", "starcoder2", "qwen3_moe", "ministral")  # the same window in every layer
_SPREAD = ("mistral", "mixtral", "phi3", "starcoder2", "qwen2", "gemma2", "gemma3_text", "cohere2", "gpt_oss")


def _windowed(family: str) -> bool:
    config = tiny_config(family)
    return "sliding_attention" in (getattr(config, "layer_types", None) or []) and bool(config.sliding_window)


def _dense(length: int) -> dict[str, Tensor]:
    """The masks of one text by kind of layer, as conformance of transformers has them: |i - j| <= W, both sides."""
    rows = torch.arange(length)
    near = (rows[:, None] - rows[None, :]).abs() <= WINDOW
    hidden = torch.zeros(length, length).masked_fill(~near, torch.finfo(torch.float32).min)
    return {"sliding_attention": hidden[None, None], "full_attention": torch.zeros(1, 1, length, length)}


def _by_dense_mask(model, family: str, text: list[int]) -> Tensor:
    masks = _dense(len(text))
    mask = masks["sliding_attention"] if family in _ONE_MASK else masks
    found = model.base_model(input_ids=torch.tensor([text]), attention_mask=mask, use_cache=False)
    return found.last_hidden_state[0]


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in _SPREAD else pytest.mark.full)
        for name in dict.fromkeys([*_SPREAD, *(n for n in USABLE if _windowed(n) and n != "dots3_note_text")])
    ],
)
def test_a_window_shorter_than_the_text_is_the_dense_mask(family: str) -> None:
    texts = _texts((WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW, 1))
    backbone = Backbone(tiny_model(family, sliding_window=WINDOW), bidirectional=True)
    reference = _reference(family, False, sliding_window=WINDOW)
    states = backbone.hidden(_packed(texts))
    expected = torch.cat([_by_dense_mask(reference, family, text) for text in texts])
    _close(states.detach(), expected.detach())
    _assert_equal_gradients(
        _gradients(backbone.model, _projection(states)), _gradients(reference, _projection(expected))
    )
    narrower = Backbone(tiny_model(family, sliding_window=WINDOW - 1), bidirectional=True)
    with torch.no_grad():  # the premise: one token more or less of window is felt, from W tokens on
        moved = (narrower.hidden(_packed(texts)) - states).abs().split([len(text) for text in texts])
    assert moved[0].max() < 1e-4 * states.abs().max() < moved[2].max()


# -------------------------------------------------------------------------------------------------------------- refusals

REFUSED = [
    ("gpt2", {}, 64, "no positions beyond"),
    ("opt", {}, 64, "no positions beyond"),
    ("llama", {}, 64, "raise max_position_embeddings"),
    ("llama", _rope("dynamic"), 48, "dynamic"),
    ("phi3", {**_rope("longrope"), "original_max_position_embeddings": 16}, 16, "longrope"),
    ("deepseek_v32", {"index_topk": 8}, 8, "top-k indexer"),
    ("doge", {"keep_window_size": 8}, 8, "dynamic mask"),
]


def _without_weights(folder: Path, family: str, **overrides) -> str:
    """A model's directory that holds no weights: whatever reads them fails in another way."""
    shape = {"vocab_size": 320, "pad_token_id": 1} | overrides
    tiny_config(family, **shape).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("family", "overrides", "limit", "why"), REFUSED)
def test_longer_inputs_are_refused_before_weights_are_read(
    family: str, overrides: dict, limit: int, why: str, tmp_path: Path
) -> None:
    name = _without_weights(tmp_path / "model", family, **overrides)
    spec = ModelSpec(name=name, dtype="float32")
    too_long = INPUT.model_copy(update={"max_tokens": limit + 1})
    with pytest.raises(ValueError, match=rf"input.max_tokens is {limit + 1}, .*{why}.* `input.max_tokens: {limit}`"):
        Encoder.from_causal_lm(spec, too_long)
    with pytest.raises(OSError, match="model"):  # at the limit the weights are what is missing
        Encoder.from_causal_lm(spec, INPUT.model_copy(update={"max_tokens": limit}))
    found = inspect(name)
    assert found.max_tokens == limit and any(f"{limit} tokens" in note and why in note for note in found.notes)


def test_blocks_of_a_stage_are_held_to_the_limit_and_nothing_is_written(tmp_path: Path) -> None:
    name = _without_weights(tmp_path / "model", "gpt2")
    recipe = load_recipe("pocket", [f"model.name={name}", "input.max_tokens=64", "stages.mntp.block_tokens=65"])
    with pytest.raises(ValueError, match=r"^stages.0.block_tokens is 65, .* Set `stages.0.block_tokens: 64`, or less$"):
        convert(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_a_length_takes_what_the_model_has(tmp_path: Path) -> None:
    assert training_free(_without_weights(tmp_path / "short", "gpt2")).input.max_tokens == 64
    long = _without_weights(tmp_path / "long", "llama", max_position_embeddings=4096)
    assert training_free(long).input.max_tokens == 512


def test_the_readings_of_a_comparison_are_held_to_the_limit(tmp_path: Path) -> None:
    name = _without_weights(tmp_path, "phi3", **_rope("longrope"), original_max_position_embeddings=16)
    with pytest.raises(ValueError, match="the model has 16 positions"):
        check_subjects([name], ["causal-mean"], 64, "auto")


def test_a_saved_encoder_is_held_to_the_limit_before_its_weights_are_read(tmp_path: Path) -> None:
    make_encoder().save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 63}))
    (tmp_path / "saved" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"input.max_tokens is 64, but llama takes 63"):
        Encoder.load(tmp_path / "saved")


def test_a_variant_is_held_to_the_limit(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match=r"input.max_tokens is 129, but llama takes 128"):
        encoder.variant(input=INPUT.model_copy(update={"max_tokens": 129}))


def test_extrapolation_is_said_in_the_config_and_then_exact(tmp_path: Path) -> None:
    """The way that the refusal names: the vectors are those of the same weights with more positions."""
    make_model(max_position_embeddings=32).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    spec = ModelSpec(name=str(tmp_path), dtype="float32")
    with pytest.raises(ValueError, match="raise max_position_embeddings"):
        Encoder.from_causal_lm(spec, INPUT)
    config = AutoConfig.from_pretrained(tmp_path)
    config.max_position_embeddings = 64
    config.save_pretrained(tmp_path)
    text = " ".join(sentences(9))
    assert np.array_equal(Encoder.from_causal_lm(spec, INPUT).encode([text]), make_encoder().encode([text]))


# ----------------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("spec", [INPUT, BARE], ids=["with BOS", "bare"])
def test_texts_of_no_token_of_one_and_of_as_many_as_fit(spec: InputSpec) -> None:
    encoder = make_encoder(spec)
    room = 64 - (spec is INPUT)
    texts = ["", "a", "Q" * room, "Q" * (room + 1), "Q" * 5 * room]  # `Q` is one token and merges with nothing
    tokens = encoder.input_format.pack(texts)
    assert tokens.lengths.tolist() == [1, 2 - (spec is BARE), 64, 64, 64]
    assert tokens.truncated.tolist() == [False, False, False, True, True]
    vectors = encoder.encode(texts)
    assert np.isfinite(vectors).all() and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors[2], vectors[3]) and np.array_equal(vectors[2], vectors[4])
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(encoder.encode(text), vector, atol=1e-5)


def test_a_text_of_a_hundred_thousand_tokens_is_cut_in_bounded_time_and_memory(encoder: Encoder) -> None:
    long = "Q" * 100_000
    encoder.encode(["warm"])
    tracemalloc.start()
    started = time.process_time()
    tokens = encoder.input_format.pack([long])
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tokens.lengths.tolist() == [64] and tokens.truncated.all()
    assert seconds < 10 and peak < 100 * 2**20  # a hundred thousand offsets are two dozen MB
    assert np.array_equal(encoder.encode(long), encoder.encode("Q" * 63))


def test_the_tokenizers_own_length_does_not_cut(tmp_path: Path) -> None:
    """model_max_length of a stranger's tokenizer is often wrong; the recipe's limit is the one, and is what is exported."""
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 8
    backbone, text = Backbone(make_model(), bidirectional=True), " ".join(sentences(3))
    encoder = Encoder(backbone, InputFormat(INPUT, tokenizer), "mean").eval()
    assert encoder.count_tokens([text]) > 20
    assert np.array_equal(encoder.encode(text), make_encoder().encode(text))
    encoder.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert saved["model_max_length"] == 64
    assert json.loads((tmp_path / "saved" / "sentence_bert_config.json").read_text())["max_seq_length"] == 64


def test_a_tokenizer_without_special_tokens_reads_templates_without_them(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    for name in ("bos_token", "eos_token"):
        setattr(tokenizer, name, None)
    assert tokenizer.pad_token is None
    with pytest.raises(ValueError, match="needs the bos token, but the tokenizer has none"):
        InputFormat(INPUT, tokenizer)
    encoder = Encoder(Backbone(make_model(), bidirectional=True), InputFormat(BARE, tokenizer), "mean").eval()
    texts = ["", *sentences(3)]
    vectors = encoder.encode(texts)
    encoder.save(tmp_path / "saved")
    np.testing.assert_allclose(Encoder.load(tmp_path / "saved").encode(texts), vectors, atol=1e-6)

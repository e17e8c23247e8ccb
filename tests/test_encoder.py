"""encode: every text gets its own vector, whatever stands beside it, in whichever order and batch."""

import numpy as np
import pytest
import torch
from conftest import INPUT, make_encoder, sentences

from llm2enc import encoder as module
from llm2enc.encoder import Encoder

TEXTS = sentences(24)


def test_shuffled_input_gives_bit_equal_rows(encoder: Encoder) -> None:
    vectors = encoder.encode(TEXTS, batch_tokens=64)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    assert np.array_equal(encoder.encode([TEXTS[i] for i in order], batch_tokens=64), vectors[order])


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last", "first"])
def test_neighbours_and_batches_change_nothing(pooling: str) -> None:
    encoder = make_encoder(pooling=pooling)
    alone = np.stack([encoder.encode(text) for text in TEXTS])
    for batch_tokens in (None, 1, 30, 100):
        assert np.abs(encoder.encode(TEXTS, batch_tokens=batch_tokens) - alone).max() < 1e-6
    distances = np.linalg.norm(alone[:, None] - alone[None], axis=-1)[~np.eye(24, dtype=bool)]
    # The first pooled states of texts with one first word differ by what they read later; `last` ends in a number.
    assert distances.min() > 1e-3


def test_windows_are_joined_in_order(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    instructions = [f"Task {i % 3}" for i in range(24)]
    whole = encoder.encode(TEXTS, instruction=instructions)
    monkeypatch.setattr(module, "WINDOW", 7)
    assert np.abs(encoder.encode(TEXTS, instruction=instructions) - whole).max() < 1e-6


def test_duplicates_get_one_vector(encoder: Encoder) -> None:
    vectors = encoder.encode([TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0]])
    assert np.abs(vectors[[2, 3]] - vectors[0]).max() < 1e-6 and np.abs(vectors[1] - vectors[0]).max() > 1e-3


def test_shapes_and_types(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, 32) and encoder.encode([], truncate_dim=5).shape == (0, 5)
    single = encoder.encode(TEXTS[0])
    assert single.shape == (32,) and single.dtype == np.float32
    assert np.array_equal(single, encoder.encode(TEXTS[:1])[0])
    assert np.array_equal(encoder.encode(tuple(TEXTS[:3])), encoder.encode(TEXTS[:3]))
    half = encoder.encode(TEXTS, dtype="float16")
    assert half.dtype == np.float16 and np.array_equal(half, encoder.encode(TEXTS).astype(np.float16))
    with pytest.raises(ValueError, match=r"int8.*float32"):
        encoder.encode(TEXTS, dtype="int8")


def test_unit_length_unless_told_otherwise(encoder: Encoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    encoder.normalize = False
    raw = encoder.encode(TEXTS)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 1e-2 and np.abs(raw / lengths - vectors).max() < 1e-6


def test_truncated_vectors_are_the_first_dimensions_normalised_again(encoder: Encoder) -> None:
    vectors = encoder.encode(TEXTS)
    short = encoder.encode(TEXTS, truncate_dim=8)
    expected = vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True)
    assert short.shape == (24, 8) and np.abs(short - expected).max() < 1e-6
    assert np.array_equal(encoder.encode(TEXTS, truncate_dim=32), vectors)
    for bad in (0, -1, 33):
        with pytest.raises(ValueError, match=f"truncate_dim is {bad}; this encoder's vectors have 32"):
            encoder.encode(TEXTS, truncate_dim=bad)


def test_instructions_and_prompt_names(encoder: Encoder) -> None:
    plain = encoder.encode(TEXTS)
    asked = encoder.encode(TEXTS, instruction="Find the answer")
    assert np.abs(asked - plain).max() > 1e-2
    assert np.array_equal(encoder.encode(TEXTS, prompt_name="search"), asked)
    assert np.array_equal(encoder.encode(TEXTS, prompt_name="document"), plain)
    assert np.array_equal(encoder.encode(TEXTS, prompt_name="query"), plain)  # no prompt of that name: no instruction
    assert np.array_equal(encoder.encode(TEXTS, instruction=""), plain)
    mixed = encoder.encode(TEXTS[:2], instruction=["Find the answer", ""])
    assert np.abs(mixed - np.stack([asked[0], plain[1]])).max() < 1e-6
    named = make_encoder(INPUT.model_copy(update={"prompts": {"query": "Find the answer"}}))
    assert np.array_equal(named.encode(TEXTS, prompt_name="query"), asked)


def test_what_cannot_be_asked(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match=r"no prompt named 'serch'.*'query', 'document', 'search'"):
        encoder.encode(TEXTS, prompt_name="serch")
    with pytest.raises(ValueError, match="not both"):
        encoder.encode(TEXTS, instruction="a", prompt_name="query")
    with pytest.raises(ValueError, match="one text takes one instruction"):
        encoder.encode(TEXTS[0], instruction=["a"])
    with pytest.raises(ValueError, match="24 texts but 2 instructions"):
        encoder.encode(TEXTS, instruction=["a", "b"])
    with pytest.raises(TypeError, match="text 1 is int"):
        encoder.encode(["a", 3])


def test_encoding_leaves_training_as_it_was(encoder: Encoder) -> None:
    exact = encoder.encode(TEXTS)
    encoder.backbone.set_attention_dropout(0.5)
    encoder.backbone.train_everything(head=False)
    encoder.train()
    assert np.array_equal(encoder.encode(TEXTS), exact)  # evaluation mode while it encodes
    assert encoder.training and encoder.backbone.training
    assert encoder(encoder.input_format.pack(TEXTS)).requires_grad


def test_a_vector_is_the_mean_of_its_text_in_eager_attention(encoder: Encoder) -> None:
    """The whole path by hand: BOS and instruction are read, not averaged."""
    model = make_encoder().backbone.model
    model.set_attn_implementation("eager")
    tokenizer = encoder.input_format.tokenizer
    for text in TEXTS[:3]:
        asked = tokenizer("Find it: " + text, add_special_tokens=False, return_offsets_mapping=True)
        with torch.no_grad():
            states = model.model(torch.tensor([[0, *asked["input_ids"]]])).last_hidden_state[0]
        border = 1 + next(i for i, (_, end) in enumerate(asked["offset_mapping"]) if end > len("Find it: "))
        assert border > 4
        mean = states[border:].mean(0)
        found = encoder.encode(text, instruction="Find it")
        assert np.abs(found - (mean / mean.norm()).numpy()).max() < 1e-6

"""encode: every text gets its own vector, whatever stands beside it, in whichever order and batch."""

import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from llm2enc.encoding import EncodeOptions, Encoder
from llm2enc.encoding import pipeline as module
from llm2enc.recipe import InputSpec, LoraSpec, Part
from llm2enc.text import InputFormat
from tests.support.builders import INPUT, make_backbone, make_encoder, make_tokenizer, sentences

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


@pytest.mark.parametrize("size", [3, 7])
def test_buffers_are_joined_in_order(encoder: Encoder, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    instructions = [f"Task {i % 3}" for i in range(24)]
    whole = encoder.encode(TEXTS, instruction=instructions)
    monkeypatch.setattr(module, "BUFFER_TEXTS", size)
    blocks = list(encoder.encode_blocks(TEXTS, EncodeOptions(instruction=instructions)))
    assert [len(block) for block in blocks] == [*[size] * (24 // size), *[24 % size] * (24 % size > 0)]
    assert np.abs(np.concatenate(blocks) - whole).max() < 1e-6
    assert np.array_equal(encoder.encode(TEXTS, instruction=instructions), np.concatenate(blocks))


def test_a_sort_buffer_is_bounded_in_tokens_too(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoder.encode(TEXTS)
    monkeypatch.setattr(module, "CHUNK_TEXTS", 1)
    monkeypatch.setattr(module, "BUFFER_TOKENS", 40)
    blocks = list(encoder.encode_blocks(TEXTS))
    ends = np.cumsum([0, *map(len, blocks)])
    lengths = encoder.input_format.pack(TEXTS).lengths.numpy()
    totals = [lengths[start:end].sum() for start, end in pairwise(ends)]
    assert len(blocks) > 3 and all(40 <= total < 40 + lengths.max() for total in totals[:-1])
    assert np.abs(np.concatenate(blocks) - whole).max() < 1e-6


@pytest.mark.parametrize(("name", "size"), [("CHUNK_TEXTS", 1), ("CHUNK_TEXTS", 5), ("CHUNK_CHARACTERS", 30)])
def test_the_chunks_that_are_tokenized_change_no_bit(encoder: Encoder, monkeypatch, name: str, size: int) -> None:
    whole = encoder.encode(TEXTS)
    monkeypatch.setattr(module, name, size)
    assert np.array_equal(encoder.encode(TEXTS), whole)


def test_any_iterable_gives_the_vectors_of_the_list(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUFFER_TEXTS", 7)
    vectors = encoder.encode(TEXTS)
    column = datasets.Dataset.from_dict({"text": TEXTS})["text"]
    for texts in (iter(TEXTS), (text for text in TEXTS), dict.fromkeys(TEXTS), np.array(TEXTS), column):
        assert np.array_equal(encoder.encode(texts), vectors)
    assert encoder.encode(iter([])).shape == (0, 32) and list(encoder.encode_blocks([])) == []
    instructions = [f"Task {i % 3}" for i in range(24)]
    asked = encoder.encode(iter(TEXTS), instruction=(instruction for instruction in instructions))
    assert np.array_equal(asked, encoder.encode(TEXTS, instruction=instructions))


def test_texts_are_read_a_sort_buffer_ahead_and_not_more(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUFFER_TEXTS", 4)
    monkeypatch.setattr(module, "CHUNK_TEXTS", 2)
    read = []
    blocks = encoder.encode_blocks(read.append(text) or text for text in TEXTS)
    assert not read
    next(blocks)
    assert len(read) == 8
    next(blocks)
    assert len(read) == 12


def test_duplicates_are_computed_once_and_bit_equal(encoder: Encoder) -> None:
    passed = []
    encoder.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    vectors = encoder.encode([TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0]])
    assert sum(passed) == 2
    assert np.array_equal(vectors, encoder.encode(TEXTS[:2])[[0, 1, 0, 0]])
    assert np.abs(vectors[1] - vectors[0]).max() > 1e-3


def test_equal_ids_of_which_others_are_pooled_are_no_duplicates(encoder: Encoder) -> None:
    texts, instructions = ["Find it: a river", "a river"], ["", "Find it"]
    tokens = encoder.input_format.pack(texts, instructions, "query")
    assert torch.equal(*tokens.ids.split(tokens.lengths.tolist())) and not torch.equal(*tokens.pool.chunk(2))
    one, other = encoder.encode(texts, instruction=instructions)
    assert np.abs(one - encoder.encode(texts[0])).max() < 1e-6
    assert np.abs(other - encoder.encode(texts[1], instruction="Find it")).max() < 1e-6
    assert np.abs(one - other).max() > 1e-3


def test_between_blocks_the_caller_has_his_own_modes(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUFFER_TEXTS", 7)
    encoder.train()
    for _ in encoder.encode_blocks(TEXTS):
        assert torch.is_grad_enabled() and encoder.training


def _threads() -> set[str]:
    """Threads of ours; those that watch the processes of a run are another test's, and end with the process."""
    watching = ("llm2enc-client", "llm2enc-supervisor")
    names = {thread.name for thread in threading.enumerate() if thread.name.startswith("llm2enc")}
    return names.difference(watching)


def test_no_thread_outlives_its_encoding(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUFFER_TEXTS", 7)
    blocks = encoder.encode_blocks(TEXTS)
    next(blocks)
    assert _threads()
    blocks.close()
    assert not _threads()
    encoder.encode(TEXTS)
    assert not _threads()

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    hook = encoder.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        encoder.encode(TEXTS)
    assert not _threads()
    hook.remove()

    def texts():
        yield from TEXTS
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        encoder.encode(texts())
    assert not _threads()


def test_a_fault_is_named_by_its_place_among_all_texts(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUFFER_TEXTS", 7)
    blocks = encoder.encode_blocks([*TEXTS, 3])
    with pytest.raises(TypeError, match="text 24 is int 3, expected str"):
        list(blocks)
    assert not _threads()
    with pytest.raises(ValueError, match=r"the instruction of text 23 has a lone surrogate"):
        encoder.encode(TEXTS, instruction=[*["a"] * 23, "\ud83d"])
    with pytest.raises(ValueError, match="text 9: template and instruction take"):
        encoder.encode(TEXTS, instruction=[*["a"] * 9, "a b c " * 99, *["a"] * 14])


MEMORY = """
import sys
import numpy as np
from tests.support.builders import WORDS, make_encoder
from llm2enc.encoding import pipeline as module

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1024

def growth(count):
    draw = np.random.default_rng(count)
    texts = (" ".join(draw.choice(WORDS, size)) for size in draw.lognormal(3, 0.9, count).astype(int) + 1)
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    vectors = encoder.encode(texts)
    return status("VmHWM") - before - vectors.nbytes / 2**20

module.BUFFER_TEXTS, module.CHUNK_TEXTS = int(sys.argv[1]), 128
encoder = make_encoder(num_hidden_layers=1)
growth(1000)
print(growth(10000))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel does not reset peak memory")
def test_memory_does_not_grow_with_the_number_of_texts() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", MEMORY, "1024"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
    assert (
        float(done.stdout) < 5.5
    )  # in MB; 9 with one sort buffer over all texts, 120 if they are also tokenized at once


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
    with pytest.raises(ValueError, match="the instructions end after 2, but there are more texts"):
        encoder.encode(TEXTS, instruction=iter(["a", "b"]))
    with pytest.raises(ValueError, match="the texts end after 24, but there are more instructions"):
        encoder.encode(iter(TEXTS), instruction=["a"] * 25)
    with pytest.raises(ValueError, match="many texts, got one str"):
        encoder.encode_blocks(TEXTS[0])
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


# ------------------------------------------------------------------------------------------- one model, other readings

OTHER = InputSpec(
    query=(Part(special="bos", pool=True), Part(slot="instruction"), Part(slot="text", pool=True)),
    document=(Part(slot="text", pool=True), Part(special="eos", pool=True)),
    max_tokens=9,
)


def test_a_variant_is_the_encoder_that_was_built_so(encoder: Encoder) -> None:
    before = encoder.encode(TEXTS)
    causal = Encoder(make_backbone(bidirectional=False), encoder.input_format, "last").eval()
    for variant, built in (
        (encoder.variant(), encoder),
        (encoder.variant(pooling="weighted_mean"), make_encoder(pooling="weighted_mean")),
        (encoder.variant(input=OTHER), make_encoder(OTHER)),
        (encoder.variant(causal=True, pooling="last"), causal),
        (encoder.variant(pooling="last").variant(causal=True), causal),
        (causal.variant(causal=False, pooling="mean"), encoder),
    ):
        assert np.abs(variant.encode(TEXTS) - built.encode(TEXTS)).max() < 1e-6
        assert variant.fingerprint() == built.fingerprint()
    assert np.array_equal(encoder.encode(TEXTS), before)  # untouched
    others = [encoder.variant(pooling="last"), encoder.variant(causal=True), encoder.variant(layer=1)]
    for other in others:
        assert np.abs(other.encode(TEXTS) - before).max() > 1e-2


def test_a_layer_that_is_not_there_is_refused(encoder: Encoder) -> None:
    for layer in (-1, 3):
        with pytest.raises(ValueError, match=rf"layer is {layer}; this model has layers 0 \(the embeddings\) to 2"):
            encoder.variant(layer=layer)


def test_a_variant_s_layer_stays_when_something_else_changes(encoder: Encoder) -> None:
    both = encoder.variant(layer=1).variant(causal=True)
    assert np.array_equal(both.encode(TEXTS), encoder.variant(causal=True, layer=1).encode(TEXTS))
    assert np.abs(both.encode(TEXTS) - encoder.variant(layer=1).encode(TEXTS)).max() > 1e-3


def test_a_variant_that_no_directory_can_hold_is_not_saved(encoder: Encoder, tmp_path: Path) -> None:
    for variant in (encoder.variant(layer=1), encoder.variant(causal=True)):
        with pytest.raises(ValueError, match="another layer or direction"):
            variant.save(tmp_path / "model")
    encoder.variant(causal=False, pooling="last").save(tmp_path / "model")
    assert Encoder.load(tmp_path / "model").pooling == "last"


def test_a_fingerprint_changes_with_all_that_a_vector_depends_on(encoder: Encoder) -> None:
    unnormalised, moved, narrow = make_encoder(), make_encoder(), make_encoder()
    unnormalised.normalize = False
    with torch.no_grad():
        moved.backbone.decoder.layers[1].mlp.up_proj.weight[0, 0] += 1e-6
    narrow.backbone.to(torch.bfloat16)
    encoders = [
        encoder,
        encoder.variant(causal=True),
        *(encoder.variant(layer=layer) for layer in (0, 1)),
        encoder.variant(pooling="last"),
        encoder.variant(input=OTHER),
        encoder.variant(input=INPUT.model_copy(update={"prompts": {}})),
        unnormalised,
        moved,
        narrow,
        Encoder(make_backbone(), InputFormat(INPUT, make_tokenizer(vocabulary=300)), "mean"),
    ]
    assert len({one.fingerprint() for one in encoders}) == len(encoders)
    assert (
        encoder.variant().fingerprint() == encoder.variant(causal=False).fingerprint() == make_encoder().fingerprint()
    )


def test_a_fingerprint_stays_with_use(encoder: Encoder) -> None:
    before = encoder.fingerprint()
    encoder.encode(TEXTS, instruction="Find it")
    encoder.count_tokens(TEXTS)
    encoder.train()
    assert encoder.fingerprint() == before


def test_a_reloaded_encoder_has_its_fingerprint(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "model")
    assert Encoder.load(tmp_path / "model").fingerprint() == encoder.fingerprint()


def test_a_fingerprint_knows_the_ids_of_special_tokens(encoder: Encoder) -> None:
    """The same vocabulary and pieces, but another token stands where the template says `bos`."""
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "</s>"
    other = Encoder(make_backbone(), InputFormat(INPUT, tokenizer), "mean").eval()
    assert np.abs(other.encode(TEXTS) - encoder.encode(TEXTS)).max() > 1e-3
    assert other.fingerprint() != encoder.fingerprint()


def test_a_fingerprint_knows_the_configuration(encoder: Encoder) -> None:
    """Equal weights, other positions."""
    other = make_encoder(rope_parameters={"rope_type": "default", "rope_theta": 50.0})
    assert np.abs(other.encode(TEXTS) - encoder.encode(TEXTS)).max() > 1e-3
    assert other.fingerprint() != encoder.fingerprint()


def test_a_fingerprint_knows_the_adapter(encoder: Encoder) -> None:
    before, vectors = encoder.fingerprint(), encoder.encode(TEXTS)
    encoder.backbone.add_lora(LoraSpec(r=4, alpha=8, dropout=0.0), seed=0)
    with torch.no_grad():
        for parameter in encoder.backbone.trained().values():
            parameter.add_(0.1)
    assert np.abs(encoder.encode(TEXTS) - vectors).max() > 1e-3
    assert encoder.fingerprint() != before


def test_readings_are_equal_where_texts_are_read_alike(encoder: Encoder) -> None:
    document = encoder.cache_key()
    assert document == encoder.cache_key(prompt_name="document") == encoder.cache_key(instruction="")
    assert document == encoder.cache_key(prompt_name="query")  # no prompt of that name
    asked = encoder.cache_key(instruction="Find the answer")
    assert asked == encoder.cache_key(prompt_name="search") != document
    assert encoder.cache_key(instruction="Find it") not in (asked, document)
    # Where the query template has no place for an instruction, it is another template, instruction or not.
    plain = INPUT.model_copy(update={"query": (Part(special="bos"), Part(literal="Q "), Part(slot="text", pool=True))})
    queries = make_encoder(plain)
    assert queries.cache_key(prompt_name="query") != queries.cache_key()
    with pytest.raises(ValueError, match="no prompt named 'other'"):
        encoder.cache_key(prompt_name="other")


def test_an_instruction_that_no_template_reads_makes_no_other_reading() -> None:
    plain = INPUT.model_copy(update={"query": (Part(special="bos"), Part(literal="Q "), Part(slot="text", pool=True))})
    encoder = make_encoder(plain)
    assert np.array_equal(encoder.encode(TEXTS, instruction="Find it"), encoder.encode(TEXTS, prompt_name="query"))
    assert encoder.cache_key(instruction="Find it") == encoder.cache_key(prompt_name="query")


def test_tokens_are_counted_as_the_model_reads_them(encoder: Encoder) -> None:
    def lengths(texts: list[str]) -> list[int]:
        return [len(ids) for ids in encoder.input_format.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    assert encoder.count_tokens(TEXTS) == sum(1 + length for length in lengths(TEXTS))  # BOS
    asked = [f"Find the answer: {text}" for text in TEXTS]
    expected = sum(1 + length for length in lengths(asked))
    assert encoder.count_tokens(TEXTS, prompt_name="search") == expected
    assert encoder.count_tokens(TEXTS, instruction="Find the answer") == expected
    assert encoder.variant(input=OTHER).count_tokens(TEXTS) == sum(min(1 + length, 9) for length in lengths(TEXTS))
    assert encoder.count_tokens(TEXTS[:1] * 3) == 3 * encoder.count_tokens(TEXTS[:1])

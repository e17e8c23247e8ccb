"""Fuzzed texts, templates and tokenizers: what is packed is what a slow reference makes of them, or nothing is."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import example
from hypothesis import strategies as st
from tokenizers import Tokenizer

from llm2enc.encoding import Encoder
from llm2enc.model import load_tokenizer
from llm2enc.recipe import InputSpec, ModelSpec
from llm2enc.text import InputFormat
from tests.support.builders import INPUT, make_encoder, make_tokenizer
from tests.support.fuzzing import LONG_TEXTS, TEXTS, fuzz
from tests.support.fuzzing_tokenizers import (
    INSTRUCTIONS,
    MAKES,
    Make,
    Packed,
    Refused,
    input_specs,
    reference,
    tokenizer,
)

ROWS = st.lists(st.tuples(TEXTS | LONG_TEXTS, INSTRUCTIONS), min_size=1, max_size=3)


def expected(spec: InputSpec, opened, rows: list[tuple], limit: int) -> list[Packed] | None:
    """The rows by the reference; None if the tokenizer lacks a token of the template, or one row has no room."""
    backend = Tokenizer.from_str(opened.backend_tokenizer.to_str())
    backend.post_processor = None
    vocabulary = backend.get_vocab(True)
    parts = (*spec.query, *spec.document)
    roles = {part.special: getattr(opened, f"{part.special}_token_id") for part in parts if part.special}
    if None in roles.values() or any(part.token not in vocabulary for part in parts if part.token):
        return None
    known = [opened.eos_token_id, opened.bos_token_id, opened.pad_token_id]
    filler = next((token for token in known if token is not None), 0)
    try:
        return [reference(spec, backend, roles, filler, row, limit) for row in rows]
    except Refused:
        return None


def packed(spec: InputSpec, opened, rows: list[tuple], limit: int | None) -> list[Packed] | None:
    """The rows by us, all in one call; None if they are refused."""
    texts, instructions, roles = zip(*rows, strict=True)
    try:
        tokens = InputFormat(spec, opened).pack(texts, instructions, roles[0], limit)
    except ValueError as error:
        assert "the template needs" in str(error) or "leave no room for the text" in str(error)
        return None
    sizes = tokens.lengths.tolist()
    ids, pool = (list(map(lambda part: part.tolist(), flat.split(sizes))) for flat in (tokens.ids, tokens.pool))
    return [Packed(*row) for row in zip(ids, pool, tokens.truncated.tolist(), strict=True)]


@fuzz(
    80,
    make=MAKES,
    spec=input_specs(),
    rows=ROWS,
    role=st.sampled_from(["query", "document"]),
    limit=st.none() | st.integers(2, 40),
)
def test_every_template_on_every_tokenizer_packs_as_the_reference(make: Make, spec, rows, role, limit) -> None:
    opened = tokenizer(make)
    rows = [(*row, role) for row in rows]
    most = min(limit or spec.max_tokens, spec.max_tokens)
    found = packed(spec, opened, rows, limit)
    assert found == expected(spec, opened, rows, most)
    for row in found or ():
        assert len(row.ids) <= most and any(row.pool)


# ------------------------------------------------------------------------------------------------------------- vectors


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return make_encoder()


BATCHES = st.lists(TEXTS | LONG_TEXTS, min_size=1, max_size=6)
ASKED = INSTRUCTIONS.map(lambda text: text[:10])  # there is room for a text behind each


@fuzz(25, texts=BATCHES, order=st.randoms(use_true_random=False), ask=ASKED)
def test_a_text_has_one_vector_alone_among_others_shuffled_and_repeated(encoder, texts, order, ask) -> None:
    vectors = encoder.encode(texts, instruction=ask)
    assert np.isfinite(vectors).all() and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    places = [*range(len(texts)), order.randrange(len(texts))]
    order.shuffle(places)
    others = [texts[place] for place in places]
    among = encoder.encode(others, instruction=ask, batch_tokens=order.choice([1, 50, None]))
    assert np.allclose(among, vectors[places], atol=2e-6)
    assert np.allclose(encoder.encode(texts[0], instruction=ask), vectors[0], atol=2e-6)
    assert np.array_equal(
        encoder.encode(texts[::-1], instruction=ask), vectors[::-1]
    )  # the same sort buffer: to the bit
    spec, opened = encoder.input_format.spec, encoder.input_format.tokenizer
    read = expected(spec, opened, [(text, ask, "query") for text in texts], spec.max_tokens)
    assert encoder.count_tokens(texts, instruction=ask) == sum(len(row.ids) for row in read)


@fuzz(40, text=st.text(), place=st.integers(0, 3), half=st.integers(0xD800, 0xDFFF))
def test_half_a_character_is_refused_by_its_place(encoder, text, place, half) -> None:
    broken = text[:place] + chr(half) + text[place:]
    found = broken.find(next(letter for letter in broken if "\ud800" <= letter <= "\udfff"))
    said = rf"text 1 has a lone surrogate U\+{ord(broken[found]):04X} at character {found}"
    with pytest.raises(ValueError, match=said):
        encoder.encode(["a", broken])
    with pytest.raises(ValueError, match=f"the instruction of {said}"):
        encoder.encode(["b", "a"], instruction=["x", broken])


# -------------------------------------------------------------------------------------------------------- other openings


@pytest.fixture(scope="module")
def theirs(encoder, tmp_path_factory):
    """sentence-transformers' own reading of an exported directory: text to ids."""
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("exported")
    encoder.save(folder)
    model = SentenceTransformer(str(folder), device="cpu")
    read = getattr(model, "preprocess", None) or model.tokenize

    def ids(texts: list[str]) -> list[list[int]]:
        batch = read(texts)
        rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        return [row[mask.bool()].tolist() for row, mask in rows]

    return ids


@fuzz(60, texts=st.lists(TEXTS | LONG_TEXTS, min_size=1, max_size=8))
def test_sentence_transformers_reads_the_exported_directory_as_we_do(encoder, theirs, texts: list[str]) -> None:
    tokens = encoder.input_format.pack(texts)
    ours = [row.tolist() for row in tokens.ids.split(tokens.lengths.tolist())]
    cut = tokens.truncated.tolist()
    for text, own, other, short in zip(texts, ours, theirs(texts), cut, strict=True):
        if short and own != other:  # we keep whole characters, others cut anywhere
            assert not text.isascii() and other[: len(own) - 1] == own[: len(own) - 1]
        else:
            assert own == other


# ------------------------------------------------------------------------------------------------------------ settings

GARBAGE = [None, True, False, 0, -1, 1e30, "", "x", [], {}, ["</s>"], "left", {"content": "</s>"}, {"content": "<new>"}]
GARBAGE += [{"__type": "AddedToken", "content": "</s>", "lstrip": True, "rstrip": True}, {"content": 3}, {"a": "</s>"}]
SETTINGS = ["add_bos_token", "add_eos_token", "bos_token", "eos_token", "pad_token", "unk_token", "model_max_length"]
SETTINGS += [
    "padding_side",
    "truncation_side",
    "chat_template",
    "extra_special_tokens",
    "added_tokens_decoder",
    "use_fast",
]
SETTINGS += ["add_prefix_space", "clean_up_tokenization_spaces", "model_input_names", "tokenizer_class", "legacy"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


@example(change={"bos_token": True}, text="a")  # TypeError
@fuzz(
    25, change=st.dictionaries(st.sampled_from(SETTINGS), st.sampled_from(GARBAGE), min_size=1, max_size=2), text=TEXTS
)
def test_a_tokenizer_with_other_settings_is_read_by_them_or_refused(saved, tmp_path_factory, change, text) -> None:
    folder = tmp_path_factory.mktemp("changed")
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    config = json.loads((saved / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | change), encoding="utf-8")
    try:
        opened = load_tokenizer(ModelSpec(name=str(folder)))
    except ValueError as error:
        assert str(folder) in str(error)
        return
    found = packed(INPUT, opened, [(text, "", "document")], None)
    assert found == expected(INPUT, opened, [(text, "", "document")], INPUT.max_tokens)
    if found and "bos_token" not in change and "added_tokens_decoder" not in change and "tokenizer_class" not in change:
        bos = Tokenizer.from_file(str(saved / "tokenizer.json")).token_to_id("<s>")
        assert (found[0].ids[0] == bos and found[0].ids.count(bos) == 1 + text.count("<s>")) or found[0].truncated

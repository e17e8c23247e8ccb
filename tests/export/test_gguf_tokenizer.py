"""Tokenizers in GGUF files: known by what they do, or refused; their ids by llama.cpp where it is installed."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llm2enc.export import gguf as target
from llm2enc.export.gguf import vocabulary
from tests.export.test_gguf import LANGUAGES, METADATA, WHOLE, ids, make
from tests.support.builders import sentences


def byte_level(name: str) -> Tokenizer:
    """A trained byte-level tokenizer that cuts texts as `name` stands for."""
    expressions = {pre: (expression, skips) for (expression, skips), pre in vocabulary.SPLITS.items()}
    expression, skips = expressions.get(name, ("", False))
    tokenizer = Tokenizer(models.BPE(ignore_merges=skips))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not expression)
    first = {"smollm": [pre_tokenizers.Digits(individual_digits=True)], "gpt-2": []}.get(name)
    if first is None:
        first = [pre_tokenizers.Split(Regex(expression), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, last])
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([*LANGUAGES, *sentences(20)] * 3, trainer)
    return tokenizer


def sentencepiece(normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    """A tokenizer as transformers converts SentencePiece's BPE: every way to make a token is a merge, by token."""
    space = vocabulary.SPACE
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(space, "always")
    tokenizer.train_from_iterator(
        [*LANGUAGES, *sentences(20)] * 3, trainers.BpeTrainer(vocab_size=400, show_progress=False, limit_alphabet=150)
    )
    trained = sorted(tokenizer.get_vocab(), key=lambda token: tokenizer.get_vocab()[token])
    names = ["<unk>", "<s>", "</s>", *vocabulary._BYTES, *trained, 2 * space, 4 * space]
    tokens = {token: number for number, token in enumerate(names)}
    merges = [
        (token[:cut], token[cut:])
        for token in names[259:]
        for cut in range(1, len(token))
        if token[:cut] in tokens and token[cut:] in tokens
    ]
    made = Tokenizer(models.BPE(tokens, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    if normalizer is not None:
        made.normalizer = normalizer
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    return made


def pieces(kind: str) -> Tokenizer:
    """The ways in which Llama 2, Gemma and newer conversions treat spaces."""
    replace = normalizers.Replace(" ", vocabulary.SPACE)
    if kind == "prepend":
        return sentencepiece(normalizers.Sequence([normalizers.Prepend(vocabulary.SPACE), replace]), None)
    if kind == "replace":
        return sentencepiece(replace, pre_tokenizers.Split(" ", "merged_with_previous"))
    return sentencepiece(None, pre_tokenizers.Metaspace(vocabulary.SPACE, kind, split=False))


BYTE_LEVELS = ("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2")
PIECES = ("prepend", "replace", "never", "first")


def opened(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("name", BYTE_LEVELS)
def test_the_cutting_of_texts_is_named(name: str) -> None:
    words = vocabulary.read(byte_level(name).to_str(), 600)
    assert (words.model, words.pre, words.space_prefix) == ("gpt2", name, None)
    assert words.tokens[500:] == [f"[PAD{number}]" for number in range(500, 600)]
    assert words.types[:2] == [gguf.TokenType.CONTROL] * 2 and words.types[-1] == gguf.TokenType.UNUSED


@pytest.mark.parametrize(("kind", "prefix"), list(zip(PIECES, (True, False, False, True), strict=True)))
def test_sentencepiece_tokenizers_are_known_by_how_they_treat_spaces(kind: str, prefix: bool) -> None:
    words = vocabulary.read(pieces(kind).to_str(), 700)
    assert (words.model, words.space_prefix, bool(words.notes)) == ("llama", prefix, kind == "first")
    assert words.types[:4] == [gguf.TokenType[name] for name in ("UNKNOWN", "CONTROL", "CONTROL", "BYTE")]


def test_scores_say_the_order_of_merges() -> None:
    names = ["<unk>", *vocabulary._BYTES, "a", "b", "ab", "aba"]
    tokens = {token: number for number, token in enumerate(names)}
    made = Tokenizer(models.BPE(tokens, [("a", "b"), ("ab", "a")], byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", vocabulary.SPACE)
    scores = dict(zip(names, vocabulary.read(made.to_str(), len(names)).scores, strict=True))
    assert scores["ab"] > scores["aba"] > scores["a"] == scores["b"]


def test_a_token_with_nul_is_left_out() -> None:
    tokenizer = sentencepiece(normalizers.Replace(" ", vocabulary.SPACE), None)
    backend = json.loads(tokenizer.to_str())
    backend["model"]["vocab"]["\0"] = 690
    words = vocabulary.read(json.dumps(backend), 700)
    assert words.tokens[690] == "[PAD690]" and words.types[690] == gguf.TokenType.UNUSED


def changed(change: dict[str, Any], base: Tokenizer) -> str:
    """A tokenizer.json with other values at dotted paths."""
    backend = json.loads(base.to_str())
    for path, value in change.items():
        *above, last = path.split(".")
        place = backend
        for key in above:
            place = place[key]
        place[last] = value
    return json.dumps(backend)


BYTES_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
NUMBERS = {"type": "Split", "pattern": {"Regex": "\\d"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "NFKC"}}, "changes the text first .NFKC."),
        ({"pre_tokenizer": BYTES_LEVEL | {"add_prefix_space": True}}, "has no name"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [NUMBERS, BYTES_LEVEL]}}, "has no name"),
        ({"model.ignore_merges": True}, "has no name"),
        ({"model.dropout": 0.1}, "dropout"),
        ({"model.type": "Unigram"}, "Unigram"),
        ({"model.vocab": {"a": 0}, "added_tokens": [], "model.merges": []}, "lacks 255 of the 256 bytes"),
    ],
)
def test_byte_level_tokenizers_that_llama_cpp_has_not_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vocabulary.read(changed(change, byte_level("gpt-2")), 600)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}}, "treats spaces by"),
        ({"normalizer": None}, "treats spaces by"),
        ({"model.byte_fallback": False}, "fall back to bytes"),
        ({"model.ignore_merges": True}, "skips the merges"),
        ({"model.merges": []}, "never joins"),
    ],
)
def test_sentencepiece_tokenizers_that_llama_cpp_has_not_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vocabulary.read(changed(change, pieces("replace")), 700)


def test_merges_that_scores_cant_say_are_refused() -> None:
    backend = json.loads(pieces("replace").to_str())
    merges = backend["model"]["merges"]
    made = ["".join(merge) for merge in merges]
    several = next(number for number in range(1, len(made)) if made[number] == made[number - 1])
    merges.append(merges.pop(several))
    with pytest.raises(ValueError, match="stand apart"):
        vocabulary.read(json.dumps(backend), 700)


def test_more_tokens_than_embeddings_are_refused() -> None:
    with pytest.raises(ValueError, match="ids up to 499 for 500 tokens, the model 400 embeddings"):
        vocabulary.read(byte_level("gpt-2").to_str(), 400)


def test_an_added_token_that_takes_spaces_along_is_refused() -> None:
    backend = json.loads(byte_level("gpt-2").to_str())
    backend["added_tokens"].append(
        backend["added_tokens"][0] | {"id": 510, "content": "@", "special": False, "lstrip": True}
    )
    with pytest.raises(ValueError, match="takes whitespace"):
        vocabulary.read(json.dumps(backend), 600)


def test_token_types_have_the_packages_numbers() -> None:
    for name in ("NORMAL", "UNKNOWN", "CONTROL", "USER_DEFINED", "UNUSED", "BYTE"):
        assert getattr(vocabulary, name) == gguf.TokenType[name]


@pytest.mark.parametrize("name", [*BYTE_LEVELS, *PIECES])
def test_llama_cpp_gives_our_token_ids(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    tokenizer = byte_level(name) if name in BYTE_LEVELS else pieces(name)
    spec = WHOLE.model_copy(update={"max_tokens": 250})
    encoder = make(spec=spec, tokenizer=opened(tokenizer), vocab_size=tokenizer.get_vocab_size() + 5)
    (path,) = target.write(encoder, tmp_path, METADATA)
    texts = tuple(text for text in LANGUAGES if name != "first" or text[0] != " ")  # as its note says
    assert ids(path, texts) == [encoder.input_format.pack([text]).ids.tolist() for text in texts]

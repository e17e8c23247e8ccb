"""Templates of the shipped recipes on tokenizers shaped like those of their families: exported, read as others read them.

The tokenizers are trained on the spot, with the normalizers, splitting rules and special tokens that the real ones have.
"""

import json
from collections.abc import Callable

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llm2enc.artifact import layout
from llm2enc.artifact import prompt_masking as rules
from llm2enc.artifact.metadata import TokenizerChange
from llm2enc.artifact.prompt_masking import MARK
from llm2enc.artifact.tokenizer import Written, write
from llm2enc.recipe import InputSpec, Part, load_recipe
from llm2enc.text import InputFormat
from tests.support.builders import sentences

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CORPUS = [
    *sentences(60, seed=4),
    *["Given a web search query, retrieve relevant passages that answer the query; a river"] * 9,
    *["user\n\n  The   river\n    return\n\n\n  it;  was built\t; by stone; ;  (a)  "] * 9,
]


def byte_level(*special: str, normalizer=None) -> Tokenizer:
    """Llama 3 and Qwen: a regex that splits words, bytes, special tokens with names like <|eot_id|>."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def sentencepiece(*special: str, normalizer=None, pre_tokenizer=None) -> Tokenizer:
    """Llama 2, Mistral and Gemma: spaces as ▁, runs of them as tokens, bytes for what the alphabet lacks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁*[^▁]+|▁+"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", *special], show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    fields = json.loads(tokenizer.to_str())
    vocabulary = fields["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    fields["model"].update(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    tokenizer = Tokenizer.from_str(json.dumps(fields))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    return tokenizer


def named(tokenizer: Tokenizer, **names: str | list[str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def llama_3() -> PreTrainedTokenizerFast:
    bos = "<|begin_of_text|>"
    tokenizer = byte_level(bos, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    template = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return named(tokenizer, bos_token=bos, eos_token="<|eot_id|>")


def qwen() -> PreTrainedTokenizerFast:
    tokenizer = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>", normalizer=normalizers.NFC())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    extra = ["<|im_start|>", "<|im_end|>"]
    return named(tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=extra)


def llama_2() -> PreTrainedTokenizerFast:
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = sentencepiece("<s>", "</s>", normalizer=normalizer)
    return named(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def metaspace(scheme: str) -> Callable[[], PreTrainedTokenizerFast]:
    def make() -> PreTrainedTokenizerFast:
        pieces = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        tokenizer = sentencepiece("<s>", "</s>", pre_tokenizer=pieces)
        return named(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")

    return make


def gemma() -> PreTrainedTokenizerFast:
    tokenizer = sentencepiece(
        "<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>",
        normalizer=normalizers.Replace(" ", "▁"),
        pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
    )  # fmt: skip
    return named(tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


TOKENIZERS = {
    "llama-3-8b": llama_3,
    "qwen2.5-7b": qwen,
    "qwen3-0.6b": qwen,
    "llama-2-7b": llama_2,
    "mistral-7b": llama_2,
    "mistral-7b, first": metaspace("first"),
    "mistral-7b, always": metaspace("always"),
    "sheared-llama-1.3b": llama_2,
    "gemma-2-9b": gemma,
}


def space_pooled(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """The same template with the space in front of the text as a pooled part of its own."""
    found: list[Part] = []
    for part in parts:
        if part.slot == "text" and found and found[-1].literal and found[-1].literal.endswith(" "):
            before = found.pop()
            rest = before.literal.rstrip(" ")
            found += [before.model_copy(update={"literal": rest})] if rest else []
            found.append(Part(literal=before.literal[len(rest) :], pool=True))
        found.append(part)
    return tuple(found)


def recipe_format(name: str) -> InputFormat:
    """The input of a shipped recipe, shorter, and with the space in front of the text pooled."""
    spec = load_recipe(name.partition(",")[0]).input
    templates = {role: space_pooled(getattr(spec, role)) for role in ("query", "document")}
    return InputFormat(spec.model_copy(update={"max_tokens": 120, **templates}), TOKENIZERS[name]())


def differing(written: Written) -> set[tuple[str, str, str]]:
    return {(d.prompt, d.probe, d.kind) for d in written.differences if d.probe != "an empty text"}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_shipped_recipe_is_read_by_others_as_by_us(name: str, tmp_path) -> None:
    input_format = recipe_format(name)
    written = write(input_format, layout(input_format), tmp_path, "mean")
    assert differing(written) == set()
    assert set(written.prompts) == {"query", "document"} and not written.include_prompt


def test_a_pooled_mark_is_needed_where_a_space_is_a_token_before_some_texts_only(tmp_path) -> None:
    """As a part of the prompt, `▁` is left out of the pool where it stands alone: no fixed count can say so."""
    spec = load_recipe("mistral-7b").input.model_copy(
        update={role: joined(getattr(recipe_format("mistral-7b").spec, role)) for role in ("query", "document")}
    )
    input_format = InputFormat(spec, llama_2())
    written = write(input_format, layout(input_format), tmp_path, "mean")
    assert {kind for _, _, kind in differing(written)} == {"pool"}
    pooled = {text: input_format.pack([text]).pool.int().argmax().item() for text in ("river", "東京")}
    assert pooled["東京"] == pooled["river"] + 1  # the premise


def joined(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """The opposite of `space_pooled`: "[INST] " is one part, and not pooled."""
    found: list[Part] = []
    for part in parts:
        if part.literal == " ":
            before = found.pop() if found[-1].literal else Part(literal="x")
            part = Part(literal=before.literal + " ")
        found.append(part)
    return tuple(found)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_prefixes_that_are_written_out_give_our_ids_too(name: str, tmp_path) -> None:
    """So reads a program that has the tokenizer, but no prompts by name."""
    input_format = recipe_format(name)
    written = write(input_format, layout(input_format), tmp_path, "mean")
    for prompt, text, role in (("document", "", "document"), ("query", input_format.spec.prompts["query"], "query")):
        for probe in ("a river", "Zürich, 東京", "two\n\nlines", ": (a)"):
            ours = input_format.pack([probe], text, role).ids.tolist()
            assert written.tokenizer(written.prefixes[prompt] + probe)["input_ids"] == ours
            assert MARK not in written.prefixes[prompt]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_without_a_prompt_are_touched_at_their_ends_alone(name: str, tmp_path) -> None:
    input_format = recipe_format(name)
    tokenizer = write(input_format, layout(input_format), tmp_path, "mean").tokenizer
    plain = input_format.plain_ids
    for text in ("a river", f"a {MARK} b", "[INST] a", "]", "user a", "one\n\n two", " ahead"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == plain([text])[0], text
    kept = input_format.spec.strip == "none"
    assert tokenizer("river \n", add_special_tokens=False)["input_ids"] == plain(["river \n" if kept else "river"])[0]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_that_look_like_prompts_are_texts(name: str, tmp_path) -> None:
    input_format = recipe_format(name)
    written = write(input_format, layout(input_format), tmp_path, "mean")
    asked = input_format.spec.prompts["query"]
    for text in (f"{asked}; river", f"[INST] {asked};{MARK}river", f"{MARK}river", "[INST] river", "]", asked):
        for prompt, instruction, role in (("document", "", "document"), ("query", asked, "query")):
            ours = input_format.pack([text], instruction, role).ids.tolist()
            assert written.tokenizer(written.prompts[prompt] + text)["input_ids"] == ours, (prompt, text)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_rules_are_taken_back(name: str, tmp_path) -> None:
    input_format = recipe_format(name)
    written = write(input_format, layout(input_format), tmp_path, "mean")
    again = rules.restore(written.tokenizer, TokenizerChange.model_validate_json(written.changed.model_dump_json()))
    before, after = (json.loads(t.backend_tokenizer.to_str()) for t in (input_format.tokenizer, again))
    for part in ("normalizer", "pre_tokenizer", "model", "added_tokens"):
        assert after[part] == before[part], part
    assert again.bos_token == input_format.tokenizer.bos_token and again.sep_token is None
    assert again.all_special_tokens == input_format.tokenizer.all_special_tokens
    assert InputFormat(input_format.spec, again).identity() == input_format.identity()


def test_an_unread_bos_is_left_out_although_the_document_has_no_prefix(tmp_path) -> None:
    spec = InputSpec(
        query=(Part(special="bos"), Part(slot="text", pool=True)),
        document=(Part(special="bos"), Part(slot="text", pool=True)),
        max_tokens=60,
    )
    input_format = InputFormat(spec, llama_3())
    written = write(input_format, layout(input_format), tmp_path, "mean")
    assert differing(written) == set() and written.prompts["document"] == MARK
    assert written.tokenizer.bos_token is None and written.tokenizer(MARK)["input_ids"] == [0]


def test_whitespace_is_what_python_strips() -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    stripped = normalizers.Replace(Regex(rf"{rules.SPACE}+"), "").normalize_str("".join(characters))
    assert stripped == "".join(c for c in characters if not c.isspace())


def test_a_long_run_of_whitespace_is_looked_at_once(tmp_path) -> None:
    """Looked at from each of its characters, this one would take hours."""
    input_format = recipe_format("mistral-7b, always")
    normalizer = write(input_format, layout(input_format), tmp_path, "mean").tokenizer.backend_tokenizer.normalizer
    text = "a" + " " * 300_000 + "b"
    assert normalizer.normalize_str(text) == text and normalizer.normalize_str(text + "  ") == text

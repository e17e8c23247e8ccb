"""Text to tokens: published input strings to the byte, and pooled tokens that are exactly the text, whatever it holds.

The golden ids come from the tokenizer alone, called on strings that are written out by hand:

    python -m tests.text.test_tokens    makes tests/golden/ids.json again
"""

import json
import re
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import llm2enc
from llm2enc.recipe import InputSpec, Part
from llm2enc.text import Example, InputFormat, Passage, Tokens, concatenate, micro_batches

GOLDEN = Path(__file__).parents[1] / "golden"
CORPUS = [
    "how do birds fly over the sea? Birds fly by lifting and pushing air.",
    "Given a question, retrieve passages that answer the question; query: passage: title: text: task: search result",
    "Rewrite the following paragraph again. The rewritten paragraph. Document again: Query again: Instruct:",
    '[INST] and [/INST] <|user|> <|embed|> <instruct> <query> Summarize sentence "this" in one word:" | {a} [b] !',
    "Represent this sentence for searching relevant passages: none 0 1 2 3 4 5 6 7 8 9",
] * 4
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

# ---------------------------------------------------------------------------------------------------------- tokenizers


def _bpe(model: models.BPE, pre_tokenizer: Any, special: list[str]) -> Tokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(pre_tokenizer, pre_tokenizers.ByteLevel) else []
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return backend


@lru_cache
def sentencepiece(legacy: bool = False) -> PreTrainedTokenizerFast:
    """Llama's form: byte fallback and a dummy space; `legacy` puts the space there by a normalizer, as Mistral does."""
    model = models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    backend = _bpe(model, pre_tokenizers.Metaspace(prepend_scheme="first"), ["<unk>", "<s>", "</s>", *BYTES])
    state = json.loads(backend.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # the text "<0x41>" is no byte
    backend = Tokenizer.from_str(json.dumps(state))
    if legacy:
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    replace, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@lru_cache
def byte_level(trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    """GPT-2's form."""
    special = ["<s>", "<|endoftext|>"]
    backend = _bpe(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), special)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>")


@lru_cache
def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's form. CLS and SEP stand in for BOS and EOS too, so that every template can be tried on it."""
    # The vocabulary is written out: the library's WordPiece trainer gives other ids each time.
    pieces = sorted({piece for line in CORPUS for piece in re.findall(r"\w+|[^\w\s]", line.lower())})
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    names = dict.fromkeys(["[UNK]", "[CLS]", "[SEP]", *pieces, *letters, *(f"##{letter}" for letter in letters)])
    vocabulary = {name: number for number, name in enumerate(names)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.add_special_tokens(["[UNK]", "[CLS]", "[SEP]"])
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    cls, sep = {"cls_token": "[CLS]", "bos_token": "[CLS]"}, {"sep_token": "[SEP]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **cls, **sep)


LOSSLESS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {  # their tokens, joined, are the bytes of the text
    "sentencepiece": sentencepiece,
    "sentencepiece-legacy": lambda: sentencepiece(legacy=True),
    "byte-level": byte_level,
    "byte-level-trimmed": lambda: byte_level(trim_offsets=True),
}
TOKENIZERS = {**LOSSLESS, "wordpiece": wordpiece}


@lru_cache
def pocket() -> PreTrainedTokenizerFast:
    """The packaged tokenizer."""
    return PreTrainedTokenizerFast.from_pretrained(Path(llm2enc.__file__).parent / "pocket")


@lru_cache
def _gpt2_bytes() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and on."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(others)}


def token_bytes(tokenizer: PreTrainedTokenizerFast, token: str) -> bytes:
    if tokenizer.backend_tokenizer.model.byte_fallback:
        return bytes([int(token[3:5], 16)]) if token in BYTES else token.encode()
    alphabet = _gpt2_bytes()
    return bytes(alphabet[character] for character in token)


# ----------------------------------------------------------------------------------------------------------- templates

BOS, EOS, CLS = ({"special": name} for name in ("bos", "eos", "cls"))
INSTRUCTION, TEXT, POOLED = {"slot": "instruction"}, {"slot": "text"}, {"slot": "text", "pool": True}


def spec(query: list, document: list, **options: Any) -> InputSpec:
    """An InputSpec whose literals are plain strings."""

    def parts(template: list) -> tuple[Part, ...]:
        return tuple(Part(literal=part) if isinstance(part, str) else Part(**part) for part in template)

    return InputSpec(query=parts(query), document=parts(document), **options)


# Every system's tokenizer, template, and by hand: the pieces it is published to read, as the tokenizer gets them (special
# tokens stand alone), and what the pooled tokens say.
PUBLISHED: dict[str, dict[str, Any]] = json.loads((GOLDEN / "inputs.json").read_text(encoding="utf-8"))


def published(system: str) -> InputSpec:
    return InputSpec.model_validate_json(json.dumps(PUBLISHED[system]["input"]))


def tokenizer_of(system: str) -> PreTrainedTokenizerFast:
    return {**TOKENIZERS, "pocket": pocket}[PUBLISHED[system]["tokenizer"]]()


def rows_of(system: str) -> list[str]:
    """What the system reads: a query and a document, and where it knows them a titled document, a query with examples."""
    return [key for key in PUBLISHED[system] if key not in ("tokenizer", "input")]


def ids_by_hand(system: str, row: str) -> list[int]:
    """Ids of the hand-written pieces, by the tokenizers library alone."""
    backend = tokenizer_of(system).backend_tokenizer
    pieces = PUBLISHED[system][row]["pieces"]
    return [i for piece in pieces for i in backend.encode(piece, add_special_tokens=False).ids]


@pytest.mark.parametrize(("system", "row"), [(system, row) for system in PUBLISHED for row in rows_of(system)])
def test_every_published_input_has_its_string_ids_and_pooled_tokens(system: str, row: str) -> None:
    given = PUBLISHED[system][row]
    text, instruction, pieces = given["text"], given.get("instruction", ""), given["pieces"]
    examples = [Example(instruction, *pair) for pair in given.get("examples", ())]
    role = {"titled": "document", "few-shot": "query"}.get(row, row)
    tokenizer, titled = tokenizer_of(system), partial(Passage, given["title"]) if "title" in given else str
    input_format = InputFormat(published(system), tokenizer)
    assert input_format.render(titled(text), instruction, role, examples) == "".join(pieces)
    tokens = input_format.pack([titled(text)], instruction, role, examples=[examples])
    golden = json.loads((GOLDEN / "ids.json").read_text(encoding="utf-8"))[system][row]
    assert tokens.ids.tolist() == golden == ids_by_hand(system, row)
    said = tokenizer.decode(tokens.ids[tokens.pool], clean_up_tokenization_spaces=False)
    assert said.strip() == given["pooled"]
    assert not tokens.truncated.any()
    names = tokenizer.convert_ids_to_tokens(tokens.ids.tolist())
    short = input_format.pack([titled(text * 50)], instruction, role, len(names) + 3, examples=[examples])
    ends = tokenizer.convert_ids_to_tokens(short.ids.tolist())
    for special in {"<s>", "</s>", "[CLS]", "[SEP]", "<|endoftext|>"} & set(names):
        assert ends.count(special) == names.count(special)
        assert (ends[0] == special) if special in {"<s>", "[CLS]"} else (ends[-1] == special)
    assert short.truncated.all() and len(short.ids) <= len(names) + 3


# ---------------------------------------------------------------------------------------------------------- properties

KINDS: dict[str, InputSpec] = {
    "wrap": spec(
        [BOS, "[INST] ", INSTRUCTION, "; ", POOLED, {"literal": " [/INST]", "pool": True}],
        [BOS, "[INST] ", POOLED, {"literal": " [/INST]", "pool": True}],
    ),
    "echo": published("Echo"),
    "echo whole": spec(
        [BOS, "Instruct: ", INSTRUCTION, "\nParagraph: ", TEXT, ". Again: ", POOLED],
        [BOS, "Rewrite the following paragraph: ", TEXT, ". The rewritten paragraph: ", POOLED],
    ),
    "grit": published("GritLM"),
    "nv": published("NV-Embed"),
    "quote": spec(
        [INSTRUCTION, ': "', POOLED, '" in one word:"', EOS],
        ['Summarize sentence "', POOLED, '" in one word:"', EOS],
    ),
}
LITERALS = ["[INST] ", " [/INST]", "Query again:", "\nDocument again:", "<|embed|>\n", ". Again: ", '"', "▁", ", "]
STRANGE = ["😀", "👩‍👩‍👧", "中文", "日本語", "שלום", "مرحبا", "e\u0301", "\u0301", "\0", " ", "  ", "\t\n", "ﷺ", "한국"]
PIECES = st.one_of(
    st.sampled_from(["fly ", " birds", "air", "the sea"]),
    st.sampled_from(STRANGE),
    st.sampled_from(LITERALS),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
)
TEXTS = st.lists(PIECES, max_size=5).map("".join)
INSTRUCTIONS = st.sampled_from(["", "retrieve passages", "answer", "Ask 中文 😀"])
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


def oracle(kind: str, tokenizer: PreTrainedTokenizerFast, text: str, instruction: str) -> list[tuple]:
    """(id, pooled, number of the text slot or None, whether a character ends with it) of each token of the whole text.

    No offsets are used: the tokens of a lossless tokenizer, joined, are the bytes of what it read.
    """
    chosen = KINDS[kind]
    template = chosen.query if instruction else chosen.document
    runs: list[list[Part]] = [[]]
    for part in template:
        runs += [[part], []] if part.special or chosen.tokenize == "pieces" else []
        if not part.special and chosen.tokenize == "whole":
            runs[-1].append(part)
    rows: list[tuple] = []
    slots = 0
    for run in runs:
        if run and run[0].special:
            rows.append((getattr(tokenizer, f"{run[0].special}_token_id"), run[0].pool, None, True))
            continue
        strings = [part.literal or (text if part.slot == "text" else instruction) for part in run]
        owners = []
        for part, string in zip(run, strings, strict=True):
            slots += part.slot == "text"
            owners.append((len(string), part.pool, slots if part.slot == "text" else None))
        rows += _joined(tokenizer, "".join(strings), owners)
    return rows


def _joined(tokenizer: PreTrainedTokenizerFast, string: str, owners: list[tuple]) -> list[tuple]:
    encoding = tokenizer.backend_tokenizer.encode(string, add_special_tokens=False)
    parts = [token_bytes(tokenizer, token) for token in encoding.tokens]
    read = b"".join(parts)
    written = string.replace(" ", "▁") if tokenizer.backend_tokenizer.model.byte_fallback else string
    dummy = len(read) - len(written.encode())
    assert read == "▁".encode()[:dummy] + written.encode()
    owner_of_byte = [  # one entry per byte: whose character it is of
        owner
        for character, owner in zip(written, [owner for owner in owners for _ in range(owner[0])], strict=True)
        for _ in character.encode()
    ]
    owner_of_byte = owner_of_byte[:1] * dummy + owner_of_byte  # the dummy space belongs to the first character
    rows, start = [], 0
    for token, part in zip(encoding.ids, parts, strict=True):
        end = start + len(part)
        mine = owner_of_byte[start:end]
        slot = next((owner[2] for owner in reversed(mine) if owner[2]), None)
        whole = end == len(read) or read[end] & 0xC0 != 0x80
        rows.append((token, any(owner[1] for owner in mine), slot, whole))
        start = end
    return rows


def cut(rows: list[tuple], room: int) -> list[tuple]:
    """The tokens that are left if each text slot keeps at most `room`, cut between characters."""
    kept = []
    for slot in dict.fromkeys(row[2] for row in rows):
        mine = [i for i, row in enumerate(rows) if row[2] == slot]
        ends = [n for n in range(min(room, len(mine)) + 1) if n == 0 or rows[mine[n - 1]][3]]
        kept += mine if slot is None else mine[: ends[-1]]
    return [rows[i] for i in sorted(kept)]


def pool_of(rows: list[tuple]) -> list[bool]:
    pool = [row[1] for row in rows]
    return pool if any(pool) else [*pool[:-1], True]


@pytest.mark.parametrize("name", LOSSLESS)
@PROPERTY
@given(kind=st.sampled_from(sorted(KINDS)), text=TEXTS, instruction=INSTRUCTIONS)
def test_pooled_tokens_are_exactly_those_that_hold_a_byte_of_a_pooled_part(name, kind, text, instruction) -> None:
    tokenizer = LOSSLESS[name]()
    tokens = InputFormat(KINDS[kind], tokenizer).pack([text], instruction, "query")
    rows = oracle(kind, tokenizer, text, instruction)
    assert tokens.ids.tolist() == [row[0] for row in rows]
    assert tokens.pool.tolist() == pool_of(rows)
    if kind == "grit" and text:  # said in plain words: the text; a merge may add the newline of the template before it
        said = tokenizer.decode(tokens.ids[tokens.pool], clean_up_tokenization_spaces=False)
        text = text.replace("▁", " ") if tokenizer.backend_tokenizer.model.byte_fallback else text
        assert said in {text, f"\n{text}", text.removeprefix(" ")}  # SentencePiece's decoder drops one leading space


@pytest.mark.parametrize("name", LOSSLESS)
@PROPERTY
@given(kind=st.sampled_from(sorted(KINDS)), text=TEXTS.filter(bool), instruction=INSTRUCTIONS)
def test_truncation_keeps_the_template_and_a_prefix_of_whole_characters(name, kind, text, instruction) -> None:
    tokenizer = LOSSLESS[name]()
    input_format = InputFormat(KINDS[kind], tokenizer)
    rows = oracle(kind, tokenizer, text, instruction)
    fixed = sum(row[2] is None for row in rows)
    slots = len({row[2] for row in rows} - {None})
    first = InputFormat(KINDS[kind], tokenizer).pack([text[0]], instruction, "query")
    least = max(len(first.ids), fixed + slots * 6)  # six: a dummy space, then a character of four bytes
    for limit in range(least, len(rows) + 1):
        tokens = input_format.pack([text], instruction, "query", max_tokens=limit)
        left = cut(rows, (limit - fixed) // slots)
        assert len(tokens.ids) <= limit
        assert tokens.ids.tolist() == [row[0] for row in left]
        assert tokens.pool.tolist() == pool_of(left)
        assert tokens.truncated.tolist() == [len(left) < len(rows)]
        if KINDS[kind].tokenize == "pieces":
            once, twice = ([row[0] for row in left if row[2] == slot] for slot in (1, 2))
            assert once == twice


@PROPERTY
@given(kind=st.sampled_from(sorted(KINDS)), text=TEXTS, instruction=INSTRUCTIONS, limit=st.integers(40, 60))
def test_a_lossy_tokenizer_pools_what_it_makes_of_the_text_alone(kind, text, instruction, limit) -> None:
    """BERT drops and folds characters, but never merges over the borders of these templates: space or punctuation."""
    tokenizer = wordpiece()
    alone = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = InputFormat(KINDS[kind], tokenizer).pack([text], instruction, "query", max_tokens=limit)
    said = tokens.ids[tokens.pool].tolist()
    end = {"wrap": " [/INST]", "echo": "[SEP]", "nv": "[SEP]"}.get(kind, "")
    end_ids = tokenizer(end, add_special_tokens=False)["input_ids"]
    begin_ids = [tokenizer.cls_token_id] if kind == "nv" and not instruction else []
    kept = said[len(begin_ids) : len(said) - len(end_ids)]
    if not alone and not end_ids and not begin_ids:
        assert said == tokens.ids[-1:].tolist()
    else:
        assert said == begin_ids + alone[: len(kept)] + end_ids
        assert len(kept) == len(alone) or tokens.truncated.all()
    assert len(tokens.ids) <= limit


@pytest.mark.parametrize("name", TOKENIZERS)
@PROPERTY
@given(kind=st.sampled_from(sorted(KINDS)), rows=st.lists(st.tuples(TEXTS, INSTRUCTIONS), max_size=4))
def test_a_batch_is_its_texts_one_after_another(name, kind, rows) -> None:
    input_format = InputFormat(KINDS[kind], TOKENIZERS[name]())
    batch = input_format.pack([text for text, _ in rows], [instruction for _, instruction in rows], "query", 60)
    assert len(batch) == len(rows)
    alone = [input_format.pack([text], instruction, "query", 60) for text, instruction in rows]
    for tokens in alone:
        assert tokens.pool.any() and tokens.positions.tolist() == list(range(len(tokens.ids)))
    if alone:
        _assert_equal(batch, concatenate(alone))


@pytest.mark.parametrize("name", TOKENIZERS)
@PROPERTY
@given(
    kind=st.sampled_from(sorted(set(KINDS) - {"quote"})), text=TEXTS, others=st.permutations(["fly", "a 中 b", "😀!"])
)
def test_the_instruction_does_not_change_the_pooled_tokens(name, kind, text, others) -> None:
    input_format = InputFormat(KINDS[kind], TOKENIZERS[name]())
    said = [t.ids[t.pool].tolist() for t in (input_format.pack([text], other, "query") for other in others[:2])]
    assert said[0] == said[1]


# ---------------------------------------------------------------------------------------------------------- edge cases


def _assert_equal(one: Tokens, other: Tokens) -> None:
    for name in ("ids", "lengths", "positions", "pool", "truncated"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_blank_texts_have_a_pooled_token_and_long_ones_fit(kind: str, name: str) -> None:
    input_format = InputFormat(KINDS[kind], TOKENIZERS[name]())
    tokens = input_format.pack(["", "   ", "\0", "birds fly " * 10_000])
    assert all(part.any() for part in tokens.pool.split(tokens.lengths.tolist()))
    assert tokens.truncated.tolist() == [False, False, False, True]
    assert 500 < tokens.lengths[-1] <= 512


def test_a_template_without_special_tokens_gives_an_empty_text_one_token() -> None:
    tokens = InputFormat(spec([POOLED], [POOLED]), byte_level()).pack(["", "fly"])
    assert tokens.ids[0] == byte_level().eos_token_id
    assert tokens.lengths[0] == 1 and tokens.pool.all()


def test_trailing_spaces_of_the_text_are_pooled_though_the_tokenizer_trims_offsets() -> None:
    trimmed, plain = (InputFormat(KINDS["quote"], byte_level(trim)) for trim in (True, False))
    _assert_equal(trimmed.pack(["fly  ", "  "]), plain.pack(["fly  ", "  "]))
    assert byte_level().decode(trimmed.pack(["fly  "]).ids[trimmed.pack(["fly  "]).pool]).startswith("fly  ")


def test_an_emoji_is_never_cut_and_a_text_limit_holds_for_every_copy() -> None:
    limited = KINDS["echo"].model_copy(update={"max_text_tokens": 6})
    tokens = InputFormat(limited, byte_level()).pack(["ab😀😀"])  # 1 or 2 + 4 + 4 tokens
    said = byte_level().decode(tokens.ids[tokens.pool])
    assert said in {"ab😀<|endoftext|>"} and tokens.truncated.all()
    assert byte_level().decode(tokens.ids).count("😀") == 2


def test_faults_of_texts_are_named() -> None:
    input_format = InputFormat(KINDS["wrap"], sentencepiece())
    with pytest.raises(ValueError, match=r"text 1 has a lone surrogate U\+D83D at character 2"):
        input_format.pack(["fine", "ab\ud83d"])
    with pytest.raises(ValueError, match=r"the instruction of text 0 has a lone surrogate"):
        input_format.pack(["fine"], "\udc00", "query")
    with pytest.raises(TypeError, match="text 1 is NoneType None, expected str"):
        input_format.pack(["fine", None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="text 0 is int 3, expected str"):
        input_format.plain_ids([3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="2 texts but 3 instructions"):
        input_format.pack(["a", "b"], ["x", "y", "z"])


def test_an_instruction_that_leaves_no_room_is_refused_with_the_numbers() -> None:
    input_format = InputFormat(KINDS["grit"], byte_level())
    full = len(input_format.pack([""], "answer", "query").ids)
    assert len(input_format.pack(["fly"], "answer", "query", max_tokens=full + 1).ids) == full + 1
    with pytest.raises(ValueError, match=f"text 0: template and instruction take {full} of {full} tokens"):
        input_format.pack(["fly"], "answer", "query", max_tokens=full)


def test_an_empty_instruction_and_a_document_use_the_document_template() -> None:
    wrap, grit = (InputFormat(published(name), sentencepiece()) for name in ("LLM2Vec encode", "GritLM"))
    for blank in ("", "  ", "\n"):
        assert wrap.render(" fly ", blank, "query") == "<s>[INST] fly [/INST]"
    assert wrap.render(" fly ", "not for documents", "document") == "<s>[INST] fly [/INST]"
    assert grit.render(" fly", ": \t\n", "query") == "<s><|embed|>\n fly"
    no_slot = InputFormat(published("E5"), wordpiece())
    assert no_slot.render("fly", "", "query") == "[CLS]query: fly[SEP]"


def test_parts_that_hang_on_the_instruction_come_and_go_with_it() -> None:
    optional = spec([BOS, {"literal": "Task: ", "when": "instruction"}, POOLED], [POOLED])
    input_format = InputFormat(optional, sentencepiece())
    assert input_format.render("fly", "x", "query") == "<s>Task: fly"
    assert input_format.render("fly", "", "query") == "<s>fly"


def test_a_missing_special_token_and_an_unknown_token_are_named() -> None:
    with pytest.raises(ValueError, match="the template needs the cls token, but the tokenizer has none"):
        InputFormat(spec([CLS, POOLED], [POOLED]), byte_level())
    with pytest.raises(ValueError, match=r"the template needs the token 'no such', but the tokenizer has none"):
        InputFormat(spec([{"token": "no such"}, POOLED], [POOLED]), byte_level())


def test_padding_and_truncation_of_the_tokenizer_do_not_reach_us() -> None:
    plain = InputFormat(KINDS["nv"], sentencepiece()).pack(["birds fly over the sea", "air"])
    sentencepiece.cache_clear()  # a tokenizer of our own to spoil
    spoiled = sentencepiece()
    spoiled.backend_tokenizer.enable_padding(length=64)
    spoiled.backend_tokenizer.enable_truncation(2)
    input_format = InputFormat(KINDS["nv"], spoiled)
    _assert_equal(input_format.pack(["birds fly over the sea", "air"]), plain)
    spoiled.backend_tokenizer.enable_truncation(3)
    _assert_equal(input_format.pack(["birds fly over the sea", "air"]), plain)
    sentencepiece.cache_clear()


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow reports no character offsets"):
        InputFormat(KINDS["nv"], Slow())  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- Tokens


def _three() -> Tokens:
    pool = [[True, False], [False, True, True], [True]]
    return Tokens.from_lists([[1, 2], [3, 4, 5], [6]], pool, [False, True, False])


def test_select_and_concatenate_move_whole_texts() -> None:
    chosen = _three().select(torch.tensor([2, 1, 2]))
    assert chosen.ids.tolist() == [6, 3, 4, 5, 6]
    assert chosen.lengths.tolist() == [1, 3, 1]
    assert chosen.positions.tolist() == [0, 0, 1, 2, 0]
    assert chosen.pool.tolist() == [True, False, True, True, True]
    assert chosen.truncated.tolist() == [False, True, False]
    _assert_equal(concatenate([_three().select(torch.tensor([0])), _three().select(torch.tensor([1, 2]))]), _three())
    empty = _three().select(torch.tensor([], dtype=torch.int64))
    assert len(empty) == 0 and empty.ids.tolist() == []


def test_blocks_are_texts_in_which_every_token_counts() -> None:
    tokens = Tokens.from_blocks(torch.tensor([[7, 8, 9], [4, 5, 6]], dtype=torch.int32))
    _assert_equal(tokens, Tokens.from_lists([[7, 8, 9], [4, 5, 6]], [[True] * 3] * 2, [False, False]))


def test_plain_ids_are_the_text_without_template() -> None:
    input_format = InputFormat(KINDS["nv"], sentencepiece())
    texts = ["birds fly", "", "😀"]
    assert input_format.plain_ids(texts) == [sentencepiece().encode(text, add_special_tokens=False) for text in texts]


@PROPERTY
@given(lengths=st.lists(st.integers(1, 30), max_size=20), max_tokens=st.integers(1, 60))
def test_mini_batches_cover_each_text_once_longest_first_within_the_budget(lengths, max_tokens) -> None:
    batches = list(micro_batches(torch.tensor(lengths, dtype=torch.int64), max_tokens))
    rows = [row for batch in batches for row in batch.tolist()]
    assert rows == sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[row] for row in batch) <= max_tokens
    for batch, following in pairwise(batches):  # and none is emptier than it must be
        assert sum(lengths[row] for row in batch) + lengths[following[0]] > max_tokens


if __name__ == "__main__":
    lines = (
        f" {json.dumps(system)}: {json.dumps({row: ids_by_hand(system, row) for row in rows_of(system)})}"
        for system in PUBLISHED
    )
    (GOLDEN / "ids.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

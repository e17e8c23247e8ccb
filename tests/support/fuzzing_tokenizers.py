"""Tokenizers of every make for the fuzz tests, and a slow reference for what `InputFormat` makes of a text."""

import json
from functools import lru_cache
from typing import NamedTuple

from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llm2enc.recipe import InputSpec, Part
from tests.support.fuzzing import TEXTS, WORDS

_CORPUS = [
    "how do birds fly over the sea? Birds fly by lifting and pushing air.",
    "Query again: retrieve the passages; Document again: [INST] and [/INST] <|user|> (a) ﬁne İstanbul 中文 日本 e\u0301",
] * 3
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_ALPHABET = sorted({letter for line in _CORPUS for letter in line} | set("abcdefghijklmnopqrstuvwxyz▁"))

NORMALIZERS = {
    "none": lambda: None,
    "nfkc": normalizers.NFKC,
    "nfd": normalizers.NFD,
    "lower": normalizers.Lowercase,
    "bert": normalizers.BertNormalizer,
    "strip": normalizers.Strip,
    "legacy": lambda: normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    "spaces": lambda: normalizers.Replace(Regex(" {2,}"), " "),
    "no accents": lambda: normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
}
SPLITS = {
    "none": lambda: None,
    "metaspace first": lambda: pre_tokenizers.Metaspace(prepend_scheme="first"),
    "metaspace always": lambda: pre_tokenizers.Metaspace(prepend_scheme="always"),
    "metaspace never": lambda: pre_tokenizers.Metaspace(prepend_scheme="never"),
    "metaspace whole": lambda: pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
    "bytes": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "bytes, prefix": lambda: pre_tokenizers.ByteLevel(add_prefix_space=True),
    "bert": pre_tokenizers.BertPreTokenizer,
    "white space": pre_tokenizers.Whitespace,
    "digits": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.Punctuation()]),
}
MODELS = ("bpe", "fallback", "unigram", "wordpiece", "letters")
ADDED = {
    "none": [],
    "left": [AddedToken("<mask>", lstrip=True, special=True)],
    "right": [AddedToken("fly", rstrip=True, normalized=False)],
    "both": [AddedToken("; ", lstrip=True, rstrip=True), AddedToken("[INST]", special=True)],
    "word": [AddedToken("air", single_word=True), AddedToken("中", normalized=True)],
}
NAMES = {"bos": "<s>", "eos": "</s>", "cls": "<cls>", "sep": "<sep>", "pad": "<pad>"}


class Make(NamedTuple):
    """What a tokenizer is made of."""

    model: str
    normalizer: str
    split: str
    added: str
    special: tuple[str, ...]
    trim: bool


MAKES = st.builds(
    Make,
    st.sampled_from(MODELS),
    st.sampled_from(sorted(NORMALIZERS)),
    st.sampled_from(sorted(SPLITS)),
    st.sampled_from(sorted(ADDED)),
    st.just(tuple(NAMES)) | st.lists(st.sampled_from(sorted(NAMES)), unique=True).map(tuple),
    st.booleans(),
)


@lru_cache(maxsize=512)
def _model(name: str, split: str) -> str:
    """A small vocabulary of this kind, as JSON."""
    pieces = sorted({word for line in _CORPUS for word in line.split()})
    alphabet = sorted({*_ALPHABET, *(pre_tokenizers.ByteLevel.alphabet() if split.startswith("bytes") else [])})
    if name == "wordpiece":
        vocabulary = dict.fromkeys(["<unk>", *alphabet, *(f"##{letter}" for letter in alphabet), *pieces])
        return Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>")).to_str()
    if name == "unigram":
        scores = [
            ("<unk>", -9.0),
            *((letter, -5.0) for letter in alphabet),
            *((word, -3.0) for word in pieces if len(word) > 1),
        ]
        return Tokenizer(models.Unigram([*scores, *((byte, -20.0) for byte in _BYTES)], 0, byte_fallback=True)).to_str()
    if name == "letters":
        return Tokenizer(
            models.BPE({letter: i for i, letter in enumerate(["<unk>", *alphabet])}, [], unk_token="<unk>")
        ).to_str()
    bytes_ = _BYTES if name == "fallback" else []
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=bool(bytes_), fuse_unk=True))
    backend.pre_tokenizer = SPLITS[split]()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", *bytes_], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_CORPUS, trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = []  # the text "<0x41>" is no byte
    return json.dumps(state)


@lru_cache(maxsize=512)
def tokenizer(make: Make) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(_model(make.model, make.split))
    backend.normalizer = NORMALIZERS[make.normalizer]()
    backend.pre_tokenizer = SPLITS[make.split]()
    backend.add_tokens(ADDED[make.added])
    backend.add_special_tokens([NAMES[name] for name in make.special])
    if make.trim:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", **{f"{name}_token": NAMES[name] for name in make.special}
    )


# ----------------------------------------------------------------------------------------------------------- templates

_LITERALS = st.sampled_from([*WORDS, "[INST] ", "\n", " ", "▁", "</s>", "😀", "ﬁ", "e", "\u0301"])
_PART = st.one_of(
    st.builds(dict, literal=_LITERALS),
    st.just({"slot": "text"}),
    st.just({"slot": "instruction"}),
    st.builds(dict, special=st.sampled_from(["bos", "eos", "cls", "sep"])),
    st.builds(dict, token=st.sampled_from(["a", "e", "</s>", "fly", "Ġ", "▁", "[INST]"])),
)


@st.composite
def _template(draw: st.DrawFn, instruction: bool) -> list[dict]:
    parts = []
    for part in [*draw(st.lists(_PART, max_size=5)), {"slot": "text", "pool": True}]:
        if part.get("slot") == "instruction" and not instruction:
            continue
        when = "instruction" if draw(st.integers(0, 4)) == 0 else None
        parts.append({"pool": draw(st.booleans()), "when": when, "join": draw(st.booleans()), **part})
    parts[-1]["when"] = None
    return draw(st.permutations(parts))


@st.composite
def input_specs(draw: st.DrawFn) -> InputSpec:
    return InputSpec(
        query=tuple(Part(**part) for part in draw(_template(True))),
        document=tuple(Part(**part) for part in draw(_template(False))),
        max_tokens=draw(st.sampled_from([2, 3, 5, 8, 13, 21, 34, 55, 512])),
        max_text_tokens=draw(st.none() | st.integers(1, 20)),
        tokenize=draw(st.sampled_from(["whole", "pieces"])),
        strip=draw(st.sampled_from(["none", "outer"])),
        strip_instruction=draw(st.sampled_from(["", "\t\n :", "F"])),
    )


INSTRUCTIONS = st.sampled_from(["", " ", ":", "Find it", " Find it: ", "\tAsk 中文 😀\n", "F"]) | TEXTS

# ----------------------------------------------------------------------------------------------------------- reference


class Packed(NamedTuple):
    """What the model reads of one text."""

    ids: list[int]
    pool: list[bool]
    truncated: bool


class Refused(Exception):
    """The template leaves no room for the text."""


def reference(
    spec: InputSpec, backend: Tokenizer, names: dict[str, int], filler: int, row: tuple, limit: int
) -> Packed:
    """One text by the documentation of recipe.py and tokens.py, a character at a time.

    backend  the tokenizer without a post-processor
    names    ids of the special tokens, by role
    row      text, instruction, role
    """
    text, instruction, role = row
    if spec.strip_instruction:
        instruction = instruction.strip(spec.strip_instruction)
    if spec.strip == "outer":
        instruction = instruction.lstrip()
    asks = any(part.slot == "instruction" for part in spec.query)
    parts = spec.query if role == "query" and (instruction or not asks) else spec.document
    parts = [part for part in parts if part.when is None or instruction]
    if spec.strip == "outer":
        text = text.rstrip() if any(part.slot == "instruction" for part in parts) else text.strip()
    tokens = []  # (id, pooled, number of the text slot or None, first character, end)
    run: list[tuple[str, bool, int | None]] = []
    slots = 0
    for number, part in enumerate(parts):
        fixed = part.special is not None or part.token is not None
        if fixed or (spec.tokenize == "pieces" and not part.join):
            tokens += _of_run(backend, run)
            run = []
        if fixed:
            vocabulary = backend.get_vocab(True)
            tokens.append((names[part.special] if part.special else vocabulary[part.token], part.pool, None, 0, 1))
        else:
            slots += part.slot == "text"
            string = text if part.slot == "text" else instruction if part.slot else part.literal
            run.append((string, part.pool, number if part.slot == "text" else None))
    tokens += _of_run(backend, run)
    return _fitted(tokens, limit, spec.max_text_tokens, filler)


def _of_run(backend: Tokenizer, run: list[tuple[str, bool, int | None]]) -> list[tuple]:
    """The tokens of neighbouring parts: each is of the part its first character is in, or of the text it reaches into."""
    string = "".join(part[0] for part in run)
    if not string:
        return []
    owners = [place for place, part in enumerate(run) for _ in part[0]]
    encoding = backend.encode(string, add_special_tokens=False)
    tokens = []
    for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        touched = [run[owner] for owner in owners[start : max(end, start + 1)]]
        if not touched:  # behind the last character
            touched = [run[-1]]
        texts = [part[2] for part in touched if part[2] is not None]
        tokens.append((token, any(part[1] for part in touched), texts[-1] if texts else None, start, end))
    return tokens


def _fitted(tokens: list[tuple], limit: int, most: int | None, filler: int) -> Packed:
    slots = {token[2] for token in tokens} - {None}
    fixed = sum(token[2] is None for token in tokens)
    room = (limit - fixed) // max(1, len(slots))
    if room < 1:
        raise Refused
    room = min(room, most or room)
    dropped = set()
    for slot in slots:
        own = [place for place, token in enumerate(tokens) if token[2] == slot]
        if len(own) > room:
            whole = [n for n in range(1, room + 1) if tokens[own[n]][3] >= tokens[own[n - 1]][4]]
            dropped.update(own[whole[-1] if whole else room :])
    kept = [token for place, token in enumerate(tokens) if place not in dropped]
    ids, pool = [token[0] for token in kept], [token[1] for token in kept]
    if not ids:
        ids, pool = [filler], [True]
    if not any(pool):
        pool[-1] = True
    return Packed(ids, pool, bool(dropped))

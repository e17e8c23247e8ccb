"""The tokenizer, in the two ways that llama.cpp reads.

    gpt2    byte-level BPE: tokens, merges, and a name that stands for the regular expressions that cut the text first
    llama   SentencePiece's BPE: tokens and scores; spaces are U+2581, what is no token becomes bytes

llama.cpp knows no normalizer, and of the many ways to cut a text only those it has a name for, so everything in
tokenizer.json is compared with what llama.cpp would do, and what is not equal is refused. Read in its src/llama-vocab.cpp
and src/unicode.cpp.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llm2enc.errors import NoGGUF
from llm2enc.model import SPLITS

SPACE = "\u2581"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# Types of tokens in a GGUF file (gguf.TokenType).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass(frozen=True)
class Vocabulary:
    """What stands under `tokenizer.ggml.` in the file."""

    model: str  # gpt2 or llama
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] | None = None  # gpt2
    scores: list[float] | None = None  # llama
    space_prefix: bool | None = None  # llama: a space goes before the text and after every special token
    notes: tuple[str, ...] = ()


def read(tokenizer_json: str, size: int) -> Vocabulary:
    """The vocabulary of a tokenizer.json for a model with `size` embeddings. NoGGUF, with the reason."""
    backend = json.loads(tokenizer_json)
    model = backend["model"]
    if model["type"] != "BPE":
        raise NoGGUF(f"the tokenizer is a {model['type']} model; of those llama.cpp runs BPE exactly, and no other")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise NoGGUF(f"the tokenizer's BPE has {name} {model[name]!r}, which llama.cpp does not know")
    for added in backend["added_tokens"]:
        if not added["special"] and (added["single_word"] or added["lstrip"] or added["rstrip"]):
            raise NoGGUF(
                f"the added token {added['content']!r} takes whitespace beside it along, or stands as a word only; "
                "llama.cpp finds it anywhere"
            )
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    ids = model["vocab"] | {added["content"]: added["id"] for added in backend["added_tokens"]}
    if max(ids.values()) >= size or len(set(ids.values())) < len(ids):
        raise NoGGUF(
            f"the tokenizer has ids up to {max(ids.values())} for {len(ids)} tokens, the model {size} embeddings"
        )
    tokens = _names(ids, size)
    if any(part["type"] == "ByteLevel" for part in _parts(backend["pre_tokenizer"])):
        return _byte_level(backend, tokens, merges)
    return _sentencepiece(backend, tokens, merges)


def _names(ids: dict[str, int], size: int) -> list[str]:
    """Every token by id. Ids without one get a name that stands for nothing, and so do names with a NUL, at which
    llama.cpp ends a string: a text with that character becomes other tokens."""
    tokens = [f"[PAD{number}]" for number in range(size)]
    for name, number in ids.items():
        if "\0" not in name:
            tokens[number] = name
    if len(set(tokens)) < size or "" in tokens:
        raise NoGGUF("the tokenizer has an empty token, or one named like [PAD7], which llama.cpp cannot load")
    return tokens


def _types(backend: dict[str, Any], tokens: list[str]) -> list[int]:
    vocabulary, byte_names = backend["model"]["vocab"], set(_BYTES)
    types = [(BYTE if name in byte_names else NORMAL) if name in vocabulary else UNUSED for name in tokens]
    for added in backend["added_tokens"]:
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    unknown = backend["model"].get("unk_token")
    if unknown is not None:
        types[tokens.index(unknown)] = UNKNOWN
    return types


# ---------------------------------------------------------------------------------------------------------- byte level


def _byte_level(backend: dict[str, Any], tokens: list[str], merges: list[tuple[str, ...]]) -> Vocabulary:
    from tokenizers.pre_tokenizers import ByteLevel

    normalizers = [part["type"] for part in _parts(backend["normalizer"])]
    if normalizers not in ([], ["NFC"]):
        raise NoGGUF(f"the tokenizer changes the text first ({', '.join(normalizers)}), which llama.cpp does not do")
    missing = sorted(set(ByteLevel.alphabet()) - set(backend["model"]["vocab"]))
    if missing:
        raise NoGGUF(f"the vocabulary lacks {len(missing)} of the 256 bytes; llama.cpp would drop them from the text")
    types = [
        NORMAL if kind == BYTE else kind for kind in _types(backend, tokens)
    ]  # "<0x0A>" is a word like others here
    notes = ("Texts must be in Unicode's NFC form; llama.cpp does not bring them into it.",) if normalizers else ()
    return Vocabulary("gpt2", _pre(backend), tokens, types, merges=[" ".join(merge) for merge in merges], notes=notes)


def _pre(backend: dict[str, Any]) -> str:
    """llama.cpp's name for how the text is cut before the merges."""
    parts, skips = _parts(backend["pre_tokenizer"]), bool(backend["model"].get("ignore_merges"))
    last = parts[-1]
    if last["type"] == "ByteLevel" and not last["add_prefix_space"]:
        before = [_plain(part) for part in parts[:-1]]
        if last["use_regex"] and not skips and before == []:
            return "gpt-2"
        if last["use_regex"] and not skips and before == [("Digits", True)]:
            return "smollm"
        if not last["use_regex"] and len(before) == 1 and (before[0], skips) in SPLITS:
            return SPLITS[before[0], skips]
    raise NoGGUF(
        f"the tokenizer cuts the text by {json.dumps(parts, ensure_ascii=False)} (ignore_merges {skips}), for which "
        "llama.cpp has no name that does exactly the same; export to ONNX instead"
    )


def _plain(part: dict[str, Any]) -> Any:
    """What matters of one pre-tokenizer, comparable with the tables above."""
    if part["type"] == "Digits":
        return "Digits", part["individual_digits"]
    if part["type"] == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        return part["pattern"].get("Regex")
    return part["type"], json.dumps(part)


# ------------------------------------------------------------------------------------------------------- SentencePiece


def _sentencepiece(backend: dict[str, Any], tokens: list[str], merges: list[tuple[str, ...]]) -> Vocabulary:
    vocabulary = backend["model"]["vocab"]
    prefix, notes = _spaces(backend, vocabulary)
    if not backend["model"].get("byte_fallback") or not set(_BYTES) <= set(vocabulary):
        raise NoGGUF("the tokenizer does not fall back to bytes, which llama.cpp always does without ByteLevel")
    if backend["model"].get("ignore_merges"):
        raise NoGGUF("the tokenizer skips the merges for words it has (ignore_merges), which llama.cpp does not")
    for added in backend["added_tokens"]:
        if not added["special"] and added["normalized"]:
            raise NoGGUF(
                f"the added token {added['content']!r} is found in the text after its spaces were replaced; llama.cpp "
                "looks for it before"
            )
    scores = _scores(backend, tokens, merges)
    types = _types(backend, tokens)
    return Vocabulary("llama", "default", tokens, types, scores=scores, space_prefix=prefix, notes=notes)


def _spaces(backend: dict[str, Any], vocabulary: dict[str, int]) -> tuple[bool, tuple[str, ...]]:
    """Whether a space goes before the text, and what to say; NoGGUF if spaces are treated otherwise."""
    normalizers = [_normalizer(part) for part in _parts(backend["normalizer"])]
    cuts = _parts(backend["pre_tokenizer"])
    replaced = ("Replace", " ", SPACE)
    no_effect = [{"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}]
    if normalizers in ([replaced], [("Prepend", SPACE), replaced]) and (cuts == [] or cuts == no_effect):
        return len(normalizers) == 2, ()
    if normalizers == [] and len(cuts) == 1 and cuts[0]["type"] == "Metaspace" and cuts[0]["replacement"] == SPACE:
        if cuts[0]["split"] and any(SPACE in token[1:] for token in vocabulary):
            raise NoGGUF("the tokenizer cuts the text at spaces (Metaspace, split), and has tokens with spaces inside")
        if cuts[0]["prepend_scheme"] == "never":
            return False, ()
        return True, ("Strip spaces before a text: llama.cpp puts one there always, the tokenizer if there is none.",)
    raise NoGGUF(
        f"the tokenizer treats spaces by {json.dumps([backend['normalizer'], backend['pre_tokenizer']])}, which llama.cpp "
        "does not do; export to ONNX instead"
    )


def _normalizer(part: dict[str, Any]) -> tuple[str, ...]:
    if part["type"] == "Replace":
        return "Replace", part["pattern"].get("String", json.dumps(part)), part["content"]
    return (part["type"], part["prepend"]) if part["type"] == "Prepend" else (part["type"],)


def _scores(backend: dict[str, Any], tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """One score per token: minus the number of the merge that makes it.

    llama.cpp joins the neighbours whose union has the highest score, whatever they are; so every way to make a token
    must be a merge, and the merges that make one token must stand together.
    """
    added = {added["content"] for added in backend["added_tokens"]}
    pieces = {name for name in backend["model"]["vocab"] if name not in added and name not in _BYTES}
    pairs, rank, former = set(merges), {}, None
    for number, (left, right) in enumerate(merges):
        token = left + right
        if token != former and token in rank:
            raise NoGGUF(f"merges that make the token {token!r} stand apart, which scores cannot say")
        rank.setdefault(token, number)
        former = token
    for piece in pieces:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces and (left, right) not in pairs:
                raise NoGGUF(f"the tokenizer never joins {left!r} and {right!r}, but llama.cpp would: it has {piece!r}")
    lowest = -float(len(merges))
    return [-float(rank[name]) if name in rank else lowest for name in tokens]


def _parts(section: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as a flat list of its parts."""
    return list(_flat(section)) if section else []


def _flat(section: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if section["type"] == "Sequence":
        for inner in section.get("normalizers") or section.get("pretokenizers") or []:
            yield from _flat(inner)
    else:
        yield section

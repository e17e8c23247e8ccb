"""The tokenizer of a GGUF file, compared with all that the file says of it.

The file names how a text is cut before the merges (`tokenizer.ggml.pre`); transformers knows fewer of these names than we
do, and takes GPT-2's way for the others. It says nothing of normalizers: the texts of a model that brings them into NFC
(Qwen) must be in NFC already.
"""

from typing import TYPE_CHECKING

from llm2enc.model.gguf_header import Header
from llm2enc.text import PROBES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
_REST = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
# llama.cpp's names, by expression and whether a whole word that is a token skips the merges. It computes these by code
# of its own, exactly; GPT-4o's and Tekken's expressions it approximates (capitals outside ASCII), so they are not here.
SPLITS = {
    (_CONTRACTIONS + _WORDS + "\\p{N}{1,3}" + _REST, True): "llama-bpe",
    (_CONTRACTIONS + _WORDS + "\\p{N}{1,3}" + _REST, False): "dbrx",
    (_CONTRACTIONS + _WORDS + "\\p{N}" + _REST, False): "qwen2",
}
_CONTROL, _USER_DEFINED = 3, 4  # types of tokens that are found whole in a text


def cut_as_the_file_says(tokenizer: "PreTrainedTokenizerBase", header: Header) -> bool:
    """Whether the file's way to cut texts is one that we know exactly; the tokenizer then cuts them so."""
    from tokenizers import Regex, pre_tokenizers

    name = header.tokenizer.get("pre")
    if header.tokenizer.get("model") != "gpt2":
        return True  # SentencePiece's BPE cuts nothing first
    backend = tokenizer.backend_tokenizer
    expressions = {pre: key for key, pre in SPLITS.items()}
    if name in expressions:
        expression, skips = expressions[name]
        first = [pre_tokenizers.Split(Regex(expression), "isolated")]
    elif name in ("smollm", "gpt-2"):
        expression, skips = "", False
        first = [pre_tokenizers.Digits(individual_digits=True)] * (name == "smollm")
    else:
        return False
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not expression)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, last])
    backend.model.ignore_merges = skips
    return True


def differences(tokenizer: "PreTrainedTokenizerBase", header: Header) -> list[str]:
    """Where the tokenizer differs from what the file says, one sentence each; empty if nowhere."""
    return [*_spelling(tokenizer, header), *_whole(tokenizer, header), *_around(tokenizer, header), *_trip(tokenizer)]


def _spelling(tokenizer: "PreTrainedTokenizerBase", header: Header) -> list[str]:
    said = header.tokenizer.get("tokens", [])
    own = tokenizer.convert_ids_to_tokens(list(range(len(said))))
    space = "\u2581"  # which Gemma's files write as a space in tokens of spaces alone
    other = [number for number, token in enumerate(said) if own[number] not in (token, token.replace(" ", space))]
    if not other:
        return []
    return [
        f"{len(other)} of {len(said)} tokens are spelled otherwise, such as {[said[number] for number in other[:3]]}"
    ]


def _whole(tokenizer: "PreTrainedTokenizerBase", header: Header) -> list[str]:
    kinds = header.tokenizer.get("token_type", [])
    asked = {number for number, kind in enumerate(kinds) if kind in (_CONTROL, _USER_DEFINED)}
    names = {number: header.tokenizer["tokens"][number] for number in asked - set(tokenizer.added_tokens_decoder)}
    lost = [
        name for number, name in names.items() if tokenizer(name, add_special_tokens=False)["input_ids"] != [number]
    ]
    if not lost:
        return []
    return [f"{len(lost)} of {len(asked)} special and added tokens become several in a text, such as {lost[:3]}"]


def _around(tokenizer: "PreTrainedTokenizerBase", header: Header) -> list[str]:
    """Special tokens, and which of them the tokenizer puts around a text."""
    found = []
    for name, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        own, said = getattr(tokenizer, f"{name}_token_id"), header.tokenizer.get(f"{key}_token_id")
        if said is not None and own != said:
            found.append(f"{name}_token is token {own}, in the file {said}")
    ids = tokenizer("a")["input_ids"]
    for name, place in (("bos", 0), ("eos", -1)):
        said = header.tokenizer.get(f"add_{name}_token")
        if said is not None and said != (ids[place] == getattr(tokenizer, f"{name}_token_id")):
            found.append(f"the file says add_{name}_token: {str(said).lower()}, the tokenizer does otherwise")
    return found


def _trip(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Probe texts that do not come back from their tokens."""
    ids = tokenizer(list(PROBES.values()), add_special_tokens=False)["input_ids"]
    lost = [
        name
        for (name, text), tokens in zip(PROBES.items(), ids, strict=True)
        if tokenizer.decode(tokens, clean_up_tokenization_spaces=False) != text
    ]
    return [f"these texts do not come back from their tokens: {', '.join(lost)}"] if lost else []

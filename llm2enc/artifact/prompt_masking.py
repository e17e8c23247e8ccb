"""Prompts that sentence-transformers leaves out of the pool exactly where we do, by rules in the tokenizer's normalizer.

sentence-transformers puts a prompt before the text and, with `include_prompt: false`, leaves out of the mean as many tokens
as the prompt has alone: special tokens in front and everything behind included, but for one special token at the very
end. A template's own prefix seldom has that many:

    template    <s> [INST] river [/INST]          pooled: river and [/INST], the space in front of it included
    ours        <s> ▁[ INST ] ▁river ▁[ / INST ]  4 tokens are left out
    "[INST] "   <s> ▁[ INST ] ▁      ▁[ / INST ]  sentence-transformers would leave out 9

So the directory names the prompt `[INST]␣`: the prefix without the whitespace that merges with the text, and a mark where
the text begins. Rules in front of the normalizer turn it into what we read, and into a filler of the right number of
tokens where it stands alone:

    whitespace at the end        ->  nothing        (`strip: outer`)
    `[INST]␣` alone              ->  the filler
    `[INST]␣` before a text      ->  `[INST] `      (`strip: outer`: whitespace in front of the text goes too)

No text without a mark is touched, and the prefix written out still gives our ids. Two counts need more than a filler:
where the suffix alone has one token too many, its last token becomes `sep_token`, a special token that the count leaves
out (no text can hold it: a rule makes its pattern unlike any text); where only BOS is to be counted, tokenizer_config.json
does not name it as special. `restore` takes all of it back.
"""

import json
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm2enc.artifact.metadata import TokenizerChange
from llm2enc.recipe import Role
from llm2enc.text import InputFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "␣"  # U+2423; it is read as the place where the text begins, by people too
# What Python's str.strip takes away. Oniguruma's own \s leaves out U+001C to U+001F.
SPACE = r"[\x{9}-\x{d}\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"


@dataclass(frozen=True)
class Rules:
    """What the exported tokenizer has besides the model's own."""

    prompts: dict[str, str]
    """Prompt as sentence-transformers is to put it before a text, by name."""
    replacements: tuple[tuple[str, str], ...]
    """Patterns and what they become, in order, before the tokenizer's own normalizer."""
    special: str | None = None
    """A token of the suffix that counts as special."""
    plain: tuple[tuple[str, str], ...] = ()
    """Attributes and their tokens (bos_token, <s>) that are not named, so that they don't count as special."""


@dataclass(frozen=True)
class _Prompt:
    """One prompt: `head` ends with the last special token in it, where a tokenizer starts a string of its own."""

    head: str
    tail: str
    marked: str
    strips: bool  # whether whitespace in front of the text goes

    @property
    def name(self) -> str:
        return self.head + self.marked


def find(
    input_format: InputFormat,
    suffix: tuple[int, ...],
    tokenizer: "PreTrainedTokenizerBase",
    asked: dict[str, tuple[str, str, Role]],
) -> Rules | None:
    """Rules under which the prompts count as they should; None if there are none.

    suffix     ids that the post-processor adds behind the text
    tokenizer  the exported one, without rules
    asked      by prompt name: what stands before the text, instruction and role
    """
    outer = input_format.spec.strip == "outer"
    skipped = {name: _unpooled(input_format, text, role) for name, (_, text, role) in asked.items()}
    prompts = {
        name: _prompt(tokenizer, prefix, outer and not (role == "query" and text), skipped[name] > 0)
        for name, (prefix, text, role) in asked.items()
    }
    # Only from the start of a run of whitespace: anything else would look at a long run once for each of its characters.
    strips = [(rf"(?<!{SPACE}){SPACE}++\z", "")] if outer else []
    first = _adds_space_first(tokenizer)
    strips += [(rf"\A{SPACE}+", " " * first)] if any(p.strips and not p.name for p in prompts.values()) else []
    for special, plain in _namings(tokenizer, suffix):
        counted = set(tokenizer.all_special_ids) | ({suffix[-1]} if special else set())
        counted -= set(tokenizer.convert_tokens_to_ids([token for _, token in plain]))
        fillers = {name: _filler(tokenizer, p, skipped[name], counted) for name, p in prompts.items()}
        if any(skipped.values()) and None in fillers.values():
            continue
        alone = {p.marked: fillers[name] for name, p in prompts.items() if p.marked} if any(skipped.values()) else {}
        replacements = _replacements(prompts, alone, first)
        if special:  # the pattern of an added token is normalized, so nothing but itself must become what it becomes
            strips = [(rf"\A{re.escape(special)}\z", MARK + special + MARK), *strips]
        return Rules({name: p.name for name, p in prompts.items()}, (*strips, *replacements), special, plain)
    return None


def normalizer(former: dict[str, Any] | None, rules: Rules) -> dict[str, Any]:
    """The JSON of a tokenizer's normalizer with the rules in front of it."""
    own = [{"type": "Replace", "pattern": {"Regex": old}, "content": new} for old, new in rules.replacements]
    return {
        "type": "Sequence",
        "normalizers": [{"type": "Sequence", "normalizers": own}, *([former] if former else [])],
    }


def added_token(tokenizer: "PreTrainedTokenizerBase", name: str) -> dict[str, Any]:
    """The JSON of the suffix token that counts as special."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return {"id": tokenizer.convert_tokens_to_ids(name), "content": name, **flags, "normalized": True, "special": True}


def restore(tokenizer: "PreTrainedTokenizerBase", changed: TokenizerChange) -> "PreTrainedTokenizerBase":
    """The tokenizer as it was before `save` added rules."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    _, *former = backend["normalizer"]["normalizers"]
    backend["normalizer"] = former[0] if former else None
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["content"] != changed.special]
    names = {name: token for name, token in tokenizer.special_tokens_map.items() if token != changed.special}
    others = {name: getattr(tokenizer, name, None) for name in ("chat_template", "extra_special_tokens")}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        model_max_length=tokenizer.model_max_length,
        **{name: value for name, value in others.items() if value},
        **{**names, **changed.plain},
    )


# -------------------------------------------------------------------------------------------------------------- parts


def _unpooled(input_format: InputFormat, instruction: str, role: Role) -> int:
    """How many tokens our template leaves out of the pool in front of a text."""
    pool = input_format.pack(["The river runs through the old town"], instruction, role).pool
    return int(pool.int().argmax())


def _prompt(tokenizer: "PreTrainedTokenizerBase", prefix: str, strips: bool, skips: bool) -> _Prompt:
    names = [str(token) for token in tokenizer.added_tokens_decoder.values() if not token.normalized]
    border = max((prefix.rfind(name) + len(name) for name in names if name in prefix), default=0)
    head, tail = prefix[:border], prefix[border:]
    marked = tail.rstrip() + MARK if prefix or skips else ""
    return _Prompt(head, tail, marked, strips)


def _namings(tokenizer: "PreTrainedTokenizerBase", suffix: tuple[int, ...]) -> Iterator[tuple[str | None, tuple]]:
    """What may be named otherwise than by the model's own tokenizer: nothing, the last token, or the first."""
    yield None, ()
    if suffix and suffix[-1] not in tokenizer.all_special_ids and not tokenizer.special_tokens_map.get("sep_token"):
        yield tokenizer.convert_ids_to_tokens(suffix[-1]), ()
    bos = tokenizer.bos_token
    if not suffix and bos:
        names = tuple(name for name, token in tokenizer.special_tokens_map.items() if token == bos)
        if names == ("bos_token",):  # a pad or EOS of the same token has to stay
            yield None, ((names[0], bos),)


def _filler(tokenizer: "PreTrainedTokenizerBase", prompt: _Prompt, skipped: int, counted: Set[int]) -> str | None:
    """A string that sentence-transformers counts as `skipped` tokens behind the prompt's head; None if there is none."""
    if not prompt.name:
        return "" if not skipped else None
    for end in range(len(prompt.tail) + 1):
        if length(tokenizer, prompt.head + prompt.tail[:end], counted) == skipped:
            return prompt.tail[:end]
    return None


def _replacements(prompts: dict[str, _Prompt], alone: dict[str, str], first: bool) -> list[tuple[str, str]]:
    """The rules of the prompts, the longest first: none of them makes what another one looks for.

    The first character stays where it can: Metaspace's `first` adds its space only to a string that has kept it.
    """
    found: dict[str, str] = {}
    for prompt in sorted(prompts.values(), key=lambda prompt: -len(prompt.marked)):
        if not prompt.marked:
            continue
        stem, space = prompt.marked.removesuffix(MARK), f"{SPACE}*+" if prompt.strips else ""
        if prompt.marked in alone:
            kept = stem[:1] if alone[prompt.marked] else ""
            begin = _behind(kept) + re.escape(prompt.marked[len(kept) :])
            found[rf"{begin}\z"] = alone[prompt.marked][len(kept) :]
        begin = _behind(stem) + MARK + space
        if first and not prompt.name.removesuffix(MARK) and not prompt.tail:
            found[rf"{begin}(?=[^ ])"] = " "
        found[rf"{begin}(?!\z)"] = prompt.tail[len(stem) :]
    return list(found.items())


def _behind(start: str) -> str:
    return rf"(?<=\A{re.escape(start)})" if start else r"\A"


def _adds_space_first(tokenizer: "PreTrainedTokenizerBase") -> bool:
    pieces = tokenizer.backend_tokenizer.pre_tokenizer
    return pieces is not None and '"first"' in str(json.loads(pieces.__getstate__())).replace("'", '"')


def length(tokenizer: "PreTrainedTokenizerBase", prompt: str, special: Set[int]) -> int:
    """How many tokens sentence-transformers leaves out for a prompt that gives these ids, counted its way."""
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - (bool(ids) and ids[-1] in special)

"""The tokenizer that leaves the house, and proof that it gives the ids that `InputFormat` gives.

An engine knows two things: a string that it puts before the text (the prompt), and the special tokens that the tokenizer
adds around both (its post-processor). A template is split between them:

    template   <s>  [INST]  instruction  ;  text  [/INST]
               lead '----- prompt -----'  $A   suffix          one text slot
               '--------- lead -------'   $A   between  $A  suffix       Echo: no prompt, `$A` twice

Not every template can be split so. `write` opens the saved tokenizer as other programs do, `compare` says for which texts
and prompts ids or pooled tokens differ, and where it finds any, `rules.py` may have a way.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2enc.artifact import prompt_masking as rules
from llm2enc.artifact.metadata import Difference, TokenizerChange
from llm2enc.artifact.prompt_masking import Rules
from llm2enc.errors import InputError
from llm2enc.model import POOLERS
from llm2enc.recipe import Part, Pooling, Role
from llm2enc.text import InputFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SLOT = "\ue000"  # a private-use character: it stands for the text while a template is rendered
EMPTY = "an empty text"  # the name of a probe
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789中国"  # some of them are one token in any vocabulary


@dataclass(frozen=True)
class Layout:
    """How the document template becomes a post-processor. Ids."""

    runs: tuple[tuple[int, ...], ...]  # before, between and after the text slots
    lead: int  # how many ids of the first run the post-processor adds; the others are in the prompt

    @property
    def slots(self) -> int:
        return len(self.runs) - 1


@dataclass(frozen=True)
class Written:
    """The tokenizer as it stands in the directory, and how others read with it."""

    tokenizer: "PreTrainedTokenizerBase"
    prefixes: dict[str, str | None]
    """What `prompts` gave."""
    prompts: dict[str, str | None]
    """What sentence-transformers has to put before a text; with rules not the prefix itself."""
    include_prompt: bool
    differences: tuple[Difference, ...]
    rules: Rules | None

    @property
    def changed(self) -> TokenizerChange | None:
        """What `rules.restore` needs; None where there are no rules."""
        if self.rules is None:
            return None
        return TokenizerChange(special=self.rules.special, plain=dict(self.rules.plain))


def write(input_format: InputFormat, split: Layout, folder: Path, pooling: Pooling, rows: int | None = None) -> Written:
    """Write the tokenizer's files, with rules for prompts only if more texts are read as we read them then.

    rows  of the embeddings, if known: a pad token beyond them is replaced
    """
    prefixes = prompts(input_format, split)
    pad = _pad_token(input_format.tokenizer, rows)
    best = _write(input_format, split, folder, pooling, prefixes, None, pad)
    if split.slots > 1 or not telling(best.differences):
        return best
    named = asked(input_format)
    known = {name: (prefix, *named[name]) for name, prefix in prefixes.items() if prefix is not None}
    found = rules.find(input_format, split.runs[-1], best.tokenizer, known)
    if found is not None:
        ruled = _write(input_format, split, folder, pooling, prefixes, found, pad)
        if len(telling(ruled.differences)) < len(telling(best.differences)):
            return ruled
        save(input_format, split, folder, None, pad)
    return best


def telling(differences: Sequence[Difference]) -> list[Difference]:
    """Those that count: an empty text is nobody's input, and gets a note."""
    return [difference for difference in differences if difference.probe != EMPTY]


def _write(input_format, split, folder, pooling, prefixes, found: Rules | None, pad: str) -> Written:
    from transformers import AutoTokenizer

    save(input_format, split, folder, found, pad)
    # As others open it: a family's own class could change it.
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    by_name = prefixes if found is None else {name: found.prompts.get(name) for name in prefixes}
    texts = probes(input_format.spec.max_tokens)
    found_with = compare(input_format, tokenizer, by_name, pooling, True, texts)
    if not any(difference.kind == "pool" for difference in found_with):  # ids don't depend on what is pooled
        return Written(tokenizer, prefixes, by_name, True, tuple(found_with), found)
    found_without = compare(input_format, tokenizer, by_name, pooling, False, texts)
    include = len(found_with) <= len(found_without)
    return Written(tokenizer, prefixes, by_name, include, tuple(found_with if include else found_without), found)


def layout(input_format: InputFormat) -> Layout:
    """The split of the document template."""
    parts = input_format.template("", "document")
    slots = sum(part.slot == "text" for part in parts)
    lead = next(place for place, part in enumerate(parts) if not _is_fixed(part))
    # Shortest first: a letter that SentencePiece joins with its dummy space shows where the text begins, others hide it.
    packed = sorted((input_format.pack([letter]).ids.tolist() for letter in _LETTERS), key=len)
    for one, other in pairwise(packed):
        places = [place for place, ids in enumerate(zip(one, other, strict=False)) if ids[0] != ids[1]]
        if len(one) == len(other) and len(places) == slots:
            borders = [-1, *places, len(one)]
            runs = tuple(tuple(one[borders[i] + 1 : borders[i + 1]]) for i in range(slots + 1))
            return Layout(runs, lead if slots == 1 else len(runs[0]))
    raise InputError(
        f"the document template cannot be exported: none of the letters {_LETTERS} shows which of its tokens are fixed; a "
        "template part seems to merge with every text, so put a space or a special token between them"
    )


def max_seq_length(input_format: InputFormat, split: Layout) -> int:
    """The limit to give to other programs, which count the text once even if the template repeats it."""
    spec = input_format.spec
    fixed = sum(map(len, split.runs))
    room = (spec.max_tokens - fixed) // split.slots
    return fixed + min(room, spec.max_text_tokens or room)


def asked(input_format: InputFormat) -> dict[str, tuple[str, Role]]:
    """Instruction and role of every prompt name, as `Encoder.encode` understands them."""
    prompts = input_format.spec.prompts
    names = {name: (text, "query") for name, text in prompts.items() if name != "document"}
    return {"query": (prompts.get("query", ""), "query"), "document": ("", "document"), **names}


def prompts(input_format: InputFormat, split: Layout) -> dict[str, str | None]:
    """What stands between the post-processor's tokens and the text, by prompt name; None where no prefix can say it."""
    document = input_format.render(_SLOT, "", "document").split(_SLOT)
    names = "".join(input_format.tokenizer.convert_ids_to_tokens(list(split.runs[0][: split.lead])))
    found: dict[str, str | None] = {}
    for name, (instruction, role) in asked(input_format).items():
        rendered = input_format.render(_SLOT, instruction, role).split(_SLOT)
        if split.slots > 1:
            found[name] = "" if rendered == document else None
        else:
            same = rendered[1:] == document[1:] and rendered[0].startswith(names)
            found[name] = rendered[0][len(names) :] if same else None
    return found


def _pad_token(tokenizer: "PreTrainedTokenizerBase", rows: int | None) -> str:
    """The token that batches are padded with. Many tokenizers were given a pad token that the model has no row for."""
    known = [tokenizer.pad_token_id, tokenizer.eos_token_id, 0]
    found = next(token for token in known if token is not None and (rows is None or token < rows))
    return tokenizer.convert_ids_to_tokens(found)


def save(input_format: InputFormat, split: Layout, folder: Path, found: Rules | None, pad: str) -> None:
    """Write the tokenizer's files, with the template as its post-processor and the rules in its normalizer."""
    tokenizer = input_format.tokenizer
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    # From the text: setting it on the tokenizer itself would change the encoder that is being saved.
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.update(truncation=None, padding=None)
    backend["post_processor"] = _post_processor(backend["post_processor"], split, tokenizer)
    if found is not None:
        backend["normalizer"] = rules.normalizer(backend["normalizer"], found)
        if found.special:
            backend["added_tokens"].append(rules.added_token(tokenizer, found.special))
            backend["added_tokens"].sort(key=lambda token: token["id"])
    path.write_text(json.dumps(backend, ensure_ascii=False, indent=1), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # add_bos_token and add_eos_token, where present, would build another post-processor when it is opened.
    unsaid = ("is_local", "local_files_only", "add_bos_token", "add_eos_token", "auto_map", "processor_class")
    for key in (*unsaid, *(dict(found.plain) if found else {})):
        config.pop(key, None)
    config |= {
        # A family's own class rebuilds the tokenizer by its own rules; this one takes tokenizer.json as it stands, and
        # unlike its newer name it is known to transformers 4 too.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": "right",
        "truncation_side": "right",
        "model_max_length": max_seq_length(input_format, split),
        "pad_token": pad,
        **({"sep_token": found.special} if found and found.special else {}),
    }
    path.write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")


def _post_processor(former: dict[str, Any] | None, split: Layout, tokenizer: "PreTrainedTokenizerBase") -> dict:
    """The JSON of tokenizers' TemplateProcessing, after whatever part of `former` shapes character offsets."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    runs = [split.runs[0][: split.lead], *split.runs[1:]]
    pieces: list[dict] = []
    for number, run in enumerate(runs):
        pieces += [text] * (number > 0)
        pieces += [{"SpecialToken": {"id": name, "type_id": 0}} for name in tokenizer.convert_ids_to_tokens(list(run))]
    ids = sorted({token for run in runs for token in run})
    names = tokenizer.convert_ids_to_tokens(ids)
    template = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [*pieces, second],  # tokenizers want one; nobody encodes pairs with an embedding model
        "special_tokens": {
            name: {"id": name, "ids": [token], "tokens": [name]} for name, token in zip(names, ids, strict=True)
        },
    }
    kept = [processor for processor in _flat(former) if processor["type"] == "ByteLevel"]
    return {"type": "Sequence", "processors": [*kept, template]} if kept else template


def _flat(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    if processor is None:
        return []
    if processor["type"] == "Sequence":
        return [inner for outer in processor["processors"] for inner in _flat(outer)]
    if processor["type"] == "RobertaProcessing":  # trims offsets on the side, as ByteLevel does
        shared = {key: processor[key] for key in ("add_prefix_space", "trim_offsets")}
        return [{"type": "ByteLevel", **shared, "use_regex": True}]
    return [processor]


def _is_fixed(part: Part) -> bool:
    return part.special is not None or part.token is not None


# -------------------------------------------------------------------------------------------------------------- probes


def probes(max_tokens: int) -> dict[str, str]:
    """Texts that bring out what engines do differently, by name."""
    # Of seven words each, so 1.7 times the limit if a word is a token: enough to be cut, and no more, for a tokenizer whose
    # template repeats the text takes time with the square of what it cuts off.
    many = "A river runs through the old town. " * (max_tokens // 4 + 2)
    return {
        "a plain text": "The river runs through the old town",
        "one letter": "a",
        "a final stop": "It was built of stone.",
        "other languages": "Zürich – naïve café, 東京 и Москва 🦜!",
        "code": "def area(r):\n    return 3.14 * r ** 2",
        "lines": "first line\n\nsecond line\tafter a tab",
        "digits first": "1848 was a year of floods",
        "another script first": "東京の川は長い",
        "punctuation first": ': (quoted) "text" [1]',
        "a text beyond the limit": many,
        "a text beyond the limit in lines": many.replace(" ", "\n"),
        "space before": "  river",
        "space after": "river  ",
        "a final newline": "river\n",
        EMPTY: "",
    }


def compare(
    input_format: InputFormat,
    tokenizer: "PreTrainedTokenizerBase",
    by_name: dict[str, str | None],
    pooling: Pooling,
    include_prompt: bool,
    texts: dict[str, str],
) -> list[Difference]:
    """Every text and prompt for which sentence-transformers reads or pools other tokens than we do.

    tokenizer  the saved one, opened again
    by_name    what is put before a text, None where nothing can be
    texts      by what to call them
    """
    found = []
    for name, (instruction, role) in asked(input_format).items():
        prompt = by_name[name]
        if prompt is None:
            found.append(Difference(prompt=name, probe="every text", kind="prompt"))
            continue
        counts = prompt and not include_prompt  # without a prompt nothing is left out
        skipped = rules.length(tokenizer, prompt, set(tokenizer.all_special_ids)) if counts else 0
        for probe, text in texts.items():
            tokens = input_format.pack([text], instruction, role)
            theirs = tokenizer(prompt + text, truncation="longest_first")["input_ids"]
            if bool(tokens.truncated[0]) and not text.isascii():
                continue  # the limit may fall inside a character: cuts_inside_characters tells of that
            if tokens.ids.tolist() != theirs:
                found.append(Difference(prompt=name, probe=probe, kind="ids"))
            elif not POOLERS[pooling].same_in_others(tokens.pool, skipped):
                found.append(Difference(prompt=name, probe=probe, kind="pool"))
    return found


def rare(input_format: InputFormat, written: Written, pooling: Pooling) -> list[str]:
    """Kinds of texts that hardly occur and are read otherwise by other programs. Not judged as differences."""
    names = written.tokenizer.special_tokens_map.values()
    texts = {
        "texts that begin with a line break": "\nriver",
        "texts that spell out a special token": " ".join(
            ["The", *(name for name in names if isinstance(name, str)), "river"]
        ),
    }
    judged = {difference.prompt for difference in telling(written.differences)}
    found = compare(input_format, written.tokenizer, written.prompts, pooling, written.include_prompt, texts)
    return list(dict.fromkeys(difference.probe for difference in found if difference.prompt not in judged))


def cuts_inside_characters(input_format: InputFormat, tokenizer: "PreTrainedTokenizerBase", prompt: str) -> bool:
    """Whether a long text of many-byte characters is cut elsewhere: we keep whole characters, other programs bytes.

    prompt  that of documents
    """
    texts = ["a" * start + "🦜" * input_format.spec.max_tokens for start in range(4)]
    ours = [input_format.pack([text]).ids.tolist() for text in texts]
    return ours != [tokenizer(prompt + text, truncation="longest_first")["input_ids"] for text in texts]

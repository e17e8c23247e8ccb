"""Where an engine's answer leaves ours, and what that says: token ids, direction, pooling, padding or numbers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import torch

from llm2enc.artifact import REQUIREMENTS, asked
from llm2enc.encoding import Encoder
from llm2enc.recipe import Pooling
from llm2enc.verification.probe_texts import LONG, Run
from llm2enc.verification.report import TOLERANCE
from llm2enc.verification.subprocesses import Answer

_MODES = {"alone": "alone", "batch": "in a batch", "left": "in a batch padded left", "right": "in one padded right"}
LENGTHS = 1e-2  # relative; vectors rounded to 16 bits are not exactly as long as promised


@dataclass(frozen=True)
class Reference:
    """What the directory's own encoder gives, in float32."""

    encoder: Encoder
    texts: dict[str, str]
    vectors: dict[str, np.ndarray]
    """(N, D) by prompt; unit length only if the encoder normalises."""
    ids: dict[str, list[list[int]]]

    @staticmethod
    def of(encoder: Encoder, texts: dict[str, str], prompts: list[str]) -> "Reference":
        known = asked(encoder.input_format)
        packed = {prompt: encoder.input_format.pack(list(texts.values()), *known[prompt]) for prompt in prompts}
        # The limit may fall inside a character of several tokens, where programs cut differently: llm2enc.json says so.
        cut = np.any([tokens.truncated.numpy() for tokens in packed.values()], axis=0)
        kept = [number for number, text in enumerate(texts.values()) if text.isascii() or not cut[number]]
        texts = {kind: text for number, (kind, text) in enumerate(texts.items()) if number in kept}
        vectors = {prompt: encoder.encode(list(texts.values()), prompt_name=prompt) for prompt in prompts}
        ids = {}
        for prompt, tokens in packed.items():
            rows = tokens.ids.split(tokens.lengths.tolist())
            ids[prompt] = [rows[number].tolist() for number in kept]
        return Reference(encoder, texts, vectors, ids)

    def absolute_positions(self) -> bool:
        """Whether positions are looked up in a table, so that padding in front moves every token."""
        names = ("wpe", "position", "pos_emb")
        return any(
            isinstance(module, torch.nn.Embedding) and any(name in path.rpartition(".")[2] for name in names)
            for path, module in self.encoder.backbone.decoder.named_modules()
        )


@dataclass
class Comparison:
    """One engine's answer beside ours."""

    reference: Reference
    dtype: str
    cosine: float | None = None
    """None if no text could be measured."""
    difference: float | None = None
    length: float = 1.0
    """The length of one of its vectors over that of ours, of the text where they differ most."""
    bad: list[tuple[str, str, str]] = field(default_factory=list)
    """(prompt, mode, kind of text) where the cosine is too small."""
    ids: list[tuple[str, str]] = field(default_factory=list)
    """(prompt, kind of text) with other token ids."""
    left_out: list[str] = field(default_factory=list)
    """Kinds of text that it cannot take."""
    broken: list[str] = field(default_factory=list)
    """Kinds of text for which it gives no numbers (NaN)."""
    shifted: bool = False
    """Only padding in front moves its vectors, and positions are absolute: no fault of the directory."""

    @property
    def agrees(self) -> bool:
        return self.cosine is not None and not self.bad and abs(self.length - 1) <= LENGTHS


def compare(reference: Reference, answer: Answer, runs: list[Run], dtype: str) -> Comparison:
    """The answer measured in every run it has."""
    found = Comparison(reference, dtype)
    kinds, cosines = list(reference.texts), {}
    for run, text, ours, theirs in _pairs(reference, answer, runs):
        place = (run.prompt, run.mode, kinds[text])
        if answer.ids[run.prompt][text] is None:
            found.left_out += [kinds[text]] * (kinds[text] not in found.left_out)
            continue
        if not (np.isfinite(theirs).all() and theirs.any()):
            found.broken += [kinds[text]] * (kinds[text] not in found.broken)
            found.bad.append(place)
            continue
        lengths = np.linalg.norm(ours), np.linalg.norm(theirs)
        one, other = ours / lengths[0], theirs / lengths[1]
        cosines[place] = (float(one @ other), float(np.abs(one - other).max()))
        ratio = float(lengths[1] / lengths[0])
        if answer.normalizes and abs(ratio - 1) > abs(found.length - 1):
            found.length = ratio
    bad = [place for place, (cosine, _) in cosines.items() if not cosine >= 1 - TOLERANCE[dtype]]
    if bad and all(mode == "left" for _, mode, _ in bad) and reference.absolute_positions():
        found.shifted, bad = True, []
        cosines = {place: numbers for place, numbers in cosines.items() if place[1] != "left"}
    found.bad += bad
    found.cosine = min((cosine for cosine, _ in cosines.values()), default=None)
    found.difference = max((difference for _, difference in cosines.values()), default=None)
    found.ids = [
        (prompt, kind)
        for prompt, rows in answer.ids.items()
        for kind, ours, theirs in zip(kinds, reference.ids[prompt], rows, strict=True)
        if theirs is not None and ours != theirs
    ]
    if all(kind != LONG for _, _, kind in cosines):  # too long to be run; other ids give another vector
        found.bad += [(prompt, "alone", kind) for prompt, kind in found.ids if kind == LONG]
    return found


def _pairs(reference: Reference, answer: Answer, runs: list[Run]) -> Iterator[tuple[Run, int, np.ndarray, np.ndarray]]:
    """(run, number of the text, our vector, theirs)."""
    for number, vectors in answer.vectors.items():
        for text, theirs in zip(runs[number].order, vectors, strict=True):
            yield runs[number], text, reference.vectors[runs[number].prompt][text], theirs


# --------------------------------------------------------------------------------------------------------------- words


def where(found: Comparison, runs: list[Run], answer: Answer) -> str:
    """Which texts, prompts and batches, and whether the token ids are already others."""
    if found.cosine is None and not found.bad:
        return "it takes none of the texts"
    if not found.bad:
        return f"vectors are {found.length:.3g} times as long as ours; they point the same way"
    parts = []
    if found.broken:
        parts.append(f"no numbers (NaN, infinity or nothing but zeros) for {_some(found.broken)}")
    elif found.ids:
        prompt, kind = found.ids[0]
        text = list(found.reference.texts).index(kind)
        ours, theirs = found.reference.ids[prompt][text], answer.ids[prompt][text] or []
        parts.append(f"token ids differ for {_some([kind for _, kind in found.ids])}: {_ids(ours, theirs)}")
    else:
        parts.append("token ids are equal, states or pooling differ")
    ran = {(run.prompt, run.mode) for run in runs}
    kinds = dict.fromkeys(kind for *_, kind in found.bad)
    parts.append("for every text" if len(kinds) >= len(found.reference.texts) - 1 else f"for {_some(list(kinds))}")
    modes, prompts = (list(dict.fromkeys(place[index] for place in found.bad)) for index in (1, 0))
    if len(modes) < len({mode for _, mode in ran}):
        parts.append("only " + " and ".join(_MODES[mode] for mode in modes))
    if len(prompts) < len({prompt for prompt, _ in ran}):
        parts.append(f"only with prompt {', '.join(map(repr, prompts))}")
    return "; ".join(parts)


def remedy(found: Comparison, answer: Answer, runs: list[Run], engine: str, file: str) -> str:
    """What to do about it. Our encoder is read in other ways until one gives the engine's vectors."""
    again = f"write {file} again: llm2enc export DIR --to {file.partition('/')[0]}" if file else ""
    if found.broken and file and found.dtype != "float32":
        return f"{found.dtype} cannot hold the states of this model: use the file in float32"
    if found.broken or found.cosine is None:
        return again or f"compare the release of {engine} with the tested ones"
    if not found.bad:
        return again or "put 2_Normalize back into modules.json, or normalise the vectors yourself"
    modes = {mode for _, mode, _ in found.bad}
    limit = _other_limit(found, answer)
    if limit and not file:
        return f"it cuts texts at {limit} tokens: correct max_seq_length in sentence_bert_config.json"
    if found.ids:
        files = "tokenizer.json and tokenizer_config.json are not as they were written; save the directory again"
        return again or files
    if modes == {"left"}:
        return "pad on the right: padding_side in tokenizer_config.json"
    if "alone" not in modes:
        return "texts of a batch reach each other or their padding; " + (
            again or "open it with attn_implementation 'eager', or one text at a time"
        )
    like = _variant(found, answer, runs)
    if like == "causal":
        needs = ", ".join(f"{name}{specifier}" for name, specifier in REQUIREMENTS.items())
        return "these are the vectors of the causal model: " + (
            again or f"config.json needs is_causal false, and the stack {needs}"
        )
    if like:
        return f"these are the vectors of {like} pooling: " + (again or "correct 1_Pooling/config.json")
    return again or f"{engine} computes other states from the same weights: compare its release with the tested ones"


def _other_limit(found: Comparison, answer: Answer) -> int:
    """The number of tokens at which the engine cuts the texts that we cut elsewhere; 0 if that is not all."""
    kinds = list(found.reference.texts)
    lengths = {
        (len(answer.ids[prompt][kinds.index(kind)] or []), len(found.reference.ids[prompt][kinds.index(kind)]))
        for prompt, kind in found.ids
    }
    theirs, ours = ({pair[side] for pair in lengths} for side in (0, 1))
    shorter = len(theirs) == 1 and all(one < other for one, other in lengths)
    longer = len(ours) == 1 and all(one > other for one, other in lengths)
    return max(theirs) if shorter or longer else 0


def _variant(found: Comparison, answer: Answer, runs: list[Run]) -> str:
    """`causal`, or the pooling, that gives the vectors of the engine; empty if none does."""
    encoder, texts = found.reference.encoder, list(found.reference.texts.values())
    alone = next(number for number, run in enumerate(runs) if run.mode == "alone")
    prompt, order = runs[alone].prompt, runs[alone].order
    theirs = answer.vectors[alone]
    poolings = [pooling for pooling in get_args(Pooling) if pooling != encoder.pooling]
    variants: dict[str, dict] = {"causal": {"causal": True}} if encoder.backbone.bidirectional else {}
    for name, change in {**variants, **{pooling: {"pooling": pooling} for pooling in poolings}}.items():
        ours = encoder.variant(**change).encode([texts[index] for index in order], prompt_name=prompt)
        cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
        if np.nanmin(cosines) >= 1 - TOLERANCE[found.dtype]:
            return name.replace("_", " ")
    return ""


def _ids(ours: list[int], theirs: list[int]) -> str:
    """The first place where they part, with two ids before it."""
    place = next((i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), None)
    if place is None and len(theirs) < len(ours):
        return f"its last {len(ours) - len(theirs)} are missing ({ours[len(theirs) :][:5]})"
    if place is None:
        return f"it adds {theirs[len(ours) :][:5]} at the end"
    start = max(0, place - 2)
    return f"from token {place} on {theirs[start : place + 3]}, ours {ours[start : place + 3]}"


def _some(kinds: list[str]) -> str:
    kinds = list(dict.fromkeys(kinds))
    return ", ".join(kinds[:4]) + (f" and {len(kinds) - 4} more" if len(kinds) > 4 else "")

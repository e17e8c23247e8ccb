"""Lengths in tokens, and what truncation takes, by the very template, tokenizer and limit of the training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm2enc.audit.checks.quality import plural
from llm2enc.audit.chunks import Chunk, Row
from llm2enc.audit.report import Finding, graded, percent
from llm2enc.data import ScoredPair
from llm2enc.recipe import Role
from llm2enc.text import InputFormat

QUANTILES = {"5%": 0.05, "50%": 0.5, "95%": 0.95, "most": 1.0}
_PIECE = 256  # texts tokenized at a time
_MOST = 4000  # texts of a side that are measured: of many negatives the first rows'
_NO_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class InputView:
    """How a stage turns texts into tokens."""

    input_format: InputFormat
    max_tokens: int | None = None
    """The stage's own limit, if it is below the template's."""
    block_tokens: int | None = None
    """Of stages that join texts and cut them into blocks (clm, mntp): no template, no truncation."""
    plain: bool = False
    """No recipe was given: the template stands in for one that is not known."""
    described: str = ""
    """Where this comes from, for the report."""

    @property
    def limit(self) -> int:
        return min(self.max_tokens or self.input_format.spec.max_tokens, self.input_format.spec.max_tokens)


def prompt_of(side: str, pair: Row) -> tuple[str, Role]:
    """Instruction and role of a text of this side, as contrastive training gives them (objectives/contrastive.py)."""
    if isinstance(pair, str):
        return "", "document"
    if isinstance(pair, ScoredPair):
        instruction = pair.instruction if side == "first" else pair.second_instruction
        return instruction, "query" if instruction else "document"
    if side == "query":
        return pair.instruction, "query"
    return pair.document_instruction, "query" if pair.document_instruction else "document"


def encodable(text: str) -> str:
    """The text with lone surrogates replaced, which have a finding of their own."""
    whole = text.encode("utf-8", "replace").decode()
    return text if whole == text else whole  # the text itself may know its title


def measure(sample: Chunk, view: InputView) -> tuple[dict[str, dict[str, Any]], list[Finding]]:
    """Lengths by side of the sampled texts, and what to know about them.

    Tokens are those of the text without template; truncated and lost are counted with it, as the model reads it.
    """
    found: dict[str, dict[str, Any]] = {}
    findings: list[Finding] = []
    for side, column in sample.columns.items():
        if not column.texts:
            continue
        texts = [encodable(text) for text in column.texts[:_MOST]]
        alone = np.array([len(ids) for ids in _plain(view.input_format, texts)])
        found[side] = {
            "texts": len(texts),
            "tokens": {part: float(np.quantile(alone, share)) for part, share in QUANTILES.items()},
            "mean": float(alone.mean()),
        }
        if view.block_tokens:
            continue
        rows = [sample.rows[row] for row in column.rows[:_MOST].tolist()]
        try:
            found[side] |= _truncation(texts, [prompt_of(side, row) for row in rows], view)
        except ValueError as error:  # the instruction alone fills the input
            findings.append(Finding("no-room", "error", f"{plural(side)}: {error}", "shorten the instruction"))
            continue
        findings += _cut(side, found[side], view)
    return found, findings


def _plain(input_format: InputFormat, texts: Sequence[str]) -> list[list[int]]:
    return [
        ids for begin in range(0, len(texts), _PIECE) for ids in input_format.plain_ids(texts[begin : begin + _PIECE])
    ]


def _truncation(texts: list[str], asks: list[tuple[str, Role]], view: InputView) -> dict[str, Any]:
    spec = view.input_format.spec.model_copy(update={"max_tokens": _NO_LIMIT, "max_text_tokens": None})
    whole = _packed(InputFormat(spec, view.input_format.tokenizer), texts, asks, None)[0]
    kept, cut = whole.copy(), np.zeros(len(texts), dtype=bool)
    # Shorter texts cannot be cut, unless the text has a limit of its own.
    long = np.flatnonzero((whole > view.limit) | (view.input_format.spec.max_text_tokens is not None)).tolist()
    kept[long], cut[long] = _packed(
        view.input_format, [texts[i] for i in long], [asks[i] for i in long], view.max_tokens
    )
    return {
        "with_template": dict(zip(("95%", "99%", "most"), np.quantile(whole, (0.95, 0.99, 1.0)).tolist(), strict=True)),
        "limit": view.limit,
        "truncated": int(cut.sum()),
        "truncated_share": float(cut.mean()),
        "tokens_lost_share": float((whole - kept).sum() / whole.sum()),
    }


def _packed(
    input_format: InputFormat, texts: list[str], asks: list[tuple[str, Role]], limit: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each text with its template (N,) and whether it was cut (N,)."""
    lengths, cut = np.zeros(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=bool)
    for role in ("query", "document"):
        places = [place for place, (_, asked_role) in enumerate(asks) if asked_role == role]
        for begin in range(0, len(places), _PIECE):
            piece = places[begin : begin + _PIECE]
            tokens = input_format.pack([texts[i] for i in piece], [asks[i][0] for i in piece], role, limit)
            lengths[piece], cut[piece] = tokens.lengths.numpy(), tokens.truncated.numpy()
    return lengths, cut


def _cut(side: str, lengths: dict[str, Any], view: InputView) -> list[Finding]:
    if not lengths["truncated"]:
        return []
    spec = view.input_format.spec
    own = f" (the text alone at {spec.max_text_tokens})" if spec.max_text_tokens else ""
    what = (
        f"{percent(lengths['truncated_share'])} of the sampled {plural(side)} are cut at {view.limit} tokens{own}, which "
        f"loses {percent(lengths['tokens_lost_share'])} of their tokens"
    )
    # The first of 95 %, 99 % and all for which the limit would have to grow.
    needed = [part for part, tokens in lengths["with_template"].items() if tokens > view.limit]
    part = needed[0] if needed and not own else "95%" if own and lengths["truncated_share"] > 0.05 else "most"
    name = f"max_text_tokens {np.ceil(lengths['tokens'][part]):.0f} with max_tokens" if own else "max_tokens"
    whole = "all" if part == "most" else part.replace("%", " %")
    remedy = (
        f"{name} {np.ceil(lengths['with_template'][part]):.0f} would keep {whole} of them whole; or split long texts"
    )
    severity = graded(lengths["truncated_share"], warning=0.1)
    return [Finding("truncated", severity, what, remedy, lengths["truncated"], lengths["texts"])]

"""Boilerplate in front of the texts: prefixes that most rows share, and instructions or template literals written twice."""

import numpy as np

from llm2enc.audit.checks.lengths import InputView, prompt_of
from llm2enc.audit.checks.quality import plural
from llm2enc.audit.chunks import Chunk
from llm2enc.audit.report import Finding, graded
from llm2enc.recipe import Role

SHARED = 0.8  # share of the texts from which a prefix is boilerplate
KNOWN = ("query:", "passage:", "document:", "search_query:", "search_document:", "title:", "text:", "question:",
         "instruct:", "represent this", "clustering:", "classification:")  # fmt: skip


def findings(numbers: list[int], sample: Chunk, view: InputView | None) -> list[Finding]:
    """Of the sampled texts."""
    found = []
    for side, column in sample.columns.items():
        prefix = common_prefix(column.texts)
        if len(column.texts) >= 20 and prefix:
            hit = np.array([text.startswith(prefix) for text in column.texts])
            severity = "warning" if prefix.lower().startswith(KNOWN) else "note"
            what = f"{hit.mean():.0%} of the {plural(side)} begin with {prefix!r}"
            remedy = "take it out of the texts and write it into the template, if every text is to have it"
            rows = tuple(numbers[int(column.rows[i])] for i in np.flatnonzero(hit)[:2])
            found.append(Finding("shared-prefix", severity, what, remedy, int(hit.sum()), len(hit), rows))
        found += _written_twice(numbers, sample, side, view)
    return found


def common_prefix(texts: list[str], share: float = SHARED) -> str:
    """The longest prefix of three signs and more, up to the end of a word, that this share of different texts has.

    Sorted, texts of one prefix are neighbours: it is the common prefix of the two ends of a window of that size.
    """
    heads = sorted({text[:200] for text in texts})
    window = max(2, int(np.ceil(share * len(heads))))
    best = ""
    for first, last in zip(heads, heads[window - 1 :], strict=False):
        size = next(
            (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
        )
        best = max(best, first[:size], key=len)
    cut = max((place + 1 for place, sign in enumerate(best) if not sign.isalnum()), default=0)
    return best[:cut] if len(best[:cut].strip()) >= 3 else ""


def _written_twice(numbers: list[int], sample: Chunk, side: str, view: InputView | None) -> list[Finding]:
    """Texts that begin with what the template puts in front of them: the instruction, or a literal."""
    column = sample.columns[side]
    hits: dict[str, list[int]] = {"instruction": [], "literal": []}
    leads: dict[tuple[str, Role], str] = {}
    for text, row in zip(column.texts, column.rows.tolist(), strict=True):
        pair = sample.rows[row]
        instruction, role = prompt_of(side, pair)
        start = text.lstrip().lower()
        own = ("" if isinstance(pair, str) else pair.instruction).strip(" :.\n\t").lower()
        if len(own) >= 8 and start.startswith(own):
            hits["instruction"].append(row)
        if view is not None and not view.block_tokens:
            if (instruction, role) not in leads:
                leads[instruction, role] = _lead(view, instruction, role)
            lead = leads[instruction, role]
            if lead and start.startswith(lead):
                hits["literal"].append(row)
    said = {
        "instruction": (
            "already hold their instruction, which is added once more",
            "take the instruction out of the text",
        ),
        "literal": (
            "begin with what the template adds in front of them",
            "take it out of the texts or of the template",
        ),
    }
    return [
        Finding(
            f"{name}-twice",
            graded(len(rows) / len(column.texts), warning=0.001, error=0.5),
            f"{len(rows):,} of {len(column.texts):,} sampled {plural(side)} {said[name][0]}",
            said[name][1],
            len(rows),
            len(column.texts),
            tuple(numbers[row] for row in dict.fromkeys(rows))[:2],
        )
        for name, rows in hits.items()
        if rows
    ]


def _lead(view: InputView, instruction: str, role: Role) -> str:
    """The literals right in front of the text in the template, in lower case; empty below three signs."""
    lead = ""
    for part in view.input_format.template(instruction, role):
        if part.slot == "text":
            break
        lead = lead + part.literal if part.literal is not None else ""
    return lead.strip().lower() if len(lead.strip()) >= 3 else ""

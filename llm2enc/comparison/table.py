"""The comparison on one screen of a terminal."""

from typing import TYPE_CHECKING

from llm2enc import terminal
from llm2enc.comparison.results import Candidate, Comparison
from llm2enc.comparison.summary import NONE, anisotropy, by_type, everyone, number, plain, tokens, words
from llm2enc.terminal import Column

if TYPE_CHECKING:
    from rich.table import Table


def table(comparison: Comparison) -> "Table":
    """Candidates best first, bold the best one, dim the baseline."""
    types = list(dict.fromkeys(outcome.type for one in comparison.candidates for outcome in one.outcomes))
    tested = any(candidate.prefix for candidate in comparison.candidates)
    numbers = [*map(words, types), "tokens", "random\ncosine", *(["prefix"] if tested else [])]
    columns = [
        "candidate",
        Column("mean ± 95 %", "right", wrap=False),
        *(Column(name, "right") for name in numbers),
    ]
    candidates = everyone(comparison)
    rows = [_cells(candidate, types)[: len(columns)] for candidate in candidates]
    styles = ["dim" if one is comparison.baseline else "" if place else "bold" for place, one in enumerate(candidates)]
    return terminal.table(columns, rows, plain(comparison.title), styles=styles)


def _cells(candidate: Candidate, types: list[str]) -> list[str]:
    mean, means = candidate.mean, by_type(candidate)
    return [
        plain(candidate.name),
        f"{number(mean.value)} ±{number((mean.high - mean.low) / 2)}",
        *(number(means[type].value) if type in means else NONE for type in types),
        tokens(candidate),
        number(anisotropy(candidate), 2),
        number(candidate.prefix.accuracy.value, 2) if candidate.prefix else NONE,
    ]

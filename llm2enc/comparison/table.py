"""The comparison on one screen of a terminal."""

from typing import TYPE_CHECKING

from llm2enc.comparison.results import Candidate, Comparison
from llm2enc.comparison.summary import NONE, anisotropy, by_type, everyone, number, plain, tokens, words

if TYPE_CHECKING:
    from rich.table import Table


def table(comparison: Comparison) -> "Table":
    """Candidates best first, bold the best one, dim the baseline."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    types = list(dict.fromkeys(outcome.type for one in comparison.candidates for outcome in one.outcomes))
    shown = Table(
        box=box.SIMPLE_HEAD,
        title=Text(plain(comparison.title)),
        title_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("candidate", overflow="fold", min_width=20)
    shown.add_column("mean ± 95 %", justify="right", no_wrap=True)
    for type in types:
        shown.add_column(words(type), justify="right")
    shown.add_column("tokens", justify="right")
    shown.add_column("random\ncosine", justify="right")
    tested = any(candidate.prefix for candidate in comparison.candidates)
    if tested:
        shown.add_column("prefix", justify="right")
    for place, candidate in enumerate(everyone(comparison)):
        cells = _cells(candidate, types)[: None if tested else -1]
        style = "dim" if candidate is comparison.baseline else "bold" if place == 0 else ""
        # Text, not str: a name in square brackets is no markup.
        shown.add_row(*(Text(cell) for cell in cells), style=style)
    return shown


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

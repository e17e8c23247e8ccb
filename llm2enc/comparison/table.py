"""The comparison on one screen of a terminal."""

from typing import TYPE_CHECKING

from llm2enc import terminal
from llm2enc.comparison.results import Comparison, SystemResult
from llm2enc.comparison.summary import NONE, anisotropy, by_type, everyone, number, plain, tokens, words
from llm2enc.terminal import Column

if TYPE_CHECKING:
    from rich.table import Table


def table(comparison: Comparison) -> "Table":
    """Systems best first, bold the best one, dim the baseline."""
    types = list(dict.fromkeys(outcome.type for one in comparison.systems for outcome in one.outcomes))
    tested = any(system.prefix for system in comparison.systems)
    numbers = [*map(words, types), "tokens", "random\ncosine", *(["prefix"] if tested else [])]
    columns = [
        "system",
        Column("mean ± 95 %", "right", wrap=False),
        *(Column(name, "right") for name in numbers),
    ]
    systems = everyone(comparison)
    rows = [_cells(system, types)[: len(columns)] for system in systems]
    styles = ["dim" if one is comparison.baseline else "" if place else "bold" for place, one in enumerate(systems)]
    return terminal.table(columns, rows, plain(comparison.title), styles=styles)


def _cells(system: SystemResult, types: list[str]) -> list[str]:
    mean, means = system.mean, by_type(system)
    return [
        plain(system.name),
        f"{number(mean.value)} ±{number((mean.high - mean.low) / 2)}",
        *(number(means[type].value) if type in means else NONE for type in types),
        tokens(system),
        number(anisotropy(system), 2),
        number(system.prefix.accuracy.value, 2) if system.prefix else NONE,
    ]

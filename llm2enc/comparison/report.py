"""The comparison as one HTML file: self-contained, without scripts, readable on a phone and on paper."""

import base64
import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from llm2enc.comparison import plots
from llm2enc.comparison.results import Comparison, SystemResult
from llm2enc.comparison.summary import (
    NONE,
    Score,
    anisotropy,
    by_task,
    by_type,
    count,
    everyone,
    kind,
    number,
    plain,
    seconds,
    spread,
    tasks,
    tokens,
    words,
)
from llm2enc.evaluation import Interval
from llm2enc.storage import replace_text

FULL, HALF = 1010, 472  # pixels inside a card of the whole and of half the page's width


class Cell(NamedTuple):
    """One cell of a table; `small` is a second line below its text, `colour` that of a dot before it."""

    text: str
    small: str = ""
    best: bool = False
    colour: str = ""


class Table(NamedTuple):
    """The rows hold the look of the row (a class of report.css) and its cells; the first cell is its head."""

    name: str
    caption: str
    heads: list[Cell]
    rows: list[tuple[str, list[Cell]]]


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the report. A reader of `path` sees the old file or the whole new one, never half of it.

    OSError if the folder does not exist or cannot be written.
    """
    replace_text(path, render(comparison))


def render(comparison: Comparison) -> str:
    """The HTML. Every text is escaped; each figure is an SVG image inside the page."""
    environment = Environment(
        loader=PackageLoader("llm2enc.comparison", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if hasattr(value, "__html__") else plain(str(value)),  # a macro's result is HTML
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = everyone(comparison)
    return environment.get_template("report.html.jinja").render(
        comparison=comparison,
        systems=_systems(comparison),
        figures=_figures(comparison),
        tasks=_tasks(comparison),
        differences=_differences(comparison),
        facts=({"models": ", ".join(comparison.models)} if comparison.models else {}) | comparison.facts,
        types={outcome.type for outcome in tasks(comparison)},
        metrics={outcome.metric: words(outcome.metric) for outcome in tasks(comparison)},
        cosines=any(len(system.similarities.random) for system in shown),
        prefixes=any(system.prefix for system in shown),
    )


# -------------------------------------------------------------------------------------------------------------- figures


class Drawing(NamedTuple):
    """A figure of the page."""

    draw: Callable[[Comparison, int], Figure]
    alt: str
    caption: str
    width: int = HALF
    needed: Callable[[Comparison], object] = bool
    """True of a comparison that has what the figure shows."""


DRAWINGS = (
    Drawing(
        plots.scores,
        "Scores with 95 % intervals, by system",
        "Further right is better; a line is the 95 % interval, the dashed line is the score of words alone (TF-IDF), and "
        "every panel has its own scale.",
        FULL,
    ),
    Drawing(
        plots.cost,
        "Mean score against tokens per text",
        "Higher is better, further left is cheaper; a line is the 95 % interval, and points of nearly the same cost "
        "are drawn side by side.",
        needed=lambda comparison: comparison.systems[1:],  # one point is no comparison
    ),
    Drawing(
        plots.similarities,
        "Distributions of cosines of unrelated and of related texts",
        "The further the coloured hill lies to the right of the grey one, the better cosine separates related texts from "
        "others; a narrow grey hill far from 0 is a space that is used in few directions.",
        needed=lambda comparison: any(len(c.similarities.random) for c in everyone(comparison)),
    ),
    Drawing(
        plots.differences,
        "How far the best system lies above each other one",
        "Where a line crosses zero (hollow point), the difference is not significant on these texts.",
        needed=lambda comparison: comparison.differences,
    ),
    Drawing(
        plots.layers,
        "Mean score by the layer that is read",
        "The ring marks the layer whose vectors score best; it was chosen on these very texts, so expect a little less "
        "on others.",
        needed=lambda comparison: comparison.layers,
    ),
    Drawing(
        plots.prefix,
        "Prefix test: accuracy and movement, by system",
        "A causal model has read no ending when it reads the beginning: it is at chance and does not move; a "
        "bidirectional one does both if it makes use of what follows.",
        needed=lambda comparison: any(system.prefix for system in comparison.systems),
    ),
)


def image(figure: Figure) -> str:
    """A figure as the URI of an SVG image, whose texts are texts: the browser has a font for every letter."""
    out = BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "llm2enc"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(out, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def _figures(comparison: Comparison) -> list[dict[str, str]]:
    found = []
    for one in DRAWINGS:
        if one.needed(comparison):
            gains = _gains(comparison) if one.draw is plots.layers else ""
            wide, narrow = (image(one.draw(comparison, width)) for width in (one.width, plots.NARROW))
            found.append({"wide": wide, "narrow": narrow, "alt": one.alt, "caption": one.caption + gains})
    return found


def _gains(comparison: Comparison) -> str:
    """How far the best layers lie above the last."""
    return "".join(
        f" {one.name}: layer {int(np.argmax(one.scores))} lies {number(one.gain.value)} ({number(one.gain.low)} to "
        f"{number(one.gain.high)}) above the last."
        for one in comparison.layers
        if one.gain
    )


# --------------------------------------------------------------------------------------------------------------- tables


def _systems(comparison: Comparison) -> Table:
    shown = everyone(comparison)
    types = list(dict.fromkeys(outcome.type for outcome in tasks(comparison)))
    columns = {"mean score": _scores([c.mean for c in shown])}
    if len(types) > 1:  # with one type its mean is the mean
        columns |= {words(type): _scores([by_type(c).get(type) for c in shown]) for type in types}
    columns["tokens per text"] = [Cell(tokens(c)) for c in shown]
    columns["seconds per 1,000"] = [Cell(seconds(c)) for c in shown]
    columns["anisotropy"] = [Cell(number(anisotropy(c))) for c in shown]
    columns["spread"] = [Cell(number(spread(c))) for c in shown]
    if any(c.prefix for c in shown):
        columns["prefix accuracy"] = _scores([c.prefix and c.prefix.accuracy for c in shown])
    rows = [
        (
            "baseline" if system is comparison.baseline else "" if place else "best",
            [_name(comparison, system, system.description), *(column[place] for column in columns.values())],
        )
        for place, system in enumerate(shown)
    ]
    caption = "Best system first. Below a score: its 95 % interval. Bold: the highest score of its column."
    if comparison.baseline:
        caption += f" {comparison.baseline.name}, the last row, is the baseline."
    return Table("systems", caption, [Cell("system"), *map(Cell, columns)], rows)


def _tasks(comparison: Comparison) -> Table:
    shown = everyone(comparison)
    found = [by_task(system) for system in shown]
    rows: list[tuple[str, list[Cell]]] = []
    type = None
    for outcome in tasks(comparison):
        if outcome.type != type:
            type = outcome.type
            rows.append(("group", [Cell(words(type))]))
        facts = f"{words(outcome.metric)}, {outcome.language}, {count(len(outcome.per_example), 'item')}"
        rows.append(("", [Cell(outcome.task, facts), *_scores([scores.get(outcome.task) for scores in found])]))
    caption = (
        "The task's main metric, and below it its 95 % interval over the task's items. Bold: the highest of its row."
    )
    return Table("tasks", caption, [Cell("task"), *(_name(comparison, system) for system in shown)], rows)


def _differences(comparison: Comparison) -> Table:
    rows = []
    for one in comparison.differences:
        near = one.interval
        value, low, high = (("+" if x > 0 else "") + number(x) for x in (near.value, near.low, near.high))
        above, certain = f"{100 * near.above_zero:.1f} %", "yes" if near.certain else "no"
        rows.append(
            ("", [Cell(one.better, f"above {one.worse}"), *map(Cell, (value, f"{low} to {high}", above, certain))])
        )
    heads = ["systems", "difference", "95 % interval", "draws above zero", "zero outside"]
    caption = "Mean score of the best system less that of the other, by paired bootstrap on the same items."
    return Table("differences", caption, [*map(Cell, heads)], rows)


def _scores(points: Sequence[Score | Interval | None]) -> list[Cell]:
    """Cells of scores that can be compared: the highest is bold if there is another one."""
    top = max((point.value for point in points if point), default=None) if len(points) > 1 else None
    return [
        Cell(number(one.value), f"{number(one.low)}–{number(one.high)}", one.value == top) if one else Cell(NONE)
        for one in points
    ]


def _name(comparison: Comparison, system: SystemResult, small: str = "") -> Cell:
    colour = plots.BASELINE if system is comparison.baseline else plots.COLOURS[kind(system.name)]
    return Cell(system.name, small, colour=colour)

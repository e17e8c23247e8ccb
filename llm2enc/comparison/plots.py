"""The figures of a comparison, for the report and for notebooks: one function each, a matplotlib Figure back.

Every figure is drawn for a width in CSS pixels (72 to the inch, so that a font of 12 points is one of 12 pixels): WIDE for
a screen, NARROW for a phone. Colours are those of Okabe and Ito (2008), which the colour-blind can tell apart: one for
each kind of system; systems of one kind differ by their marker.
"""

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from rich.cells import cell_len

from llm2enc.comparison.drawing import (
    COLUMN,
    FAINT,
    INK,
    RC,
    RULE,
    SMALL,
    TEXT,
    Style,
    columns,
    draw_hill,
    limits,
    marker,
    new_figure,
    shorten,
    side_by_side,
    style_ticks,
)
from llm2enc.comparison.results import Comparison
from llm2enc.comparison.summary import (
    OTHER,
    Score,
    anisotropy,
    by_task,
    by_type,
    count,
    everyone,
    kind,
    number,
    spread,
    tasks,
    words,
)
from llm2enc.errors import InputError
from llm2enc.evaluation import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, NARROW = 720, 326
COLOURS = {
    "causal": "#E69F00",
    "bidirectional": "#0072B2",
    "echo": "#009E73",
    "prompt": "#CC79A7",
    OTHER: "#D55E00",
}
BASELINE, UNRELATED = "#6b7075", "#8d9297"
DASHED = (0, (4, 3))
MARKERS = "osD^vPX*"
NAME = 48  # columns of a name
PANELS = 8  # tasks that get a panel of their own; with more of them, their types do


def styles(comparison: Comparison) -> dict[str, Style]:
    """By name: the colour says the kind, the marker which one of it."""
    found: dict[str, Style] = {}
    seen: dict[str, int] = {}
    for system in comparison.systems:
        of = kind(system.name)
        found[system.name] = Style(COLOURS[of], MARKERS[seen.setdefault(of, 0) % len(MARKERS)])
        seen[of] += 1
    if comparison.baseline:
        found[comparison.baseline.name] = Style(BASELINE, "x")
    return found


# -------------------------------------------------------------------------------------------------------------- figures


def scores(comparison: Comparison, width: int = WIDE) -> Figure:
    """Mean score, and that of every task (of every task type where the tasks are many), with 95 % intervals."""
    measured = tasks(comparison)
    shown = everyone(comparison)
    panels = [_Panel("mean", f"mean of {count(len(measured), 'task')}", [c.mean for c in shown])]
    if len(measured) == 1:
        panels = [_Panel(measured[0].task, measured[0].metric, panels[0].points)]
    elif len(measured) <= PANELS:
        found = [by_task(system) for system in shown]
        panels += [_Panel(o.task, o.metric, [one.get(o.task) for one in found]) for o in measured]
    else:
        found = [by_type(system) for system in shown]
        for type in dict.fromkeys(outcome.type for outcome in measured):
            of = [outcome for outcome in measured if outcome.type == type]
            axis = f"{of[0].metric}, {count(len(of), 'task')}"
            panels.append(_Panel(words(type), axis, [one.get(type) for one in found]))
    if comparison.baseline:
        for panel in panels:
            panel.line = panel.points[-1] and panel.points[-1].value
    by = "task" if len(measured) <= PANELS else "task type"
    return _rows(f"Scores by {by}", [c.name for c in shown], panels, styles(comparison), width)


@matplotlib.rc_context(RC)
def cost(comparison: Comparison, width: int = WIDE) -> Figure:
    """Mean score against tokens per text; the names are below, in order."""
    look, shown = styles(comparison), comparison.systems
    figure = new_figure("Score against cost", width, 330 + 17 * len(everyone(comparison)))
    axes = figure.add_subplot(xlabel="tokens that the model reads per text", ylabel="mean score")
    costs = [system.tokens for system in shown]
    # A third at least, so that a token more does not look like much; and 9 pixels to stand side by side.
    pixel = (max(*costs, 1.3 * min(costs)) - min(costs)) / (width - 180)
    beside = side_by_side(costs, pixel * min(9, 100 / len(costs)))
    axes.set_xlim(min(costs) - 62 * pixel, max(*costs, 1.3 * min(costs)) + 62 * pixel)
    key, keys = min(NAME, columns(width - 50, SMALL)), []
    for system, x in zip(shown, beside, strict=True):
        mean, style = system.mean, look[system.name]
        axes.vlines(x, mean.low, mean.high, color=style.colour, linewidth=1.6, zorder=3)
        axes.plot([x], [mean.value], **marker(style))
        keys.append(Line2D([], [], **marker(style), label=shorten(system.name, key)))
    if comparison.baseline:
        value = comparison.baseline.mean.value
        line = axes.axhline(value, color=BASELINE, linewidth=1, linestyle=DASHED)
        line.set_label(f"{comparison.baseline.name} {number(value)}")
        keys.append(line)
    style_ticks(axes, "x", max(2, width // 80))
    style_ticks(axes, "y", 5)
    axes.grid()
    _legend(figure, keys)
    return figure


@matplotlib.rc_context(RC)
def similarities(comparison: Comparison, width: int = WIDE) -> Figure:
    """How the cosines of random and of related texts lie, system by system; smoothed histograms of equal height."""
    look = styles(comparison)
    shown = [system for system in everyone(comparison) if len(system.similarities.random)]
    _need(shown, "similarities")
    row = 52
    figure = new_figure("Cosines of pairs of texts", width, 120 + row * len(shown))
    axes = figure.add_subplot(xlabel="cosine", ylim=(row * len(shown), 0), yticks=[])
    every = np.concatenate([part for c in shown for part in (c.similarities.random, c.similarities.related)])
    axes.set_xlim(*limits([max(float(every.min()), -1.0), min(float(every.max()), 1.0)], pad=0.04))
    for place, system in enumerate(shown):
        top, base, found = row * place + 4, row * (place + 1), system.similarities
        axes.axhline(base, color=RULE, linewidth=0.8, zorder=1)
        draw_hill(axes, found.random, base, row - 20, UNRELATED)
        if len(found.related):
            draw_hill(axes, found.related, base, row - 20, look[system.name].colour)
        numbers = f"{number(anisotropy(system), 2)} ± {number(spread(system), 2)}"
        inside = {"va": "top", "transform": axes.get_yaxis_transform(), "zorder": 9}
        axes.text(0, top, shorten(system.name, min(NAME, columns(width) - len(numbers) - 2)), **inside)
        axes.text(1, top, numbers, **inside, ha="right", size=SMALL, color=FAINT)
    style_ticks(axes, "x", 5)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    named = {
        UNRELATED: "unrelated texts; numbers: anisotropy ± spread",
        COLOURS["bidirectional"]: "related texts (colour: kind)",
    }
    _legend(figure, [Patch(color=colour, label=text) for colour, text in named.items()])
    return figure


@matplotlib.rc_context(RC)
def layers(comparison: Comparison, width: int = WIDE) -> Figure:
    """Mean score by the layer that the vector is read from, the best layer marked."""
    shown = comparison.layers
    _need(shown, "scores by layer")
    look = styles(comparison)
    figure = new_figure("Score by layer", width, 330 + 32 * len(shown))
    axes = figure.add_subplot(xlabel="layer (0: the embeddings)", ylabel="mean score")
    last = max(len(one.scores) for one in shown) - 1
    axes.set_ylim(*limits([score for one in shown for score in one.scores], pad=0.12))
    dashes = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2))]
    for place, one in enumerate(shown):
        style, best = _look(look, one.name), int(np.argmax(one.scores))
        line = {"color": style.colour, "linewidth": 1.8, "linestyle": dashes[place % len(dashes)]}
        label = f"{shorten(one.name, min(NAME, columns(width - 50, SMALL)))}\nbest: layer {best}, {number(one.scores[best])}"
        axes.plot(one.scores, marker=style.marker, markersize=3.5 if last < 40 else 2, label=label, **line)
        ring = {"markersize": 13, "markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.4}
        axes.plot([best], [one.scores[best]], marker="o", **ring, zorder=5)
    style_ticks(axes, "x", max(2, width // 60), whole=True)
    style_ticks(axes, "y", 5)
    axes.grid()
    _legend(figure, axes.get_legend_handles_labels()[0])
    return figure


def prefix(comparison: Comparison, width: int = WIDE) -> Figure:
    """Prefix test: how often a beginning knows its ending, and how far its vector moves with it."""
    tests = {system.name: system.prefix for system in comparison.systems if system.prefix}
    _need(tests, "prefix test")
    moved = [Score(test.moved, test.moved, test.moved) for test in tests.values()]
    accuracies = [test.accuracy for test in tests.values()]
    panels = [
        _Panel("accuracy", "share of beginnings\n(dashed: chance)", accuracies, line=0.5),
        _Panel("movement", "mean of 1 − cosine", moved, line=0.0),
    ]
    return _rows("Prefix test", list(tests), panels, styles(comparison), width)


def differences(comparison: Comparison, width: int = WIDE) -> Figure:
    """How far the best system lies above each other one; hollow where the interval holds zero."""
    shown = comparison.differences
    _need(shown, "differences")
    points = [one.interval for one in shown]
    hollow = [not point.certain for point in points]
    panel = _Panel("", "difference of mean scores (dashed: none)", points, line=0.0, hollow=hollow)
    title = f"{shown[0].better} above the others"
    return _rows(title, [one.worse for one in shown], [panel], styles(comparison), width)


# --------------------------------------------------------------------------------------------- panels that share their rows


@dataclass
class _Panel:
    """One column of points, a row for each system."""

    title: str
    axis: str
    points: Sequence[Score | Interval | None]
    line: float | None = None
    hollow: list[bool] = field(default_factory=list)


@matplotlib.rc_context(RC)
def _rows(title: str, names: list[str], panels: list[_Panel], look: dict[str, Style], width: int) -> Figure:
    """Panels side by side, as many in a line as there is room for, whose rows are the systems."""
    styled = [_look(look, name) for name in names]
    names = [shorten(name, min(NAME, columns(width))) for name in names]
    left = (max(map(cell_len, names)) + 1) * COLUMN * TEXT
    above = left > 0.42 * width  # names that leave no room are above their points
    least = 110 if width < WIDE / 2 else 145
    across = 1 if above else max(1, min(len(panels), int((width - left) // least)))
    down = math.ceil(len(panels) / across)
    across = math.ceil(len(panels) / down)
    row = 36 if above else 20
    figure = new_figure(title, width, 44 + down * (row * len(names) + 72))
    ratios = [] if above else [left]  # a column for the names
    ratios += [(width - left) / across] * across
    grid = figure.subplots(down, len(ratios), squeeze=False, width_ratios=ratios)
    for axes in grid.flat:
        axes.set_ylim(row * len(names), 0)
        axes.axis("off")
    heights = [row * (place + (0.72 if above else 0.5)) for place in range(len(names))]
    for place, panel in enumerate(panels):
        line, column = divmod(place, across)
        axes = grid[line, column - across]
        if column == 0:
            _names(grid[line, 0], names, heights, 14 if above else 0)
        _panel(axes, panel, styled, heights, (width if above else width - left) / across)
    return figure


def _names(axes: "Axes", names: list[str], heights: list[float], lift: float) -> None:
    # Not in the layout: what matplotlib draws for a letter that DejaVu Sans lacks is not as wide as the letter.
    look = {"va": "center", "in_layout": False, "transform": axes.get_yaxis_transform(), "zorder": 5}
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for name, height in zip(names, heights, strict=True):
        axes.text(0, height - lift, name, bbox=ground, **look)


def _panel(axes: "Axes", panel: _Panel, look: list[Style], heights: list[float], width: float) -> None:
    """One panel: a point and its interval at each height."""
    inside = [bound for point in panel.points if point for bound in (point.value, point.low, point.high)]
    axes.axis("on")
    axes.set_xlim(*limits([*inside, *([] if panel.line is None else [panel.line])], pad=0.06))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.hlines(heights, *axes.get_xlim(), colors=RULE, linewidth=0.6, zorder=1)
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
    axes.set_title(shorten(panel.title, columns(width - 12, TEXT * 1.1)))
    axes.set_xlabel("\n".join(shorten(words(line), columns(width, SMALL)) for line in panel.axis.split("\n")))
    style_ticks(axes, "x", 3 if width < 200 else 5)
    if panel.line is not None:
        axes.axvline(panel.line, color=BASELINE, linewidth=1.1, linestyle=DASHED, zorder=2)
    for place, (point, style, height) in enumerate(zip(panel.points, look, heights, strict=True)):
        if point:
            axes.hlines(height, point.low, point.high, colors=style.colour, linewidth=2.2, zorder=3)
            axes.plot([point.value], [height], **marker(style, bool(panel.hollow) and panel.hollow[place]))


def _legend(figure: Figure, handles: list) -> None:
    figure.legend(handles=handles, loc="outside lower left")


def _look(look: dict[str, Style], name: str) -> Style:
    """That of a system, or of a name that is none."""
    return look.get(name, Style(COLOURS[kind(name)], "o"))


def _need(found: Sized, what: str) -> None:
    if not found:
        raise InputError(f"this comparison has no {what}: there is nothing to draw")

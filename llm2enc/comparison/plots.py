"""The figures of a comparison, for the report and for notebooks: one function each, a matplotlib Figure back.

Every figure is drawn for a width in CSS pixels (72 to the inch, so that a font of 12 points is one of 12 pixels): WIDE for
a screen, NARROW for a phone. Colours are those of Okabe and Ito (2008), which the colour-blind can tell apart: one for
each kind of candidate; candidates of one kind differ by their marker.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from llm2enc.comparison.drawing import (
    CROWD,
    FAINT,
    HEAD,
    INK,
    RULE,
    SMALL,
    STEP,
    TEXT,
    Labels,
    Style,
    draw_hill,
    draw_point,
    draw_stroke,
    limits,
    new_axes,
    new_figure,
    shorten,
    side_by_side,
    text_width,
    ticks,
    ticks_inside,
    write,
    write_inside,
    write_keys,
    write_marker,
)
from llm2enc.comparison.results import Comparison
from llm2enc.comparison.summary import (
    OTHER,
    Score,
    anisotropy,
    by_task,
    by_type,
    everyone,
    kind,
    number,
    plain,
    spread,
    tasks,
    words,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE, NARROW = 720, 326
COLOURS = {
    "causal": "#E69F00",
    "bidirectional": "#0072B2",
    "echo": "#009E73",
    "prompt": "#CC79A7",
    OTHER: "#D55E00",
}
BASELINE = "#6b7075"
MARKERS = "osD^vPX*"
PANELS = 8  # tasks that get a panel of their own; with more of them, their types do
_LEFT = 54  # of a vertical axis: the widest labels of its ticks
_BESIDE = 8  # candidates whose names find a place beside their points
_ROW = 18  # height of a candidate's row


def styles(comparison: Comparison) -> dict[str, Style]:
    """By name: the colour says the kind, the marker which one of it."""
    found: dict[str, Style] = {}
    seen: dict[str, int] = {}
    for candidate in comparison.candidates:
        of = kind(candidate.name)
        found[candidate.name] = Style(COLOURS[of], MARKERS[seen.setdefault(of, 0) % len(MARKERS)])
        seen[of] += 1
    if comparison.baseline:
        found[comparison.baseline.name] = Style(BASELINE, "x")
    return found


# -------------------------------------------------------------------------------------------------------------- figures


def scores(comparison: Comparison, width: int = WIDE) -> "Figure":
    """Mean score, and that of every task (of every task type where the tasks are many), with 95 % intervals."""
    measured = tasks(comparison)
    shown = everyone(comparison)
    mean = [Score(c.mean.value, c.mean.low, c.mean.high) for c in shown]
    panels = [_Panel("mean", f"mean of {_count(len(measured), 'task')}", mean)]
    if 1 < len(measured) <= PANELS:
        found = [by_task(candidate) for candidate in shown]
        panels += [_Panel(o.task, _axis(o.metric), [one.get(o.task) for one in found]) for o in measured]
    elif len(measured) > PANELS:
        found = [by_type(candidate) for candidate in shown]
        for type in dict.fromkeys(outcome.type for outcome in measured):
            of = [outcome for outcome in measured if outcome.type == type]
            axis = f"{_axis(of[0].metric)}, {_count(len(of), 'task')}"
            panels.append(_Panel(words(type), axis, [one.get(type) for one in found]))
    else:
        panels = [_Panel(plain(measured[0].task), _axis(measured[0].metric), mean)]
    if comparison.baseline:
        for panel in panels:
            if panel.points[-1]:
                panel.line = panel.points[-1].value
    by = "task" if len(measured) <= PANELS else "task type"
    return _rows(f"Scores by {by}", [c.name for c in shown], panels, styles(comparison), width)


def cost(comparison: Comparison, width: int = WIDE) -> "Figure":
    """Mean score against tokens per text; each point's name beside it, or below in order where they are many."""
    look = styles(comparison)
    points = [(c.name, c.tokens, c.mean) for c in comparison.candidates]
    crowd = len(points) > _BESIDE
    height = 320 if crowd else max(300, (26 if width >= WIDE / 2 else 32) * len(points) + 90)
    across = 2 if width >= WIDE / 2 else 1
    below = (math.ceil(len(points) / across) * _ROW + 14) if crowd else 0
    figure = new_figure("Score against cost", width, height + HEAD + below)
    write(figure, 0, HEAD + 2, "mean score", size=SMALL, color=FAINT, va="center")
    axes = new_axes(figure, _LEFT, HEAD + 14, width - _LEFT - 14, height - 62)
    lines = [mean.value for *_, mean in points] + [bound for *_, mean in points for bound in (mean.low, mean.high)]
    if comparison.baseline:
        lines.append(comparison.baseline.mean.value)
    costs = [tokens for _, tokens, _ in points]
    # A third at least, so that a token more does not look like much; and room to stand side by side.
    low, high = min(costs), max(*costs, 1.3 * min(costs))
    room = min(STEP * len(costs), CROWD) / 2 + 12
    margin = room * (high - low) / (width - _LEFT - 14 - 2 * room)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(*limits(lines, pad=0.09))
    axes.set_xlabel("tokens that the model reads per text")
    ticks(axes, "x", width - _LEFT - 14)
    ticks(axes, "y", height - 62)
    axes.grid(color=RULE, linewidth=0.6)
    labels = Labels(axes, width - _LEFT - 14, height - 62)
    # Without intervals' overlap: nearly equal costs are drawn side by side.
    beside = side_by_side(costs, *axes.get_xlim(), width - _LEFT - 14)
    for (name, _, mean), x in zip(points, beside, strict=True):
        axes.vlines(x, mean.low, mean.high, color=look[name].colour, linewidth=1.6, zorder=3)
        draw_point(axes, x, mean.value, look[name])
        labels.block(x, mean.low, mean.high)
        labels.block(x, mean.value, mean.value, 6)
    if comparison.baseline:
        value = comparison.baseline.mean.value
        axes.axhline(value, color=BASELINE, linewidth=1, linestyle=(0, (4, 3)))
        labels.line(f"{plain(comparison.baseline.name)} {number(value)}", value)
    if crowd:
        for place, (name, *_) in enumerate(points):
            left, y = place % across * width / across, HEAD + height + 12 + place // across * _ROW
            write_marker(figure, left + 5, y, look[name])
            write(figure, left + 14, y, shorten(name, width / across - 22, SMALL), va="center", size=SMALL)
        return figure
    for x, (name, _, mean) in sorted(zip(beside, points, strict=True), key=lambda point: -point[1][2].value):
        labels.place(name, x, mean.value)
    return figure


def similarities(comparison: Comparison, width: int = WIDE) -> "Figure":
    """How the cosines of random and of related texts lie, candidate by candidate; smoothed histograms of equal height."""
    look = styles(comparison)
    shown = [candidate for candidate in everyone(comparison) if len(candidate.similarities.random)]
    _need(shown, "similarities")
    row, left = (46, 0) if width >= WIDE / 2 else (58, 0)
    figure = new_figure("Cosines of pairs of texts", width, HEAD + 24 + row * len(shown) + 46)
    axes = new_axes(figure, left, HEAD + 24, width - left, row * len(shown))
    every = np.concatenate([np.concatenate([c.similarities.random, c.similarities.related]) for c in shown])
    low, high = limits([max(float(every.min()), -1.0), min(float(every.max()), 1.0)], pad=0.04)
    edges = np.linspace(low, high, 161)
    axes.set_xlim(low, high)
    axes.set_ylim(row * len(shown), 0)
    for place, candidate in enumerate(shown):
        base, found = row * (place + 1), candidate.similarities
        axes.axhline(base, color=RULE, linewidth=0.8, zorder=1)
        tall = row - 19
        draw_hill(axes, found.random, edges, base, tall, "#8d9297")
        if len(found.related):
            draw_hill(axes, found.related, edges, base, tall, look[candidate.name].colour)
        numbers = f"{number(anisotropy(candidate), 2)} ± {number(spread(candidate), 2)}"
        room = width - text_width(numbers, SMALL) - 12
        write_inside(axes, low, base - row + 5, shorten(candidate.name, room, TEXT), va="top", zorder=9)
        write_inside(axes, high, base - row + 5, numbers, ha="right", va="top", size=SMALL, color=FAINT, zorder=9)
    axes.set_yticks([])
    axes.set_xlabel("cosine")
    ticks(axes, "x", width)
    ticks_inside(axes)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    write_keys(figure, [("#8d9297", "unrelated"), (COLOURS["bidirectional"], "related (colour: kind)")])
    numbers_are = "mean ± deviation" if width < WIDE / 2 else "unrelated: anisotropy ± spread"
    write(figure, width, HEAD + 10, numbers_are, ha="right", va="bottom", size=SMALL, color=FAINT)
    return figure


def layers(comparison: Comparison, width: int = WIDE) -> "Figure":
    """Mean score by the layer that the vector is read from, the best layer marked."""
    shown = comparison.layers
    _need(shown, "scores by layer")
    look = styles(comparison)
    height = 250
    above = HEAD + 18 * len(shown) + 18
    figure = new_figure("Score by layer", width, above + height + 48)
    write(figure, 0, above - 14, "mean score", size=SMALL, color=FAINT, va="center")
    axes = new_axes(figure, _LEFT, above, width - _LEFT - 14, height)
    last = max(len(one.scores) for one in shown) - 1
    axes.set_xlim(-0.04 * max(last, 1) - 0.2, last * 1.04 + 0.2)
    axes.set_ylim(*limits([score for one in shown for score in one.scores], pad=0.12))
    dashes = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2))]
    for place, one in enumerate(shown):
        style = _look(look, one.name)
        line = {"color": style.colour, "linewidth": 1.8, "linestyle": dashes[place % len(dashes)]}
        axes.plot(one.scores, marker=style.marker, markersize=3.5 if last < 40 else 2, zorder=3, **line)
        best = int(np.argmax(one.scores))
        ring = {"markersize": 13, "markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.4}
        axes.plot([best], [one.scores[best]], marker="o", **ring, zorder=5)
        best_is = f"best: layer {best}, {number(one.scores[best])}"
        name = shorten(one.name, width - text_width(best_is, TEXT) - 44, TEXT)
        y = HEAD + 18 * place + 6
        draw_stroke(figure, y, style.colour, dashes[place % len(dashes)])
        write(figure, 30, y, name, va="center")
        write(figure, width, y, best_is, ha="right", va="center", color=FAINT)
    axes.set_xlabel("layer (0: the embeddings)")
    ticks(axes, "x", width - _LEFT - 14, whole=True)
    ticks(axes, "y", height)
    axes.grid(color=RULE, linewidth=0.6)
    return figure


def prefix(comparison: Comparison, width: int = WIDE) -> "Figure":
    """Prefix test: how often a beginning knows its ending, and how far its vector moves with it."""
    shown = [candidate for candidate in comparison.candidates if candidate.prefix]
    _need(shown, "prefix test")
    accuracy = [Score(c.prefix.accuracy.value, c.prefix.accuracy.low, c.prefix.accuracy.high) for c in shown]
    moved = [Score(c.prefix.moved, c.prefix.moved, c.prefix.moved) for c in shown]
    panels = [
        _Panel("accuracy", "share of beginnings", accuracy, line=0.5, label="chance"),
        _Panel("movement", "mean of 1 − cosine", moved, line=0.0),
    ]
    title = "What a beginning knows of its ending"
    return _rows(title, [c.name for c in shown], panels, styles(comparison), width)


def differences(comparison: Comparison, width: int = WIDE) -> "Figure":
    """How far the best candidate lies above each other one; hollow where the interval holds zero."""
    shown = comparison.differences
    _need(shown, "differences")
    points = [Score(one.interval.value, one.interval.low, one.interval.high) for one in shown]
    hollow = [not one.interval.certain for one in shown]
    panel = _Panel("", "difference of mean scores", points, line=0.0, label="no difference", hollow=hollow)
    title = f"{plain(shown[0].better)} above the others"
    return _rows(title, [one.worse for one in shown], [panel], styles(comparison), width)


# --------------------------------------------------------------------------------------------------- panels that share rows


@dataclass
class _Panel:
    """One column of points, a row for each candidate."""

    title: str
    axis: str
    points: list[Score | None]
    line: float | None = None
    label: str = ""
    """What the line is."""
    hollow: list[bool] = field(default_factory=list)


def _rows(title: str, names: list[str], panels: list[_Panel], look: dict[str, Style], width: int) -> "Figure":
    """Panels side by side, as many in a line as there is room for, whose rows are the candidates."""
    widest = max(text_width(plain(name), TEXT) for name in names) + 24
    gap, least = 22, 104 if width < WIDE / 2 else 128
    left = min(widest, 0.42 * width)
    across = max(1, min(len(panels), int((width - left) // (least + gap))))
    down = math.ceil(len(panels) / across)
    across = math.ceil(len(panels) / down)
    above = across == 1 and widest > 0.5 * width  # names that leave no room stand above their points
    if across == 1:
        left = 0.0 if above else widest
    row = _ROW + 14 if above else _ROW
    wide = (width - left - 8) / across - gap
    tall = row * len(names) + 8
    head = (20 if any(panel.title for panel in panels) else 0) + (16 if any(panel.label for panel in panels) else 0)
    line = head + tall + 56
    figure = new_figure(title, width, HEAD + down * line - 14)
    for place, panel in enumerate(panels):
        top = HEAD + place // across * line
        x = left + place % across * (wide + gap) + (16 if above else 8)  # a tick label may be wider than its tick
        _panel(figure, panel, names, look, (x, top + head, wide, tall), top, row, 23 if above else row / 2)
        if place % across == 0:
            for turn, name in enumerate(names):
                y = top + head + 4 + row * turn + (8 if above else row / 2)
                text = shorten(name, (width if above else left) - 18, TEXT)
                ground = {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5}} if above else {}
                write(figure, 14, y, text, va="center", **ground)
                write_marker(figure, 5, y, _look(look, name))
    return figure


def _panel(
    figure: "Figure",
    panel: _Panel,
    names: list[str],
    look: dict[str, Style],
    box: tuple[float, float, float, float],
    top: float,
    row: float,
    middle: float,
) -> None:
    """One panel in the box (left, top, width, height); its title at `top`, a point `middle` below its row's upper edge."""
    x, y, wide, tall = box
    axes = new_axes(figure, *box)
    inside = [bound for point in panel.points if point for bound in (point.value, point.low, point.high)]
    low, high = limits([*inside, *([] if panel.line is None else [panel.line])], pad=0.06)
    axes.set_xlim(low, high)
    axes.set_ylim(tall, 0)
    heights = [4 + row * turn + middle for turn in range(len(names))]
    axes.set_yticks([])
    axes.hlines(heights, low, high, color=RULE, linewidth=0.6, zorder=1)
    axes.grid(axis="x", color=RULE, linewidth=0.4, alpha=0.6)
    axes.tick_params(length=0)
    axes.set_xlabel(shorten(panel.axis, wide + 18, SMALL), fontsize=SMALL)
    ticks(axes, "x", wide)
    axes.spines["left"].set_visible(False)
    if panel.title:
        write(
            figure,
            x if row == _ROW else 0,
            top,
            shorten(panel.title, wide + 14, TEXT, bold=True),
            va="top",
            weight="bold",
        )
    if panel.line is not None:
        axes.axvline(panel.line, color=BASELINE, linewidth=1.1, linestyle=(0, (4, 3)), zorder=2)
        half = text_width(panel.label, SMALL) / 2
        at = x + (panel.line - low) / (high - low) * wide
        at = min(max(at, x + half - 8), x + wide + 8 - half)
        write(figure, at, y - 3, panel.label, ha="center", va="bottom", size=SMALL, color=FAINT)
    rows = [(name, point, place) for place, (name, point) in enumerate(zip(names, panel.points, strict=True)) if point]
    colours = [_look(look, name).colour for name, _, _ in rows]
    ends = [point.low for _, point, _ in rows], [point.high for _, point, _ in rows]
    axes.hlines([heights[place] for *_, place in rows], *ends, colors=colours, linewidth=2.2, zorder=3)
    for name, point, place in rows:
        draw_point(axes, point.value, heights[place], _look(look, name), bool(panel.hollow) and panel.hollow[place])


def _look(look: dict[str, Style], name: str) -> Style:
    """That of a candidate, or of a name that is none."""
    return look.get(name, Style(COLOURS[kind(name)], "o"))


def _need(found: Sequence, what: str) -> None:
    if not found:
        raise ValueError(f"this comparison has no {what}: there is nothing to draw")


def _axis(metric: str) -> str:
    return words(plain(metric))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

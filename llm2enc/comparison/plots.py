"""The figures of a comparison, for the report and for notebooks: one function each, a matplotlib Figure back.

Every figure is drawn for a width in CSS pixels (72 to the inch, so that a font of 12 points is one of 12 pixels): WIDE for
a screen, NARROW for a phone. Colours are those of Okabe and Ito (2008), which the colour-blind can tell apart: one for
each kind of candidate; candidates of one kind differ by their marker.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

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
    from matplotlib.axes import Axes
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
INK, FAINT, RULE = "#1c1e21", "#55595e", "#d9dbde"
MARKERS = "osD^vPX*"
TITLE, TEXT, SMALL = 15, 12, 11
PANELS = 8  # tasks that get a panel of their own; with more of them, their types do
_STEP, _CROWD = 9, 100  # between points of one cost, and the widest that a group of them may be
_LEFT = 54  # of a vertical axis: the widest labels of its ticks
_BESIDE = 8  # candidates whose names find a place beside their points
_ROW = 18  # height of a candidate's row
_HEAD = 36  # above the first panel: the title


@dataclass(frozen=True)
class Style:
    """How a candidate looks in every figure."""

    colour: str
    marker: str


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
    figure = _figure("Score against cost", width, height + _HEAD + below)
    _write(figure, 0, _HEAD + 2, "mean score", size=SMALL, color=FAINT, va="center")
    axes = _axes(figure, _LEFT, _HEAD + 14, width - _LEFT - 14, height - 62)
    lines = [mean.value for *_, mean in points] + [bound for *_, mean in points for bound in (mean.low, mean.high)]
    if comparison.baseline:
        lines.append(comparison.baseline.mean.value)
    costs = [tokens for _, tokens, _ in points]
    # A third at least, so that a token more does not look like much; and room to stand side by side.
    low, high = min(costs), max(*costs, 1.3 * min(costs))
    room = min(_STEP * len(costs), _CROWD) / 2 + 12
    margin = room * (high - low) / (width - _LEFT - 14 - 2 * room)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(*_range(lines, pad=0.09))
    axes.set_xlabel("tokens that the model reads per text")
    _ticks(axes.xaxis, width - _LEFT - 14)
    _ticks(axes.yaxis, height - 62)
    axes.grid(color=RULE, linewidth=0.6)
    labels = _Labels(axes, width - _LEFT - 14, height - 62)
    # Without intervals' overlap: nearly equal costs are drawn side by side.
    beside = _beside(costs, *axes.get_xlim(), width - _LEFT - 14)
    for (name, _, mean), x in zip(points, beside, strict=True):
        axes.vlines(x, mean.low, mean.high, color=look[name].colour, linewidth=1.6, zorder=3)
        _point(axes, x, mean.value, look[name])
        labels.block(x, mean.low, mean.high)
        labels.block(x, mean.value, mean.value, 6)
    if comparison.baseline:
        value = comparison.baseline.mean.value
        axes.axhline(value, color=BASELINE, linewidth=1, linestyle=(0, (4, 3)))
        labels.line(f"{plain(comparison.baseline.name)} {number(value)}", value)
    if crowd:
        for place, (name, *_) in enumerate(points):
            left, y = place % across * width / across, _HEAD + height + 12 + place // across * _ROW
            _write_marker(figure, left + 5, y, look[name])
            _write(figure, left + 14, y, shorten(name, width / across - 22, SMALL), va="center", size=SMALL)
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
    figure = _figure("Cosines of pairs of texts", width, _HEAD + 24 + row * len(shown) + 46)
    axes = _axes(figure, left, _HEAD + 24, width - left, row * len(shown))
    every = np.concatenate([np.concatenate([c.similarities.random, c.similarities.related]) for c in shown])
    low, high = _range([max(float(every.min()), -1.0), min(float(every.max()), 1.0)], pad=0.04)
    edges = np.linspace(low, high, 161)
    axes.set_xlim(low, high)
    axes.set_ylim(row * len(shown), 0)
    for place, candidate in enumerate(shown):
        base, found = row * (place + 1), candidate.similarities
        axes.axhline(base, color=RULE, linewidth=0.8, zorder=1)
        tall = row - 19
        _hill(axes, found.random, edges, base, tall, "#8d9297")
        if len(found.related):
            _hill(axes, found.related, edges, base, tall, look[candidate.name].colour)
        numbers = f"{number(anisotropy(candidate), 2)} ± {number(spread(candidate), 2)}"
        room = width - _width(numbers, SMALL) - 12
        _text(axes, low, base - row + 5, shorten(candidate.name, room, TEXT), va="top", zorder=9)
        _text(axes, high, base - row + 5, numbers, ha="right", va="top", size=SMALL, color=FAINT, zorder=9)
    axes.set_yticks([])
    axes.set_xlabel("cosine")
    _ticks(axes.xaxis, width)
    _inside(axes)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    _keys(figure, [("#8d9297", "unrelated"), (COLOURS["bidirectional"], "related (colour: kind)")])
    _note(figure, width, _HEAD + 10, "mean ± deviation" if width < WIDE / 2 else "unrelated: anisotropy ± spread")
    return figure


def layers(comparison: Comparison, width: int = WIDE) -> "Figure":
    """Mean score by the layer that the vector is read from, the best layer marked."""
    shown = comparison.layers
    _need(shown, "scores by layer")
    look = styles(comparison)
    height = 250
    above = _HEAD + 18 * len(shown) + 18
    figure = _figure("Score by layer", width, above + height + 48)
    _write(figure, 0, above - 14, "mean score", size=SMALL, color=FAINT, va="center")
    axes = _axes(figure, _LEFT, above, width - _LEFT - 14, height)
    last = max(len(one.scores) for one in shown) - 1
    axes.set_xlim(-0.04 * max(last, 1) - 0.2, last * 1.04 + 0.2)
    axes.set_ylim(*_range([score for one in shown for score in one.scores], pad=0.12))
    dashes = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2))]
    for place, one in enumerate(shown):
        style = _look(look, one.name)
        axes.plot(one.scores, color=style.colour, linewidth=1.8, linestyle=dashes[place % len(dashes)], zorder=3)
        axes.plot(
            one.scores,
            color=style.colour,
            linestyle="",
            marker=style.marker,
            markersize=3.5 if last < 40 else 2,
            zorder=3,
        )
        best = int(np.argmax(one.scores))
        ring = {"markersize": 13, "markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.4}
        axes.plot([best], [one.scores[best]], marker="o", **ring, zorder=5)
        best_is = f"best: layer {best}, {number(one.scores[best])}"
        name = shorten(one.name, width - _width(best_is, TEXT) - 44, TEXT)
        y = _HEAD + 18 * place + 6
        _stroke(figure, y, style.colour, dashes[place % len(dashes)])
        _write(figure, 30, y, name, va="center")
        _write(figure, width, y, best_is, ha="right", va="center", color=FAINT)
    axes.set_xlabel("layer (0: the embeddings)")
    _ticks(axes.xaxis, width - _LEFT - 14, whole=True)
    _ticks(axes.yaxis, height)
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
    widest = max(_width(plain(name), TEXT) for name in names) + 24
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
    figure = _figure(title, width, _HEAD + down * line - 14)
    for place, panel in enumerate(panels):
        top = _HEAD + place // across * line
        x = left + place % across * (wide + gap) + (16 if above else 8)  # a tick label may be wider than its tick
        _panel(figure, panel, names, look, (x, top + head, wide, tall), top, row, 23 if above else row / 2)
        if place % across == 0:
            for turn, name in enumerate(names):
                y = top + head + 4 + row * turn + (8 if above else row / 2)
                text = shorten(name, (width if above else left) - 18, TEXT)
                ground = {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5}} if above else {}
                _write(figure, 14, y, text, va="center", **ground)
                _write_marker(figure, 5, y, _look(look, name))
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
    axes = _axes(figure, *box)
    inside = [bound for point in panel.points if point for bound in (point.value, point.low, point.high)]
    low, high = _range([*inside, *([] if panel.line is None else [panel.line])], pad=0.06)
    axes.set_xlim(low, high)
    axes.set_ylim(tall, 0)
    heights = [4 + row * turn + middle for turn in range(len(names))]
    axes.set_yticks([])
    axes.hlines(heights, low, high, color=RULE, linewidth=0.6, zorder=1)
    axes.grid(axis="x", color=RULE, linewidth=0.4, alpha=0.6)
    axes.tick_params(length=0)
    axes.set_xlabel(shorten(panel.axis, wide + 18, SMALL), fontsize=SMALL)
    _ticks(axes.xaxis, wide)
    axes.spines["left"].set_visible(False)
    if panel.title:
        _write(
            figure,
            x if row == _ROW else 0,
            top,
            shorten(panel.title, wide + 14, TEXT, bold=True),
            va="top",
            weight="bold",
        )
    if panel.line is not None:
        axes.axvline(panel.line, color=BASELINE, linewidth=1.1, linestyle=(0, (4, 3)), zorder=2)
        half = _width(panel.label, SMALL) / 2
        at = x + (panel.line - low) / (high - low) * wide
        at = min(max(at, x + half - 8), x + wide + 8 - half)
        _write(figure, at, y - 3, panel.label, ha="center", va="bottom", size=SMALL, color=FAINT)
    rows = [(name, point, place) for place, (name, point) in enumerate(zip(names, panel.points, strict=True)) if point]
    colours = [_look(look, name).colour for name, _, _ in rows]
    ends = [point.low for _, point, _ in rows], [point.high for _, point, _ in rows]
    axes.hlines([heights[place] for *_, place in rows], *ends, colors=colours, linewidth=2.2, zorder=3)
    for name, point, place in rows:
        _point(axes, point.value, heights[place], _look(look, name), bool(panel.hollow) and panel.hollow[place])


def _look(look: dict[str, Style], name: str) -> Style:
    """That of a candidate, or of a name that is none."""
    return look.get(name, Style(COLOURS[kind(name)], "o"))


# ------------------------------------------------------------------------------------------------------------- labels


class _Labels:
    """Names beside the points of a plot, moved until none lies on another, on a point or outside."""

    def __init__(self, axes: "Axes", width: float, height: float):
        self.axes, self.width, self.height = axes, width, height
        self.boxes: list[tuple[float, float, float, float]] = []  # taken: left, bottom, right, top in pixels

    def block(self, x: float, low: float, high: float, margin: float = 2) -> None:
        """Keep free what is drawn from `low` to `high`."""
        across, bottom = self._pixels(x, low)
        _, top = self._pixels(x, high)
        self.boxes.append((across - margin, bottom - margin, across + margin, top + margin))

    def line(self, text: str, y: float) -> None:
        """The label of a horizontal line, above or below one of its ends."""
        _, up = self._pixels(0, y)
        self.boxes.append((0, up - 1, self.width, up + 1))
        text = shorten(text, self.width - 8, SMALL)
        wide = _width(text, SMALL)
        places = [(left, low) for left in (self.width - wide - 4, 4) for low in (up + 2, up - 16)]
        left, low = next((place for place in places if self._free(*place, wide, 14)), places[0])
        _text(self.axes, *self._data(left, low + 7), text, va="center", size=SMALL, color=FAINT)
        self.boxes.append((left, low, left + wide, low + 14))

    def place(self, name: str, x: float, y: float) -> None:
        """The nearest free place; a thin line leads there if it is not beside the point."""
        across, up = self._pixels(x, y)
        tall = 14.0
        for room in (0.62, 0.45, 0.3):  # in a crowd a name is shortened further
            text = shorten(name, room * self.width, SMALL)
            wide = _width(text, SMALL)
            found = self._places(across, up, wide, tall)
            if any(free for _, free, _, _ in found):
                break
        _, _, left, low = min(found, key=lambda place: (not place[1], place[0]))
        self.boxes.append((left, low, left + wide, low + tall))
        near = min(max(across, left), left + wide)
        if abs(low + tall / 2 - up) > 8 or abs(near - across) > 12:
            side = 0 if near == across else 1  # a line ends beside a label, or below or above it
            edge = low if low > up else low + tall
            end = (near + 2 * side * np.sign(across - near), low + tall / 2 if side else edge)
            points = zip(self._data(across, up), self._data(*end), strict=True)
            self.axes.plot(*points, color="#a9adb2", linewidth=0.7, zorder=2)
        _text(self.axes, *self._data(left, low + tall / 2), text, va="center", size=SMALL)

    def _places(self, across: float, up: float, wide: float, tall: float) -> list[tuple[float, bool, float, float]]:
        """How bad each place for a label is, whether it is free, its left and its lower edge."""
        found = []
        lefts = [across - wide / 2]
        for step in (9, 20, 32, 45, 60, 80, 110, 150):
            lefts += [across + step, across - step - wide]
        for left in lefts:
            gap = max(left - across, across - left - wide, 0)
            bad = 20 * self._crossed(across, up, left, wide) + gap / 2
            for shift in range(-40, 41):
                low = up + 7 * shift - tall / 2
                found.append((bad + 7 * abs(shift), self._free(left, low, wide, tall), left, low))
        return found

    def _free(self, left: float, low: float, wide: float, tall: float) -> bool:
        right, high = left + wide, low + tall
        if left < 2 or right > self.width - 2 or low < 2 or high > self.height - 2:
            return False
        return not any(left < r and l < right and low < t and b < high for l, b, r, t in self.boxes)  # noqa: E741

    def _crossed(self, across: float, up: float, left: float, wide: float) -> int:
        """How many things lie between a point and its label."""
        near = min(max(across, left), left + wide)
        start, end = min(across, near), max(across, near)
        return sum(start < (l + r) / 2 < end and b - 8 < up < t + 8 for l, b, r, t in self.boxes)  # noqa: E741

    def _pixels(self, x: float, y: float) -> tuple[float, float]:
        (left, right), (low, high) = self.axes.get_xlim(), self.axes.get_ylim()
        return (x - left) / (right - left) * self.width, (y - low) / (high - low) * self.height

    def _data(self, across: float, up: float) -> tuple[float, float]:
        (left, right), (low, high) = self.axes.get_xlim(), self.axes.get_ylim()
        return left + across / self.width * (right - left), low + up / self.height * (high - low)


def shorten(text: str, room: float, size: float, bold: bool = False) -> str:
    """The text in `room` pixels: its middle is left out, since names of models begin and of candidates end alike."""
    text = plain(text)
    if _width(text, size, bold) <= room:
        return text
    keep = len(text)
    while keep > 2 and _width(_cut(text, keep), size, bold) > room:
        keep -= 1
    return _cut(text, keep)


def _cut(text: str, keep: int) -> str:
    head = keep // 2
    return f"{text[:head]}…{text[len(text) - (keep - head) :]}"


def _width(text: str, size: float, bold: bool = False) -> float:
    """Pixels of a line, rather too many than too few: no font that a browser takes is much wider than DejaVu Sans."""
    return sum(_advance(letter) for letter in text) * size * (1.12 if bold else 1.0)


@cache
def _advance(letter: str) -> float:
    """Width over font size; 1, as of Chinese, for what DejaVu Sans does not have."""
    from matplotlib.font_manager import findfont, get_font

    if unicodedata.combining(letter):
        return 0.0
    font = get_font(findfont("DejaVu Sans"))
    if not font.get_char_index(ord(letter)):
        return 1.0
    font.set_size(100, 72)
    return font.load_char(ord(letter)).linearHoriAdvance / 65536 / 100


# -------------------------------------------------------------------------------------------------------------- drawing


def _need(found: Sequence, what: str) -> None:
    if not found:
        raise ValueError(f"this comparison has no {what}: there is nothing to draw")


def _figure(title: str, width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=144, facecolor="white")
    _write(figure, 0, 2, shorten(title, width, TITLE, bold=True), size=TITLE, weight="bold", va="top")
    return figure


def _axes(figure: "Figure", x: float, y: float, width: float, height: float) -> "Axes":
    """Axes at pixels from the upper left corner."""
    across, down = figure.get_size_inches() * 72
    axes = figure.add_axes((x / across, 1 - (y + height) / down, width / across, height / down))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9a9ea3")
        axes.spines[side].set_linewidth(0.8)
    axes.tick_params(labelsize=SMALL, labelcolor=FAINT, color="#9a9ea3", length=3, width=0.8)
    axes.xaxis.label.set(color=FAINT, fontsize=TEXT)
    axes.yaxis.label.set(color=FAINT, fontsize=TEXT)
    axes.set_axisbelow(True)
    return axes


def _write(figure: "Figure", x: float, y: float, text: str, **look) -> None:
    """Text at pixels from the figure's upper left corner."""
    across, down = figure.get_size_inches() * 72
    figure.text(x / across, 1 - y / down, text, **_font(look))


def _text(axes: "Axes", x: float, y: float, text: str, **look) -> None:
    """Text at a place of the data."""
    axes.text(x, y, text, **_font(look))


def _font(look: dict) -> dict:
    return {"size": TEXT, "color": INK, "parse_math": False} | look  # a dollar in a name begins no formula


def _write_marker(figure: "Figure", x: float, y: float, style: Style) -> None:
    from matplotlib.lines import Line2D

    across, down = figure.get_size_inches() * 72
    point = Line2D([x / across], [1 - y / down], color=style.colour, marker=style.marker, markersize=5.5, linestyle="")
    figure.add_artist(point)


def _stroke(figure: "Figure", y: float, colour: str, dashes) -> None:
    from matplotlib.lines import Line2D

    across, down = figure.get_size_inches() * 72
    ends = [0, 24 / across], [1 - y / down] * 2
    figure.add_artist(Line2D(*ends, color=colour, linestyle=dashes, linewidth=2))


def _keys(figure: "Figure", keys: list[tuple[str, str]]) -> None:
    """Coloured squares with their meaning, below the title."""
    from matplotlib.lines import Line2D

    across, down = figure.get_size_inches() * 72
    x = 5.0
    for colour, text in keys:
        square = Line2D([x / across], [1 - (_HEAD + 2) / down], color=colour, marker="s", markersize=8, linestyle="")
        figure.add_artist(square)
        _write(figure, x + 8, _HEAD + 2, text, va="center_baseline", size=SMALL, color=FAINT)
        x += _width(text, SMALL) + 24


def _note(figure: "Figure", x: float, y: float, text: str) -> None:
    _write(figure, x, y, text, ha="right", va="bottom", size=SMALL, color=FAINT)


def _point(axes: "Axes", x: float, y: float, style: Style, hollow: bool = False) -> None:
    edge = style.colour if hollow or style.marker == "x" else "white"
    face = "white" if hollow else style.colour
    axes.plot(
        [x], [y], marker=style.marker, markersize=8, linestyle="", color=face, markeredgecolor=edge,
        markeredgewidth=1.6 if edge != "white" else 0.8, zorder=4, clip_on=False,
    )  # fmt: skip


def _hill(axes: "Axes", values: np.ndarray, edges: np.ndarray, base: float, tall: float, colour: str) -> None:
    """A histogram over the edges (B + 1,), smoothed by a Gaussian of Silverman's width, as a hill of the given height."""
    counts = np.histogram(values, edges)[0].astype(float)
    bins = max(1.06 * float(values.std()) * len(values) ** -0.2 / (edges[1] - edges[0]), 1.0)
    reach = min(math.ceil(4 * bins), (len(counts) - 1) // 2)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / bins) ** 2)
    smooth = np.convolve(counts, kernel / kernel.sum(), mode="same")
    middle, up = (edges[1:] + edges[:-1]) / 2, base - tall * smooth / max(smooth.max(), 1e-12)
    axes.fill_between(middle, base, up, color=colour, alpha=0.38, linewidth=0, zorder=3)
    axes.plot(middle, up, color=colour, linewidth=1.2, zorder=4)


def _range(values: Sequence[float], pad: float) -> tuple[float, float]:
    """Limits with `pad` of their width at both ends; never empty."""
    low, high = min(values), max(values)
    width = (high - low) or max(abs(high), 1.0) * 0.1
    return low - pad * width, high + pad * width


def _ticks(axis, room: float, whole: bool = False) -> None:
    """Few enough labels for the room in pixels."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    axis.set_major_locator(MaxNLocator(nbins=max(2, min(7, int(room // 56))), integer=whole, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(ScalarFormatter(useOffset=False))


def _inside(axes: "Axes") -> None:
    """Tick labels at the ends turn inwards, where axes are as wide as the figure."""
    low, high = axes.get_xlim()
    kept = [tick for tick in axes.get_xticks() if low + 0.03 * (high - low) <= tick <= high - 0.03 * (high - low)]
    axes.set_xticks(kept)
    axes.spines["left"].set_visible(False)


def _beside(values: Sequence[float], low: float, high: float, room: float) -> list[float]:
    """The values, moved so that those closer than a marker stand side by side about their mean, in order.

    room    pixels from `low` to `high`
    """
    unit = (high - low) / room
    groups = [[place] for place in sorted(range(len(values)), key=lambda place: values[place])]
    places = [_spread(values, group, unit) for group in groups]
    while True:  # spreading two groups may make them meet
        met = next((k for k in range(len(groups) - 1) if places[k + 1][0] - places[k][-1] < 8 * unit), None)
        if met is None:
            break
        groups[met : met + 2] = [groups[met] + groups[met + 1]]
        places[met : met + 2] = [_spread(values, groups[met], unit)]
    found = list(values)
    for group, moved in zip(groups, places, strict=True):
        for place, value in zip(group, moved, strict=True):
            found[place] = value
    return found


def _spread(values: Sequence[float], group: list[int], unit: float) -> list[float]:
    """Places of a group's values, _STEP pixels apart (less if they are many) about their mean."""
    centre, step = float(np.mean([values[place] for place in group])), min(_STEP, _CROWD / len(group)) * unit
    return [centre + (turn - (len(group) - 1) / 2) * step for turn in range(len(group))]


def _axis(metric: str) -> str:
    return words(plain(metric))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

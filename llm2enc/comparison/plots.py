"""The figures of a comparison, for the report and for notebooks: one function each, a matplotlib Figure back.

Every figure is drawn for a width in CSS pixels (72 to the inch, so that a font of 12 points is one of 12 pixels): WIDE for
a screen, NARROW for a phone. Colours are those of Okabe and Ito (2008), which the colour-blind can tell apart: one for
each kind of candidate; candidates of one kind differ by their marker.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from llm2enc.comparison.results import Comparison
from llm2enc.comparison.summary import OTHER, Score, by_task, by_type, everyone, kind, plain, tasks, words
from llm2enc.comparison.table import anisotropy, number, spread

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
_ROW = 18  # height of a candidate's row
_HEAD = 44  # above the first panel: the title


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
    """Mean score against tokens per text; the line joins the candidates that nothing cheaper beats."""
    look = styles(comparison)
    points = [(c.name, c.tokens, c.mean) for c in comparison.candidates]
    height = max(300, 26 * len(points) + 90)
    figure = _figure("Score against cost", width, height + _HEAD)
    axes = _axes(figure, 50, _HEAD, width - 50 - 14, height - 48)
    lines = [mean.value for *_, mean in points] + [bound for *_, mean in points for bound in (mean.low, mean.high)]
    if comparison.baseline:
        lines.append(comparison.baseline.mean.value)
    axes.set_xlim(*_range([tokens for _, tokens, _ in points], pad=0.18))
    axes.set_ylim(*_range(lines, pad=0.09))
    axes.set_xlabel("tokens that the model reads per text")
    axes.set_ylabel("mean score")
    _ticks(axes.xaxis, width - 64)
    _ticks(axes.yaxis, height - 48)
    axes.grid(color=RULE, linewidth=0.6)
    labels = _Labels(axes, width - 64, height - 48)
    if comparison.baseline:
        value = comparison.baseline.mean.value
        axes.axhline(value, color=BASELINE, linewidth=1, linestyle=(0, (4, 3)))
        labels.fixed(f"{plain(comparison.baseline.name)} {number(value)}", value)
    front = _front([(tokens, mean.value) for _, tokens, mean in points])
    axes.step(*zip(*front, strict=True), where="post", color="#a9adb2", linewidth=1, zorder=2)
    for name, tokens, mean in points:
        axes.vlines(tokens, mean.low, mean.high, color=look[name].colour, linewidth=1.6, zorder=3)
        _point(axes, tokens, mean.value, look[name])
        labels.block(tokens, mean.value)
    for name, tokens, mean in sorted(points, key=lambda point: -point[2].value):
        labels.place(name, tokens, mean.value)
    return figure


def similarities(comparison: Comparison, width: int = WIDE) -> "Figure":
    """How the cosines of random and of related texts lie, candidate by candidate; smoothed histograms of equal height."""
    look = styles(comparison)
    shown = [candidate for candidate in everyone(comparison) if len(candidate.similarities.random)]
    _need(shown, "similarities")
    row, left = (46, 0) if width >= WIDE / 2 else (58, 0)
    figure = _figure("Cosines of unrelated and of related texts", width, _HEAD + 24 + row * len(shown) + 46)
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
    above = _HEAD + (18 * len(shown) if len(shown) > 1 else 18)
    figure = _figure("Score by layer", width, above + height + 48)
    axes = _axes(figure, 50, above, width - 50 - 14, height)
    last = max(len(one.scores) for one in shown) - 1
    axes.set_xlim(-0.04 * max(last, 1) - 0.2, last * 1.04 + 0.2)
    axes.set_ylim(*_range([score for one in shown for score in one.scores], pad=0.12))
    dashes = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2))]
    for place, one in enumerate(shown):
        style = look.get(one.name, Style(COLOURS[kind(one.name)], MARKERS[place % len(MARKERS)]))
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
    axes.set_ylabel("mean score")
    _ticks(axes.xaxis, width - 64, whole=True)
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
        _Panel("knows its ending", "share of beginnings", accuracy, line=0.5, label="chance"),
        _Panel("moves with its ending", "mean of 1 − cosine", moved, line=0.0),
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
    left = min(max(_width(plain(name), TEXT) for name in names) + 24, 0.42 * width)
    gap, least = 22, 104 if width < WIDE / 2 else 140
    across = max(1, min(len(panels), int((width - left) // (least + gap))))
    down = math.ceil(len(panels) / across)
    across = math.ceil(len(panels) / down)
    wide = (width - left - 8) / across - gap
    tall = _ROW * len(names) + 8
    head = (20 if any(panel.title for panel in panels) else 0) + (16 if any(panel.label for panel in panels) else 0)
    line = head + tall + 42
    figure = _figure(title, width, _HEAD + down * (line + 14) - 14)
    for place, panel in enumerate(panels):
        across_now, down_now = place % across, place // across
        top = _HEAD + down_now * (line + 14)
        x = left + across_now * (wide + gap) + 8
        if across_now == 0:
            for row, name in enumerate(names):
                y = top + head + 4 + _ROW * (row + 0.5)
                _write(figure, 14, y, shorten(name, left - 18, TEXT), va="center")
                _write_marker(figure, 5, y, look.get(name, Style(COLOURS[kind(name)], "o")))
        _panel(figure, panel, names, look, (x, top + head, wide, tall), top)
    return figure


def _panel(
    figure: "Figure",
    panel: _Panel,
    names: list[str],
    look: dict[str, Style],
    box: tuple[float, float, float, float],
    top: float,
) -> None:
    x, y, wide, tall = box
    axes = _axes(figure, *box)
    inside = [bound for point in panel.points if point for bound in (point.value, point.low, point.high)]
    low, high = _range([*inside, *([] if panel.line is None else [panel.line])], pad=0.06)
    axes.set_xlim(low, high)
    axes.set_ylim(len(names) + 4 / _ROW - 0.5, -4 / _ROW - 0.5)
    axes.set_yticks(range(len(names)), [""] * len(names))
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.grid(axis="x", color=RULE, linewidth=0.4, alpha=0.6)
    axes.tick_params(length=0)
    axes.set_xlabel(shorten(panel.axis, wide + 18, SMALL), fontsize=SMALL)
    _ticks(axes.xaxis, wide)
    axes.spines["left"].set_visible(False)
    if panel.title:
        _write(figure, x, top, shorten(panel.title, wide + 14, TEXT, bold=True), va="top", weight="bold")
    if panel.line is not None:
        axes.axvline(panel.line, color=BASELINE, linewidth=1.1, linestyle=(0, (4, 3)), zorder=2)
        half = _width(panel.label, SMALL) / 2
        at = x + (panel.line - low) / (high - low) * wide
        at = min(max(at, x + half), x + wide + 14 - half)
        _write(figure, at, y - 3, panel.label, ha="center", va="bottom", size=SMALL, color=FAINT)
    for row, (name, point) in enumerate(zip(names, panel.points, strict=True)):
        if point is None:
            continue
        style = look.get(name, Style(COLOURS[kind(name)], "o"))
        if point.low != point.high:
            axes.hlines(row, point.low, point.high, color=style.colour, linewidth=2.2, zorder=3)
        _point(axes, point.value, row, style, bool(panel.hollow) and panel.hollow[row])


# ------------------------------------------------------------------------------------------------------------- labels


class _Labels:
    """Names beside the points of a plot, moved until none lies on another, on a point or outside."""

    def __init__(self, axes: "Axes", width: float, height: float):
        self.axes, self.width, self.height = axes, width, height
        self.boxes: list[tuple[float, float, float, float]] = []  # taken: left, bottom, right, top in pixels

    def block(self, x: float, y: float) -> None:
        """Keep a point's place free."""
        across, up = self._pixels(x, y)
        self.boxes.append((across - 6, up - 6, across + 6, up + 6))

    def fixed(self, text: str, y: float) -> None:
        """A label on the left end of a horizontal line."""
        _, up = self._pixels(0, y)
        text = shorten(text, self.width - 8, SMALL)
        above = up + 18 < self.height
        low = up + 3 if above else up - 17
        _text(self.axes, *self._data(4, low + 7), text, va="center", size=SMALL, color=FAINT)
        self.boxes.append((4, low, 4 + _width(text, SMALL), low + 14))
        self.boxes.append((0, up - 1, self.width, up + 1))

    def place(self, name: str, x: float, y: float) -> None:
        """The nearest free place; a thin line leads there if it is not beside the point."""
        across, up = self._pixels(x, y)
        text = shorten(name, 0.62 * self.width, SMALL)
        wide, tall = _width(text, SMALL), 14.0
        steps = [side * step for step in range(40) for side in ((1,) if step == 0 else (1, -1))]
        places = [
            (abs(shift) * 7 + (0 if at > 0 else 3) + abs(abs(at) - 9) / 2, left, up + 7 * shift - tall / 2)
            for shift in steps
            for at in (9, -9, 30, -30, 70, -70, 120, -120)
            for left in (across + at if at > 0 else across + at - wide,)
        ]
        free = [place for place in places if self._free(place[1], place[2], wide, tall)]
        # No room at all is a crowd that no shift can help: the label stays at its point.
        _, left, low = min(free or places)
        self.boxes.append((left, low, left + wide, low + tall))
        if abs(low + tall / 2 - up) > 8 or min(abs(left - across), abs(left + wide - across)) > 12:
            end = (left - 2 if left > across else left + wide + 2 if left + wide < across else across, low + tall / 2)
            points = zip(self._data(across, up), self._data(*end), strict=True)
            self.axes.plot(*points, color="#a9adb2", linewidth=0.7, zorder=2)
        _text(self.axes, *self._data(left, low + tall / 2), text, va="center", size=SMALL)

    def _free(self, left: float, low: float, wide: float, tall: float) -> bool:
        right, high = left + wide, low + tall
        if left < 2 or right > self.width - 2 or low < 2 or high > self.height - 2:
            return False
        return not any(left < r and l < right and low < t and b < high for l, b, r, t in self.boxes)  # noqa: E741

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


def _advance(letter: str) -> float:
    if unicodedata.combining(letter):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF" or letter in "mwMW@%—…":
        return 1.0
    if letter in "ijl.,:;'|!-()[] ftr":
        return 0.42
    return 0.66 if not letter.isupper() else 0.74


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
    """A histogram over the edges (B + 1,), smoothed by a Gaussian of 1.5 bins, as a hill of the given height."""
    counts = np.histogram(values, edges)[0].astype(float)
    kernel = np.exp(-0.5 * (np.arange(-6, 7) / 1.5) ** 2)
    smooth = np.convolve(np.pad(counts, 6), kernel / kernel.sum(), mode="valid")
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


def _front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that none with as few tokens or fewer beats, by tokens."""
    kept: list[tuple[float, float]] = []
    for tokens, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or score > kept[-1][1]:
            kept.append((tokens, score))
    return kept


def _axis(metric: str) -> str:
    return words(plain(metric))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

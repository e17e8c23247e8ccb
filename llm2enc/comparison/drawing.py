"""What the figures of a comparison are drawn with: sizes in CSS pixels from the upper left corner, text that is measured
before it is drawn, labels that find their place, and points that make way for each other.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from llm2enc.comparison.summary import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

INK, FAINT, RULE = "#1c1e21", "#55595e", "#d9dbde"
TITLE, TEXT, SMALL = 15, 12, 11
STEP, CROWD = 9, 100  # between points of one cost, and the widest that a group of them may be
HEAD = 36  # above the first panel: the title


@dataclass(frozen=True)
class Style:
    """How a candidate looks in every figure."""

    colour: str
    marker: str


# ------------------------------------------------------------------------------------------------------------- labels


class Labels:
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
        wide = text_width(text, SMALL)
        places = [(left, low) for left in (self.width - wide - 4, 4) for low in (up + 2, up - 16)]
        left, low = next((place for place in places if self._free(*place, wide, 14)), places[0])
        write_inside(self.axes, *self._data(left, low + 7), text, va="center", size=SMALL, color=FAINT)
        self.boxes.append((left, low, left + wide, low + 14))

    def place(self, name: str, x: float, y: float) -> None:
        """The nearest free place; a thin line leads there if it is not beside the point."""
        across, up = self._pixels(x, y)
        tall = 14.0
        for room in (0.62, 0.45, 0.3):  # in a crowd a name is shortened further
            text = shorten(name, room * self.width, SMALL)
            wide = text_width(text, SMALL)
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
        write_inside(self.axes, *self._data(left, low + tall / 2), text, va="center", size=SMALL)

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
    if text_width(text, size, bold) <= room:
        return text
    keep = len(text)
    while keep > 2 and text_width(_cut(text, keep), size, bold) > room:
        keep -= 1
    return _cut(text, keep)


def _cut(text: str, keep: int) -> str:
    head = keep // 2
    return f"{text[:head]}…{text[len(text) - (keep - head) :]}"


def text_width(text: str, size: float, bold: bool = False) -> float:
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


def new_figure(title: str, width: float, height: float) -> "Figure":
    """A white figure of so many pixels, its title in the upper left corner."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=144, facecolor="white")
    write(figure, 0, 2, shorten(title, width, TITLE, bold=True), size=TITLE, weight="bold", va="top")
    return figure


def new_axes(figure: "Figure", x: float, y: float, width: float, height: float) -> "Axes":
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


def _from_corner(figure: "Figure") -> "Transform":
    """Of places in pixels from the figure's upper left corner."""
    from matplotlib.transforms import Affine2D

    return Affine2D().scale(1 / 72, -1 / 72).translate(0, figure.get_figheight()) + figure.dpi_scale_trans


def write(figure: "Figure", x: float, y: float, text: str, **look) -> None:
    """Text at pixels from the figure's upper left corner."""
    figure.text(x, y, text, transform=_from_corner(figure), **_font(look))


def write_inside(axes: "Axes", x: float, y: float, text: str, **look) -> None:
    """Text at a place of the data."""
    axes.text(x, y, text, **_font(look))


def _font(look: dict) -> dict:
    return {"size": TEXT, "color": INK, "parse_math": False} | look  # a dollar in a name begins no formula


def write_marker(figure: "Figure", x: float, y: float, style: Style) -> None:
    """A candidate's marker at pixels from the figure's upper left corner, as it stands before a name."""
    _line(figure, [x], [y], color=style.colour, marker=style.marker, markersize=5.5, linestyle="")


def draw_stroke(figure: "Figure", y: float, colour: str, dashes) -> None:
    """The line of a curve, as it stands before a name at the left."""
    _line(figure, [0, 24], [y, y], color=colour, linestyle=dashes, linewidth=2)


def write_keys(figure: "Figure", keys: list[tuple[str, str]]) -> None:
    """Coloured squares with their meaning, below the title."""
    x = 5.0
    for colour, text in keys:
        _line(figure, [x], [HEAD + 2], color=colour, marker="s", markersize=8, linestyle="")
        write(figure, x + 8, HEAD + 2, text, va="center_baseline", size=SMALL, color=FAINT)
        x += text_width(text, SMALL) + 24


def _line(figure: "Figure", x: list[float], y: list[float], **look) -> None:
    from matplotlib.lines import Line2D

    figure.add_artist(Line2D(x, y, transform=_from_corner(figure), **look))


def draw_point(axes: "Axes", x: float, y: float, style: Style, hollow: bool = False) -> None:
    """A candidate's point at a place of the data."""
    edge = style.colour if hollow or style.marker == "x" else "white"
    face = "white" if hollow else style.colour
    axes.plot(
        [x], [y], marker=style.marker, markersize=8, linestyle="", color=face, markeredgecolor=edge,
        markeredgewidth=1.6 if edge != "white" else 0.8, zorder=4, clip_on=False,
    )  # fmt: skip


def draw_hill(axes: "Axes", values: np.ndarray, edges: np.ndarray, base: float, tall: float, colour: str) -> None:
    """A histogram over the edges (B + 1,), smoothed by a Gaussian of Silverman's width, as a hill of the given height."""
    counts = np.histogram(values, edges)[0].astype(float)
    bins = max(1.06 * float(values.std()) * len(values) ** -0.2 / (edges[1] - edges[0]), 1.0)
    reach = min(math.ceil(4 * bins), (len(counts) - 1) // 2)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / bins) ** 2)
    smooth = np.convolve(counts, kernel / kernel.sum(), mode="same")
    middle, up = (edges[1:] + edges[:-1]) / 2, base - tall * smooth / max(smooth.max(), 1e-12)
    axes.fill_between(middle, base, up, color=colour, alpha=0.38, linewidth=0, zorder=3)
    axes.plot(middle, up, color=colour, linewidth=1.2, zorder=4)


# ------------------------------------------------------------------------------------ limits, ticks, points in the way


def limits(values: Sequence[float], pad: float) -> tuple[float, float]:
    """Limits with `pad` of their width at both ends; never empty."""
    low, high = min(values), max(values)
    width = (high - low) or max(abs(high), 1.0) * 0.1
    return low - pad * width, high + pad * width


def ticks(axes: "Axes", axis: str, room: float, whole: bool = False) -> None:
    """Few enough labels of the axis, x or y, for the room in pixels."""
    axes.locator_params(axis, nbins=max(2, min(7, int(room // 56))), integer=whole)
    axes.ticklabel_format(axis=axis, useOffset=False)


def ticks_inside(axes: "Axes") -> None:
    """Tick labels at the ends turn inwards, where axes are as wide as the figure."""
    low, high = axes.get_xlim()
    kept = [tick for tick in axes.get_xticks() if low + 0.03 * (high - low) <= tick <= high - 0.03 * (high - low)]
    axes.set_xticks(kept)
    axes.spines["left"].set_visible(False)


def side_by_side(values: Sequence[float], low: float, high: float, room: float) -> list[float]:
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
    """Places of a group's values, STEP pixels apart (less if they are many) about their mean."""
    centre, step = float(np.mean([values[place] for place in group])), min(STEP, CROWD / len(group)) * unit
    return [centre + (turn - (len(group) - 1) / 2) * step for turn in range(len(group))]

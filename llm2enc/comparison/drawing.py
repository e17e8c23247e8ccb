"""What the figures of a comparison share: their style, shortened names, points and smoothed histograms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from rich.cells import cell_len
from scipy.ndimage import gaussian_filter1d
from sklearn.isotonic import isotonic_regression

from llm2enc.comparison.summary import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, RULE = "#1c1e21", "#55595e", "#d9dbde"
TEXT, SMALL = 12, 11
COLUMN = 0.62  # width of a terminal column over the font size: a usual letter of DejaVu Sans, half a Chinese one
RC: dict[Any, Any] = {
    "text.parse_math": False,  # a dollar in a name begins no formula
    "font.size": TEXT, "text.color": INK,
    "figure.dpi": 144, "figure.facecolor": "white",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9a9ea3", "axes.linewidth": 0.8,
    "axes.labelcolor": FAINT, "axes.labelsize": SMALL, "axes.axisbelow": True,
    "axes.titlelocation": "left", "axes.titlesize": TEXT, "axes.titleweight": "bold",
    "grid.color": RULE, "grid.linewidth": 0.6,
    "legend.frameon": False, "legend.handlelength": 2.6, "legend.fontsize": SMALL,
    "legend.borderpad": 0, "legend.borderaxespad": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How a system looks in every figure."""

    colour: str
    marker: str


def new_figure(title: str, width: float, height: float) -> Figure:
    """A white figure, `width` x `height` CSS pixels large, with its title in the upper left corner."""
    layout = ConstrainedLayoutEngine(w_pad=6 / 72, h_pad=5 / 72)
    figure = Figure(figsize=(width / 72, height / 72), layout=layout)
    figure.suptitle(shorten(title, columns(width, 15 * 1.1)), x=6 / width, ha="left", size=15, weight="bold")
    return figure


def style_ticks(axes: "Axes", axis: Literal["x", "y"], count: int, whole: bool = False) -> None:
    """At most `count` intervals between the labels of an axis, x or y, which are numbers as they are read."""
    axes.tick_params(axis, labelsize=SMALL, labelcolor=FAINT, color="#9a9ea3", length=3)
    axes.locator_params(axis, nbins=count, integer=whole)
    axes.ticklabel_format(axis=axis, useOffset=False)


def columns(width: float, size: float = TEXT) -> int:
    """Terminal columns of text of a font size that fit `width` pixels."""
    return int(width / (COLUMN * size))


def shorten(text: str, columns: int) -> str:
    """The text in so many terminal columns: its middle is left out, since systems differ in the ends of their names."""
    text = plain(text)
    short, keep = text, len(text)
    while cell_len(short) > columns and keep > 2:
        keep -= 1
        short = f"{text[: keep // 2]}…{text[len(text) - keep + keep // 2 :]}"
    return short


def marker(style: Style, hollow: bool = False) -> dict:
    """What `Line2D` takes to draw a system's point."""
    edge = style.colour if hollow or style.marker == "x" else "white"
    return {
        "marker": style.marker, "markersize": 8, "linestyle": "", "color": "white" if hollow else style.colour,
        "markeredgecolor": edge, "markeredgewidth": 0.8 if edge == "white" else 1.6, "zorder": 4, "clip_on": False,
    }  # fmt: skip


def draw_hill(axes: "Axes", values: np.ndarray, base: float, tall: float, colour: str) -> None:
    """A histogram over the x axis, smoothed by a Gaussian of Silverman's width, as a hill `tall` units above `base`."""
    counts, edges = np.histogram(values, 160, axes.get_xlim())
    bins = max(1.06 * float(values.std()) * len(values) ** -0.2 / (edges[1] - edges[0]), 1.0)
    smooth = gaussian_filter1d(counts.astype(float), bins, mode="constant")
    middle, up = (edges[1:] + edges[:-1]) / 2, base - tall * smooth / max(smooth.max(), 1e-12)
    axes.fill_between(middle, base, up, color=colour, alpha=0.38, linewidth=0, zorder=3)
    axes.plot(middle, up, color=colour, linewidth=1.2, zorder=4)


def limits(values: Sequence[float], pad: float) -> tuple[float, float]:
    """Limits with `pad` of their width at both ends; never empty."""
    low, high = min(values), max(values)
    width = (high - low) or max(abs(high), 1.0) * 0.1
    return low - pad * width, high + pad * width


def side_by_side(values: Sequence[float], step: float) -> np.ndarray:
    """The values, moved as little as leaves `step` between neighbours: least squares, so a group keeps its mean."""
    order = np.argsort(values, kind="stable")
    steps = step * np.arange(len(order))
    found = np.empty(len(order))
    found[order] = isotonic_regression(np.asarray(values, float)[order] - steps) + steps
    return found

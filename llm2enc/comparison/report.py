"""The comparison as one HTML file that stands alone: no script, nothing to load, the same on a phone and on paper."""

import re
import warnings
from collections.abc import Callable, Iterable
from html import escape
from importlib.resources import files
from io import StringIO
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from llm2enc.comparison import plots
from llm2enc.comparison.results import Candidate, Comparison
from llm2enc.comparison.summary import (
    NONE,
    Score,
    anisotropy,
    by_task,
    by_type,
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
from llm2enc.storage import replace_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FULL, HALF = 1010, 472  # pixels inside a card of the whole and of half the page's width

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="data">$data</p>
</header>
<main>
$sections
</main>
</body>
</html>
""")

_FIGURES: list[tuple[str, Callable[..., "Figure"], str, bool]] = [
    (
        "Scores with 95 % intervals, by candidate",
        plots.scores,
        "Further right is better; a line is the 95 % interval, the dashed line is what words alone (TF-IDF) score, and "
        "every panel has its own scale.",
        True,
    ),
    (
        "Mean score against tokens per text",
        plots.cost,
        "Higher is better, further left is cheaper; a line is the 95 % interval, and points of nearly the same cost "
        "stand side by side.",
        False,
    ),
    (
        "Distributions of cosines of unrelated and of related texts",
        plots.similarities,
        "The further the coloured hill stands to the right of the grey one, the better cosine tells related texts from "
        "others; a narrow grey hill far from 0 is a space that is used in few directions.",
        False,
    ),
    (
        "How far the best candidate lies above each other one",
        plots.differences,
        "Where a line crosses zero (hollow point), these texts can't tell the two apart.",
        False,
    ),
    (
        "Mean score by the layer that is read",
        plots.layers,
        "The ring marks the layer whose vectors score best; it was chosen on these very texts, so expect a little less "
        "on others.",
        False,
    ),
    (
        "Prefix test",
        plots.prefix,
        "A causal model has read no ending when it reads the beginning: it stands at chance and does not move; a "
        "bidirectional one does both if it makes use of what follows.",
        False,
    ),
]

_METRICS = {
    "spearman": "Rank correlation of cosine and human score, -1 to 1 (Spearman 1904).",
    "accuracy": "Share of test texts whose class logistic regression on the vectors finds (MTEB, arXiv 2210.07316).",
    "v_measure": "Harmonic mean of homogeneity and completeness of k-means clusters (Rosenberg and Hirschberg 2007).",
    "average_precision": "Area under precision by recall when pairs are ranked by cosine (MTEB, arXiv 2210.07316).",
    "map": "Mean over the queries of the average precision of their own candidates' ranking (MTEB, arXiv 2210.07316).",
    "ndcg@10": "Gain of the first ten documents, discounted by rank, over the best possible (Järvelin and Kekäläinen 2002).",
    "f1": "F1 of the nearest neighbour as a translation, weighted as MTEB does (arXiv 2210.07316).",
}


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the report. A reader of `path` sees the old file or the whole new one, never half of it.

    OSError if the folder does not exist or can't be written.
    """
    text = render(comparison).encode(errors="replace").decode()  # a name may hold what is no Unicode
    replace_text(path, text)


def render(comparison: Comparison) -> str:
    """The HTML."""
    parts = [
        _advice(comparison),
        _candidates(comparison),
        _figures(comparison),
        _tasks(comparison),
        _differences(comparison),
        _notes(comparison),
        _facts(comparison),
        _definitions(comparison),
    ]
    return _PAGE.substitute(
        title=_text(comparison.title),
        data=_text(comparison.data),
        style=files("llm2enc.comparison").joinpath("report.css").read_text(encoding="utf-8"),
        sections="\n".join(part for part in parts if part),
    )


def svg(figure: "Figure", label: str, name: str) -> str:
    """A figure as an `svg` element of the page: its texts are texts in the page's font, and it refers to nothing outside.

    name    letters and digits that no other figure of the page has: what its ids are made of
    """
    import matplotlib

    out = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser has a font for what matplotlib's own has no glyph for.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    body = text[text.index("</metadata>") + len("</metadata>") :].strip()  # prolog, root and metadata name addresses
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # text_1 of one figure is text_1 of the next; nothing refers to them
    body = re.sub(r"<style type=\"text/css\">.*?</style>", "", body, flags=re.S)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body).replace("xlink:href", "href")
    body = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    width, height = (round(side * 72) for side in figure.get_size_inches())
    shape = "narrow" if width <= plots.NARROW else "wide"
    return (
        f'<svg class="{shape}" role="img" aria-label="{_text(label)}" viewBox="0 0 {width} {height}" '
        f'stroke-linejoin="round"><title>{_text(label)}</title>\n{body}'
    )


# ------------------------------------------------------------------------------------------------------------- sections


def _advice(comparison: Comparison) -> str:
    if not comparison.advice:
        return ""
    first, *others = comparison.advice
    more = _list(others) if others else ""
    return f'<section class="advice"><h2>Advice</h2>\n<p>{_text(first)}</p>{more}</section>'


def _candidates(comparison: Comparison) -> str:
    types = list(dict.fromkeys(outcome.type for outcome in tasks(comparison)))
    shown = everyone(comparison)
    tested = any(candidate.prefix for candidate in shown)
    # With one type its mean is the mean.
    types = types if len(types) > 1 else []
    columns = [
        [_score(Score(c.mean.value, c.mean.low, c.mean.high)) for c in shown],
        *([_score(by_type(c).get(type)) for c in shown] for type in types),
        [tokens(c) for c in shown],
        [seconds(c) for c in shown],
        [number(anisotropy(c)) for c in shown],
        [number(spread(c)) for c in shown],
    ]
    heads = ["mean score", *map(words, types), "tokens per text", "seconds per 1,000", "anisotropy", "spread"]
    if tested:
        columns.append([_score(_prefix(c)) for c in shown])
        heads.append("prefix accuracy")
    means = [
        [c.mean.value for c in shown],
        *([by_type(c)[t].value if t in by_type(c) else -2 for c in shown] for t in types),
    ]
    for values, column in zip(means, columns, strict=False):
        _mark(values, column)
    rows = []
    for place, candidate in enumerate(shown):
        row = "baseline" if candidate is comparison.baseline else "best" if place == 0 else ""
        name = f"{_dot(comparison, candidate)}{_text(candidate.name)}<small>{_text(candidate.description)}</small>"
        rows.append(_row(name, [column[place] for column in columns], row))
    caption = (
        "Best candidate first. Below a score: its 95 % interval. Bold: the highest of its column."
        + (f" {_text(comparison.baseline.name)}, the last row, is the baseline." if comparison.baseline else "")
    )  # fmt: skip
    table = _table("candidates", caption, ["candidate", *heads], rows)
    return f"<section><h2>Candidates</h2>\n{table}</section>"


def _figures(comparison: Comparison) -> str:
    needed = {
        plots.differences: comparison.differences,
        plots.layers: comparison.layers,
        plots.prefix: [candidate for candidate in comparison.candidates if candidate.prefix],
        plots.similarities: [c for c in everyone(comparison) if len(c.similarities.random)],
        plots.cost: comparison.candidates[1:],  # one point is no comparison
    }
    shown = []
    for label, draw, caption, full in _FIGURES:
        if draw in needed and not needed[draw]:
            continue
        wide = svg(draw(comparison, FULL if full else HALF), label, f"{draw.__name__}wide")
        narrow = svg(draw(comparison, plots.NARROW), label, f"{draw.__name__}narrow")
        if draw is plots.layers:
            caption += _gains(comparison)
        shown.append(f"<figure>\n{wide}\n{narrow}\n<figcaption>{_text(caption)}</figcaption></figure>")
    first, *others = shown  # the first is as wide as the page
    more = f'<div class="halves">\n{"".join(others)}</div>' if others else ""
    return f"<section><h2>Figures</h2>\n{first}{more}</section>"


def _gains(comparison: Comparison) -> str:
    """How far the best layers lie above the last."""
    said = [
        f" {one.name}: layer {int(np.argmax(one.scores))} lies {number(one.gain.value)} ({number(one.gain.low)} to "
        f"{number(one.gain.high)}) above the last."
        for one in comparison.layers
        if one.gain
    ]
    return "".join(said)


def _tasks(comparison: Comparison) -> str:
    shown = everyone(comparison)
    found = [by_task(candidate) for candidate in shown]
    rows, type = [], None
    for outcome in tasks(comparison):
        if outcome.type != type:
            type = outcome.type
            group = f"<span>{_text(words(type))}</span>"
            rows.append(f'<tr class="group"><th scope="colgroup" colspan="{len(shown) + 1}">{group}</th></tr>')
        points = [scores.get(outcome.task) for scores in found]
        cells = [_score(point) for point in points]
        _mark([point.value if point else -2 for point in points], cells)
        facts = f"{words(plain(outcome.metric))}, {outcome.language}, {_count(len(outcome.items), 'item')}"
        rows.append(_row(f"{_text(outcome.task)}<small>{_text(facts)}</small>", cells))
    heads = [f"{_dot(comparison, candidate)}{_text(candidate.name)}" for candidate in shown]
    caption = (
        "The task's main metric, and below it its 95 % interval over the task's items. Bold: the highest of its row."
    )
    table = _table("tasks", caption, ["task", *heads], rows, names=True)
    return f"<section><h2>Scores by task</h2>\n{table}</section>"


def _differences(comparison: Comparison) -> str:
    if not comparison.differences:
        return ""
    rows = []
    for one in comparison.differences:
        near = one.interval
        cells = [
            _signed(near.value),
            f"{_signed(near.low)} to {_signed(near.high)}",
            f"{100 * near.above_zero:.1f} %",
            "yes" if near.certain else "no",
        ]
        rows.append(_row(f"{_text(one.better)}<small>above {_text(one.worse)}</small>", cells))
    heads = ["difference", "95 % interval", "draws above zero", "zero outside"]
    caption = "Mean score of the best candidate less that of the other, by paired bootstrap on the same items."
    table = _table("differences", caption, ["candidates", *heads], rows)
    return f"<section><h2>Differences</h2>\n{table}</section>"


def _notes(comparison: Comparison) -> str:
    if not comparison.notes:
        return ""
    return f"<section><h2>Left out, and why</h2>\n{_list(comparison.notes, 'notes')}</section>"


def _facts(comparison: Comparison) -> str:
    facts = ({"models": ", ".join(comparison.models)} if comparison.models else {}) | comparison.facts
    if not facts:
        return ""
    pairs = "".join(f'<dt>{_text(name)}</dt><dd class="code">{_text(value)}</dd>' for name, value in facts.items())
    return f"<section><h2>How to repeat it</h2>\n<dl>{pairs}</dl></section>"


def _definitions(comparison: Comparison) -> str:
    shown = comparison.candidates
    found = {
        "95 % interval": "Middle 95 % of the scores of resampled items, as many as there are, drawn with replacement "
        "(Efron 1979). It says how far the score would move with other rows of the same tasks, not with other tasks.",
        "mean score": "Mean of the tasks' main metrics, every task with the same weight; its draws are the means of the "
        "tasks' draws.",
    }
    types = [outcome.type for outcome in tasks(comparison)]
    if len(set(types)) > 1:
        found["mean of a task type"] = (
            "Mean over its tasks. The interval of several tasks is made from theirs: half widths of independent tasks "
            "add in squares."
        )
    for metric in dict.fromkeys(outcome.metric for outcome in tasks(comparison)):
        if metric in _METRICS:
            found[words(metric)] = _METRICS[metric]
    found["tokens per text"] = "Tokens that the model reads for one text, on average, with all that is put around it."
    found["seconds per 1,000"] = "Time to encode 1,000 of the texts on this machine, measured on a sample."
    if any(len(candidate.similarities.random) for candidate in everyone(comparison)):
        found["anisotropy"] = (
            "Mean cosine of pairs of different texts drawn at random (Ethayarajh 2019, arXiv 1909.00512): 0 is a space "
            "used in every direction, 1 a point."
        )
        found["spread"] = "Standard deviation of those cosines."
    if any(candidate.prefix for candidate in shown):
        found["prefix accuracy"] = (
            "How often the vector of a sentence's beginning is nearer to that of the same beginning before an ending of "
            "the same meaning than before another one; 0.5 is chance (LLM2Vec, arXiv 2404.05961, section 4)."
        )
        found["movement"] = "Mean of 1 − cosine of one beginning's vectors before different endings."
    if comparison.differences:
        found["difference"] = "By paired bootstrap: both candidates get the same draws of every task (Koehn 2004)."
    if comparison.baseline:
        found[comparison.baseline.name] = f"The baseline. {comparison.baseline.description}"
    pairs = "".join(f"<dt>{_text(name)}</dt><dd>{_text(meaning)}</dd>" for name, meaning in found.items())
    return f"<section><h2>What the measures mean</h2>\n<dl>{pairs}</dl></section>"


# ---------------------------------------------------------------------------------------------------------------- cells


def _text(text: object) -> str:
    return escape(plain(str(text)))


def _list(texts: Iterable[str], name: str = "") -> str:
    look = f' class="{name}"' if name else ""
    return f"<ul{look}>" + "".join(f"<li>{_text(text)}</li>" for text in texts) + "</ul>"


def _table(name: str, caption: str, heads: list[str], rows: list[str], names: bool = False) -> str:
    """A table in a box of its own that scrolls sideways; with `names` the heads but the first are candidates, as HTML."""
    look = ' class="name"' if names else ""
    head = "".join(f'<th scope="col"{look if place else ""}>{text}</th>' for place, text in enumerate(heads))
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="Table of {name}"><table id="{name}">'
        f"<caption><span>{caption}</span></caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{''.join(rows)}</tbody></table></div>"
    )


def _row(head: str, cells: list[str], name: str = "") -> str:
    look = f' class="{name}"' if name else ""
    return f'<tr{look}><th scope="row">{head}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n'


def _score(score: Score | None) -> str:
    if score is None:
        return NONE
    return f"{number(score.value)}<small>{number(score.low)}–{number(score.high)}</small>"


def _mark(values: list[float], cells: list[str]) -> None:
    """Bold the cells of the highest value, if there is another one to compare it with."""
    for place, value in enumerate(values):
        if len(values) > 1 and value == max(values):
            bare, small, rest = cells[place].partition("<small>")
            cells[place] = f"<b>{bare}</b>{small}{rest}"


def _prefix(candidate: Candidate) -> Score | None:
    if not candidate.prefix:
        return None
    accuracy = candidate.prefix.accuracy
    return Score(accuracy.value, accuracy.low, accuracy.high)


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _dot(comparison: Comparison, candidate: Candidate) -> str:
    colour = plots.BASELINE if candidate is comparison.baseline else plots.COLOURS[kind(candidate.name)]
    return f'<span class="dot" style="background:{colour}"></span>'

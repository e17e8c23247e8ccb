"""The report of a comparison: it stands alone, says what was measured, and a real browser shows all of it."""

import base64
import dataclasses
import io
import json
import math
import shutil
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.text import Text
from rich.cells import cell_len
from rich.console import Console

from llm2enc.comparison import plots, summary, table
from llm2enc.comparison.drawing import SMALL, shorten, side_by_side
from llm2enc.comparison.report import FULL, HALF, render, write_report
from llm2enc.comparison.results import Comparison, Difference, Layers, PrefixTest, Similarities, SystemResult
from llm2enc.comparison.storage import to_json
from llm2enc.evaluation import Interval, TaskResult, difference, draws, interval, mean_interval

COUNT = 40  # draws of an interval
USUAL = (
    "bidirectional-mean", "echo-mean", "bidirectional-last", "prompt-eol", "causal-weighted-mean", "causal-mean",
    "causal-last",
)  # fmt: skip
HOSTILE = (
    "<script>alert('a')</script>-mean",
    "bidirectional-\"quoted\" & 'single' $x_1$ <b>",
    "causal-日本語の文章埋め込みモデル比較実験",
    "echo-" + "very-long-name-" * 13,
    "prompt-\x1b[31m\u2028[red]έ 🦙 &amp;\udc80\uffff",
    "trained",
)
METRICS = {
    "sts": "spearman", "classification": "accuracy", "clustering": "v_measure", "retrieval": "ndcg@10",
    "pair_classification": "average_precision", "reranking": "map", "summarization": "spearman", "bitext": "f1",
}  # fmt: skip


def make(names=USUAL, types=("sts", "classification", "retrieval"), per_type=1, rows=60, **parts) -> Comparison:
    """Outcomes of random items, the names in falling quality, and everything that follows from them."""
    generator = np.random.default_rng(5)
    ease = {f"{type}-{number}": generator.uniform(-0.2, 0.2) for type in types for number in range(per_type)}
    level = np.linspace(0.62, 0.5, len(names))
    systems = [_system_result(name, level[place], ease, rows, generator) for place, name in enumerate(names)]
    systems.sort(key=lambda system: -system.mean.value)
    best = systems[0]
    given = {
        "title": "What Pocket & <friends> can do",
        "models": ["pocket"],
        "data": f"{len(ease)} tasks of {rows} items each, drawn with seed 5 from public test sets.",
        "systems": systems,
        "differences": [Difference(best.name, o.name, _ahead(best, o)) for o in systems[1:]],
        "advice": [
            f"Take {best.name}: it scores {best.mean.value:.3f}, and no cheaper way reaches that on these texts.",
            "Reading the text twice costs twice the tokens and gains nothing here.",
            "The last token of the causal model is worse than words alone on retrieval.",
        ],
        "layers": [
            Layers(
                best.name, [0.0701 + 0.04 * math.sin(layer / 5) for layer in range(13)], Interval(0.08, 0.05, 0.1, 1)
            )
        ],
        "baseline": _system_result("TF-IDF", 0.48, ease, rows, generator, prefix=False, tokens=0.0),
        "notes": ["echo-last was left out: it needs a tokenizer with an end token.", "Rows longer than 512 were cut."],
        "facts": {"command": "llm2enc compare pocket --data <folder> -o runs/compare", "torch": "2.13.0", "seed": "42"},
    }
    return Comparison(**given | parts)


def _system_result(name, level, ease, rows, generator, prefix=True, tokens=None) -> SystemResult:
    outcomes = []
    for task, easier in ease.items():
        items = np.clip(generator.normal(level + easier, 0.25, size=rows), 0, 1)
        type, score = task.split("-")[0], float(items.mean())
        metric = METRICS[type]
        outcomes.append(TaskResult(task, type, "en", metric, score, {metric: score, "f1": score / 2}, "mean", items))
    hits = (generator.random(80) < level).astype(float)
    random = np.clip(generator.normal(1 - level, 0.08, size=400), -1, 1)
    related = np.clip(generator.normal(1 - level + 0.22, 0.09, size=200), -1, 1)
    accuracy = Interval(float(hits.mean()), float(hits.mean()) - 0.1, float(hits.mean()) + 0.1, 1.0)
    return SystemResult(
        name,
        "Every token reads every other one; the mean of the states of the text.",
        outcomes,
        [interval(outcome.score, draws(outcome, COUNT)) for outcome in outcomes],
        mean_interval(outcomes, COUNT),
        (84.25 if name.startswith("echo") else 43.5 + len(name) / 16) if tokens is None else tokens,
        12.34 * (2 if name.startswith("echo") else 1),
        Similarities(random, related),
        PrefixTest(accuracy, 0.0 if name.startswith("causal") else float(generator.uniform(0.05, 0.2)))
        if prefix
        else None,
    )


def _ahead(best: SystemResult, other: SystemResult) -> Interval:
    return difference(best.outcomes, other.outcomes, COUNT)


def usual() -> Comparison:
    """Seven systems on three tasks."""
    return make()


def large() -> Comparison:
    """Eight systems on 34 tasks of all eight types."""
    names = [f"{model} {way}" for model in ("Qwen3-0.6B", "SmolLM2-1.7B") for way in (*USUAL[:3], "causal-mean")]
    found = make(names, tuple(METRICS), 5, rows=30)
    kept = [outcome.task for outcome in found.systems[0].outcomes][:34]
    assert len(kept) == 34
    return dataclasses.replace(
        found,
        systems=[_first(system, 34) for system in found.systems],
        baseline=_first(found.baseline, 34),
        layers=[Layers(names[0], list(np.linspace(0.3, 0.5, 29))), Layers(names[4], list(np.linspace(0.5, 0.3, 25)))],
    )


def _first(system: SystemResult, count: int) -> SystemResult:
    cut = dataclasses.replace(system, outcomes=system.outcomes[:count], intervals=system.intervals[:count])
    return dataclasses.replace(cut, mean=mean_interval(cut.outcomes, COUNT))


def bare() -> Comparison:
    """One system, one task, and nothing that can be left out."""
    found = make(["causal-mean"], ("sts",))
    one = dataclasses.replace(found.systems[0], prefix=None)
    nothing = {"baseline": None, "layers": [], "notes": [], "facts": {}, "models": [], "advice": [], "differences": []}
    return dataclasses.replace(found, systems=[one], **nothing)


class Page(HTMLParser):
    """Tags with their attributes, headings, and the cells of every table."""

    VOID = frozenset({"meta", "img", "source"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.table = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in self.VOID:
            self.open.append(tag)
        self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self.table = self.tags[-1][1]["id"]
            self.tables[self.table] = []
        elif tag == "tr":
            self.tables[self.table].append([])
        elif tag in ("td", "th"):
            self.tables[self.table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open:
            return
        self.texts[self.open[-1]][-1] += data
        if "td" in self.open or "th" in self.open:
            small = "\n" if self.open[-1] == "small" else ""
            self.tables[self.table][-1][-1] += small + data.strip("\n")


def crowd() -> Comparison:
    """Fifteen systems of nearly the same cost and score."""
    ways = ("causal-last", "bidirectional-weighted-mean", "prompt-eol", "bidirectional-mean@6", "echo-mean")
    return make([f"{model} {way}" for model in ("Qwen3-0.6B", "SmolLM2-1.7B", "pocket") for way in ways])


COMPARISONS = {
    "crowd": crowd,
    "usual": usual, "large": large, "bare": bare, "hostile": lambda: make(HOSTILE, title="a </title><script>b()</script>")
}  # fmt: skip


@cache
def rendered(name: str) -> tuple[Comparison, str]:
    comparison = COMPARISONS[name]()
    return comparison, render(comparison)


@pytest.fixture(scope="module", params=["usual", "large", "bare", "hostile"])
def both(request) -> tuple[Comparison, str]:
    return rendered(request.param)


# ------------------------------------------------------------------------------------------------------------ the page


def images(page: Page) -> list[bytes]:
    """The SVG files inside a page."""
    found = [attributes.get("srcset") or attributes["src"] for tag, attributes in page.tags if tag in ("img", "source")]
    assert all(uri.startswith("data:image/svg+xml;base64,") for uri in found)
    return [base64.b64decode(uri.partition(",")[2], validate=True) for uri in found]


def test_the_page_loads_and_runs_nothing(both) -> None:
    _, text = both
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"script", "iframe", "object", "embed", "base", "link", "image", "svg"}
        for name, value in attributes.items():
            assert not name.startswith("on") and "url(" not in value
            assert name not in {"href", "action", "poster", "data", "background"}
            assert value.startswith("data:image/svg+xml;base64,") or name not in {"src", "srcset"}
    (style,) = page.texts["style"]
    assert "url(" not in style and "@import" not in style and "<" not in style
    assert "http:" not in text and "https:" not in text
    assert text.encode().decode() == text, "a name that is no Unicode is written as what is"


def test_every_image_is_an_svg_file_that_stands_alone(both) -> None:
    for image in images(Page(both[1])):
        for element in ElementTree.fromstring(image).iter():
            assert element.tag.rpartition("}")[2] not in {"script", "foreignObject", "image", "a"}
            for name, value in element.attrib.items():
                assert not name.startswith("on")
                assert value.startswith("#") or not name.endswith("href")
                assert value.count("url(") == value.count("url(#")


def test_the_page_has_one_title_every_figure_with_its_text_and_no_empty_part(both) -> None:
    comparison, text = both
    page = Page(text)
    assert page.texts["h1"] == [summary.plain(comparison.title)]
    assert all(heading.strip() for heading in page.texts["h2"])
    assert all(rows and all(row for row in rows) for rows in page.tables.values())
    there = {
        "Advice": comparison.advice, "Systems": True, "Figures": True, "Scores by task": True,
        "Differences": comparison.differences, "Left out, and why": comparison.notes,
        "How to repeat it": comparison.facts, "What the measures mean": True,
    }  # fmt: skip
    assert page.texts["h2"] == [name for name, content in there.items() if content]
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    counted = 6 - (not comparison.layers) - (not comparison.differences) - (len(comparison.systems) == 1)
    counted -= not any(system.prefix for system in comparison.systems)
    assert len(set(alts)) == counted and all(len(alt.split()) > 3 for alt in alts)
    assert len(images(page)) == 2 * counted, "one for screens, one for phones"
    assert sum(tag == "figcaption" for tag, _ in page.tags) == counted


def test_every_number_of_the_tables_is_the_comparisons(both) -> None:
    comparison, text = both
    page = Page(text)
    shown = comparison.systems + ([comparison.baseline] if comparison.baseline else [])

    def cell(value, low, high) -> str:
        return f"{value:.3f}\n{low:.3f}–{high:.3f}".replace("-", "−")

    by_name = {row[0].split("\n")[0]: row for row in page.tables["systems"][1:]}
    assert list(by_name) == [summary.plain(system.name) for system in shown]
    heads = page.tables["systems"][0]
    for system in shown:
        row = dict(zip(heads, by_name[summary.plain(system.name)], strict=True))
        assert row["system"].endswith(system.description)
        assert row["mean score"] == cell(system.mean.value, system.mean.low, system.mean.high)
        assert row["tokens per text"] == (f"{system.tokens:.1f}" if system.tokens else "–")
        assert row["seconds per 1,000"] == f"{system.seconds:.1f}"
        assert row["anisotropy"] == f"{system.similarities.random.mean():.3f}"
        assert row["spread"] == f"{system.similarities.random.std():.3f}"
        if system.prefix:
            accuracy = system.prefix.accuracy
            assert row["prefix accuracy"] == cell(accuracy.value, accuracy.low, accuracy.high)
        for type in {outcome.type for outcome in system.outcomes} if len(system.outcomes) > 1 else ():
            values = [outcome.score for outcome in system.outcomes if outcome.type == type]
            assert row[type.replace("_", " ")].startswith(f"{np.mean(values):.3f}\n")

    rows = {row[0].split("\n")[0]: row[1:] for row in page.tables["tasks"][1:] if len(row) > 1}
    assert len(rows) == len(shown[0].outcomes)
    for column, system in enumerate(shown):
        for outcome, near in zip(system.outcomes, system.intervals, strict=True):
            assert rows[outcome.task][column] == cell(outcome.score, near.low, near.high)

    for row, one in zip(page.tables.get("differences", [[]])[1:], comparison.differences, strict=True):
        near, sign = one.interval, "+" if one.interval.value > 0 else ""
        assert row[0] == f"{summary.plain(one.better)}\nabove {summary.plain(one.worse)}"
        assert row[1] == f"{sign}{near.value:.3f}".replace("-", "−")
        assert row[3:] == [f"{100 * near.above_zero:.1f} %", "yes" if near.certain else "no"]


def test_a_page_of_many_tasks_stays_small() -> None:
    assert len(rendered("large")[1].encode()) < 1.5 * 2**20


def test_the_interval_of_a_type_is_that_of_resampled_means() -> None:
    system = make(["echo-mean"], ("sts",), per_type=6, rows=200).systems[0]
    intervals = [interval(o.score, draws(o)) for o in system.outcomes]
    found = summary.by_type(dataclasses.replace(system, intervals=intervals))["sts"]
    wanted = mean_interval(system.outcomes)
    assert found.value == pytest.approx(wanted.value, abs=1e-12)
    width = wanted.high - wanted.low
    assert found.low == pytest.approx(wanted.low, abs=0.08 * width)
    assert found.high == pytest.approx(wanted.high, abs=0.08 * width)


def test_the_kind_is_read_off_the_name() -> None:
    names = {
        "causal-last": "causal",
        "Qwen 3 echo-mean": "echo",
        "prompt": "prompt",
        "bidirectional-mean": "bidirectional",
    }
    names |= {"trained": "other", "": "other", "causality": "other", "echo-1 x": "other"}
    assert {name: summary.kind(name) for name in names} == names


def test_a_report_replaces_the_old_one_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, (comparison, text) = tmp_path / "report.html", rendered("bare")
    path.write_text("old")
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_report(comparison, path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_report(comparison, path)
    assert path.read_text(encoding="utf-8") == text and list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------------------------------- figures, file and console


DRAWN = (plots.scores, plots.cost, plots.similarities, plots.layers, plots.prefix, plots.differences)


@pytest.mark.parametrize(("count", "tasks", "panels"), [(1, 1, 1), (1, 9, 2), (15, 8, 9), (15, 34, 2)])
def test_every_task_has_a_panel_until_their_types_take_its_place(count: int, tasks: int, panels: int) -> None:
    names = [f"{('causal', 'echo', 'prompt')[number % 3]}-way-{number}" for number in range(count)]
    figure = plots.scores(make(names, ("sts",), tasks, rows=8))
    assert sum(bool(axes.get_title("left")) for axes in figure.axes) == panels


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
@pytest.mark.parametrize("width", [plots.NARROW, HALF, FULL])
@pytest.mark.parametrize("name", ["crowd", "usual", "large", "hostile"])
def test_names_are_whole_inside_the_figure_and_beside_each_other(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = COMPARISONS[name]()
    names = {summary.plain(system.name) for system in comparison.systems}
    for draw in DRAWN:
        seen: list[tuple[str, tuple[float, ...]]] = []
        with monkeypatch.context() as patched:
            record = lambda text, renderer: seen.append((text.get_text(), text.get_window_extent(renderer).extents))  # noqa: B023, E731
            patched.setattr(Text, "draw", record)
            figure = draw(comparison, width)
            figure.draw_without_rendering()
        right, top = figure.bbox.max
        boxes = [(text, box * 72 / figure.dpi) for text, box in seen if text]
        for place, (text, (left, low, end, high)) in enumerate(boxes):
            assert left >= 0 and low >= 0 and end <= right * 72 / figure.dpi and high <= top * 72 / figure.dpi, text
            for other, (l, b, r, t) in boxes[place + 1 :]:  # noqa: E741
                apart = left > r - 1 or l > end - 1 or low > t - 3 or b > high - 3
                assert apart, f"{draw.__name__}, {width}: {text} lies on {other}"
        assert boxes
        if draw in (plots.scores, plots.cost, plots.prefix):
            assert {one for one in names if cell_len(one) <= 40} <= {text for text, _ in boxes}


def test_an_absent_part_is_not_drawn() -> None:
    for draw in (plots.layers, plots.prefix, plots.differences):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw(bare())


def test_candidates_of_one_cost_stand_side_by_side_and_others_stay() -> None:
    found = side_by_side([10.0, 80.0, 10.0, 10.2], 0.9)
    assert found == pytest.approx([10.0667 - 0.9, 80, 10.0667, 10.0667 + 0.9], abs=1e-4)
    many = side_by_side([1.0 + 0.001 * number for number in range(15)] + [1.1], 0.03)
    assert np.diff(many) == pytest.approx(0.03), "groups that meet are one"


def test_a_short_name_keeps_beginning_and_end() -> None:
    assert shorten("Qwen3-Embedding-0.6B bidirectional-weighted-mean", 12) == "Qwen3…d-mean"
    assert shorten("echo", 4) == "echo" and shorten("日本語", 5) == "日…語"


def test_json_has_every_field_and_every_item_at_full_precision() -> None:
    comparison = make(HOSTILE)
    data = json.loads(json.dumps(to_json(comparison)))
    assert list(data) == ["format", *(field.name for field in dataclasses.fields(Comparison))]
    for one, found in zip(comparison.systems, data["systems"], strict=True):
        assert list(found) == [field.name for field in dataclasses.fields(SystemResult)]
        assert found["name"] == one.name and found["mean"] == dataclasses.asdict(one.mean)
        for outcome, stored in zip(one.outcomes, found["outcomes"], strict=True):
            items = np.array(stored["per_example"]["values"], stored["per_example"]["dtype"])
            assert items.dtype == outcome.per_example.dtype and np.array_equal(items, outcome.per_example)


def test_the_console_table_has_the_numbers_and_no_markup() -> None:
    comparison = make(HOSTILE)
    out = io.StringIO()
    Console(file=out, width=400, color_system=None).print(table(comparison))
    lines = [line for line in out.getvalue().splitlines() if line.strip()]
    for system in [*comparison.systems, comparison.baseline]:
        mean = system.mean
        (line,) = [line for line in lines if f"{mean.value:.3f} ±{(mean.high - mean.low) / 2:.3f}" in line]
        assert line.lstrip().startswith(summary.plain(system.name)[:20]) and "\x1b" not in line
        assert f"{system.similarities.random.mean():.2f}" in line
    shown = table(comparison)
    assert [row.style for row in shown.rows] == ["bold", *[""] * 5, "dim"]
    assert str(shown.columns[-1].header) == "prefix" and str(table(bare()).columns[-1].header) == "random\ncosine"


# --------------------------------------------------------------------------------------------------------- the browser

WIDTHS = {"desktop": (1280, 900, False), "phone": (390, 844, True)}

_MEASURE = """
const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
const ground = e => { for (; e; e = e.parentElement) {
  const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
const contrast = e => { const a = light(rgb(getComputedStyle(e).color)), b = light(ground(e));
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); };
const texts = [...document.querySelectorAll("h1,h2,p,li,th,td,small,caption,figcaption,dt,dd,b")];
const root = document.documentElement;
const drawn = [...document.querySelectorAll("figure img")];
return {
  overflow: root.scrollWidth - root.clientWidth, width: root.clientWidth, page: root.scrollHeight,
  ground: ground(document.body),
  contrast: Math.min(...texts.map(contrast)), counted: texts.length,
  figures: drawn.map(s => { const b = s.getBoundingClientRect();
    return {x: b.x, y: b.y + scrollY, width: b.width, height: b.height,
      scale: b.width / (0.75 * s.naturalWidth), drawn: s.complete && s.naturalWidth > 0, narrow: s.currentSrc !== s.src}; }),
  loaded: performance.getEntriesByType("resource").map(entry => entry.name),
};
"""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("chromium and chromedriver are not on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=chromedriver))
    yield driver
    driver.quit()


@pytest.mark.full
@pytest.mark.parametrize("name", COMPARISONS)
def test_a_browser_shows_the_whole_page(name: str, browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(rendered(name)[1], encoding="utf-8")
    for device, (width, height, mobile) in WIDTHS.items():
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        grounds = []
        for scheme in ("light", "dark") if name in ("usual", "large") else ("light",):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            browser.get(path.as_uri())
            found = browser.execute_script(_MEASURE)
            where = f"{name} on a {device}, {scheme}"
            assert found["width"] == width and found["overflow"] <= 0, where
            assert found["counted"] > 10 and found["contrast"] >= 4.5, where
            assert found["loaded"] == [] and browser.get_log("browser") == [], where
            for box in found["figures"]:
                assert box["drawn"] and box["width"] > 200 and box["height"] > 60 and box["x"] >= 0, where
                assert box["scale"] * SMALL >= 10 and box["narrow"] == mobile, where
                assert box["x"] + box["width"] <= width and box["y"] + box["height"] <= found["page"], where
            grounds.append(sum(found["ground"]))
        assert grounds[0] > 700 and all(ground < 150 for ground in grounds[1:]), "dark is dark"

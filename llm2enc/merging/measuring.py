"""Was it worth it? Every parent and the merged encoder on the same tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm2enc.errors import InputError
from llm2enc.evaluation import benchmark, gather, mteb_tasks, suite


@dataclass(frozen=True)
class Row:
    """The main metric of one task, 0 to 1, or a mean."""

    task: str
    metric: str
    parents: tuple[float, ...]
    merged: float

    @property
    def best(self) -> int:
        """Number of the best parent."""
        return self.parents.index(max(self.parents))

    @property
    def gain(self) -> float:
        """What merging added to the best parent; negative where it cost something."""
        return self.merged - max(self.parents)


def check_sources(sources: Sequence[str]) -> None:
    """ValueError for sources that `scores` would refuse, to be told before anything is merged."""
    _, names = gather(sources)
    if names:
        mteb_tasks(names)


def scores(
    folders: Sequence[str | Path],
    merged: str | Path,
    sources: Sequence[str],
    out: str | Path,
    cache: Path | None = None,
    report: Callable[[str], None] = print,
    show_progress: bool = True,
) -> list[Row]:
    """Every parent and the merged encoder on the same tasks, then the mean over types; also written as out/merge.md.

    sources  what `llm2enc evaluate` takes: `smoke`, folders of tasks, files of pairs, names of mteb
    out      each encoder's own results go to out/parent-0, ..., out/merged; a second call goes on where one was stopped
    """
    out = Path(out)
    places = {**{f"parent-{n}": folder for n, folder in enumerate(folders)}, "merged": merged}
    found: list[dict[str, Any]] = []
    for name, folder in places.items():
        report(f"{name}: {folder}")
        results, failures = benchmark.run(
            str(folder), sources, out / name, cache, report=report, show_progress=show_progress
        )
        for failure in failures:
            report(f"not run: {failure.task}: {failure.reason}")
        found.append({measured.result.task: measured.result for measured in results})
    common = [task for task in found[0] if all(task in outcomes for outcomes in found)]
    if not common:
        raise InputError(f"no task of {', '.join(sources)} could be run with every encoder")
    rows = [
        Row(task, found[0][task].metric, tuple(outcomes[task].score for outcomes in found[:-1]), found[-1][task].score)
        for task in common
    ]
    means = [suite.means([outcomes[task] for task in common])["over types"] for outcomes in found]
    rows.append(Row("mean over types", "", tuple(means[:-1]), means[-1]))
    (out / "merge.md").write_text(table(rows, folders), encoding="utf-8")
    return rows


def table(rows: Sequence[Row], folders: Sequence[str | Path]) -> str:
    """The rows as a Markdown table in points of 100, the best parent named and the gain over it."""
    names = [f"{n}: {_label(Path(folder))}" for n, folder in enumerate(folders)]
    lines = [["task", "metric", *names, "merged", "best parent", "gain"], ["---", "---", *["---:"] * (len(names) + 3)]]
    for row in rows:
        points = [f"{100 * score:.1f}" for score in (*row.parents, row.merged)]
        lines.append([row.task, row.metric, *points, str(row.best), f"{100 * row.gain:+.1f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _label(folder: Path) -> str:
    """The folder's name, or its run's: every run calls its encoder `model`."""
    folder = folder.absolute()
    return folder.parent.name if folder.name == "model" else folder.name

"""Pooling x attention x stage on one set of real tasks: the controlled table of benchmarks/quality.md.

    python -m benchmarks.variants RUN --data FOLDER -o runs/variants

RUN is a folder of `llm2enc convert pocket`, FOLDER holds task folders. Every cell reads the same words (texts cut at 64
tokens) and is scored on the same rows. Run again after an interruption, it goes on where it was.
"""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from llm2enc.comparison import compare, save
from llm2enc.comparison.results import Comparison, SystemResult
from llm2enc.evaluation import Interval, difference
from llm2enc.model import quiet

# One or two tasks of every type in English, small enough for 32 cells on a CPU.
TASKS = (
    "STSBenchmark-dev",
    "STS13-filtered",
    "MRPC-test",
    "Emotion",
    "TwentyNewsgroups",
    "TrecQA-dev",
    "WikiQA-dev",
    "MED",
    "NewsroomSumm",
)
VARIANTS = (
    "causal-last",
    "causal-mean",
    "causal-weighted-mean",
    "bidirectional-last",
    "bidirectional-mean",
    "bidirectional-weighted-mean",
    "echo-last",
    "echo-mean",
)
TEXT_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a run of llm2enc")
    parser.add_argument("--data", type=Path, required=True, help="folder of task folders")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    quiet()
    found = compare(
        [arguments.run],
        [str(arguments.data / task) for task in TASKS],
        arguments.out,
        variants=VARIANTS,
        layers=False,
        max_text_tokens=TEXT_TOKENS,
        cache=arguments.out / "vectors",
        report=lambda system: print(f"{system.name}: {100 * system.mean.value:.1f}", flush=True),
    )
    save(found, arguments.out)
    text = f"{matrix(found)}\n\n{tasks(found)}\n\n{claims(found)}\n"
    (arguments.out / "variants.md").write_text(text, encoding="utf-8")
    print(text)


def matrix(found: Comparison) -> str:
    """A line per stage, a column per variant: the mean over the tasks in points of 100."""
    cells = {system.name: system for system in found.systems}
    stages = _stages(cells)
    lines = [["mean of 100", *VARIANTS], ["---", *["---:"] * len(VARIANTS)]]
    lines += [[stage, *(_points(cells[f"{stage} {variant}"].mean) for variant in VARIANTS)] for stage in stages]
    return _markdown(lines)


def tasks(found: Comparison) -> str:
    """A line per cell, best first, a column per task."""
    names = [outcome.task for outcome in found.systems[0].outcomes]
    lines = [["", "mean", *names], ["---", *["---:"] * (len(names) + 1)]]
    rows = [*found.systems, *([found.baseline] if found.baseline else [])]
    for row in rows:
        lines.append(
            [row.name, *(f"{100 * value:.1f}" for value in (row.mean.value, *(o.score for o in row.outcomes)))]
        )
    return _markdown(lines)


def claims(found: Comparison) -> str:
    """The papers' claims as differences of cells, with paired 95 % intervals."""
    cells = {system.name: system for system in found.systems}
    lines = [["claim", "difference", "95 % interval"], ["---", "---:", "---"]]
    for what, first, second in _pairs(_stages(cells)):
        gap = difference(cells[first].outcomes, cells[second].outcomes)
        lines.append([what, f"{100 * gap.value:+.1f}", f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"])
    return _markdown(lines)


def _pairs(stages: Sequence[str]) -> list[tuple[str, str, str]]:
    """Each claim with the cell that should be higher and the one that should be lower."""
    start = stages[0]
    found = [
        ("mean above last, causal (B3)", f"{start} causal-mean", f"{start} causal-last"),
        ("mean above weighted mean, causal (B3: below)", f"{start} causal-mean", f"{start} causal-weighted-mean"),
        ("bidirectional above causal, mean (B3: Mistral only)", f"{start} bidirectional-mean", f"{start} causal-mean"),
        ("Echo above causal, mean (B6)", f"{start} echo-mean", f"{start} causal-mean"),
        ("Echo mean above Echo last (B6)", f"{start} echo-mean", f"{start} echo-last"),
        ("Echo above bidirectional, mean, untrained (B6)", f"{start} echo-mean", f"{start} bidirectional-mean"),
    ]  # fmt: skip
    for before, after in pairwise(stages):
        found.append(
            (f"{after} above {before}, bidirectional mean (B1)", *(f"{s} bidirectional-mean" for s in (after, before)))
        )
    last = stages[-1]
    found.append((f"bidirectional above causal, mean, {last}", f"{last} bidirectional-mean", f"{last} causal-mean"))
    return found


def _stages(cells: dict[str, SystemResult]) -> list[str]:
    """Names of the stages in the order of training."""
    order = ("untrained", "after clm", "after mntp", "after simcse", "after contrastive")
    present = {name.rpartition(" ")[0] for name in cells}
    return [stage for stage in order if stage in present]


def _points(score: Interval) -> str:
    return f"{100 * score.value:.1f} ± {50 * (score.high - score.low):.1f}"


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()

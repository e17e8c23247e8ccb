"""llm2enc beside other tools, on this machine.

python -m benchmarks --quick --json FILE       the main rows, within 10 minutes on 2 cores
python -m benchmarks --markdown FILE           every row; peers with an environment of their own if it was built
python -m benchmarks compare OLD NEW           exit code 1 if a ratio got worse by more than 10 %
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

from benchmarks import environments
from benchmarks.contests import Material, contests
from benchmarks.measure import Row, ToolError, run

WORSE = 0.10  # what `compare` forgives


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compare", nargs="*", metavar="compare OLD NEW", help="two files written by --json")
    parser.add_argument("--quick", action="store_true", help="fewer rows, texts and rounds")
    parser.add_argument("--only", default="", help="contests whose key contains this")
    parser.add_argument("--rounds", type=int, help="5, or 2 with --quick")
    parser.add_argument(
        "--threads", type=int, default=1, help="1: CPU seconds of one thread, which neighbours disturb least"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"), help="models, texts and environments")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    if arguments.compare:
        if len(arguments.compare) != 3 or arguments.compare[0] != "compare":
            parser.error(f"expected `compare OLD NEW`, got {' '.join(arguments.compare)!r}")
        sys.exit(report_changes(*(json.loads(Path(path).read_text()) for path in arguments.compare[1:])))
    rows, notes = measure_all(arguments)
    print(f"\n{table(rows)}\n\n{machine()}")
    for note in notes:
        print(note)
    if arguments.json:
        found = {"machine": machine(), "notes": notes, "rows": [row.to_json() for row in rows]}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text("\n\n".join([table(rows), machine(), *notes]) + "\n")


def measure_all(arguments: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Rows of every contest that can run here, and why others cannot."""
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    rows: list[Row] = []
    notes: list[str] = []
    found, missing = interpreters(arguments.folder)
    files = Material(arguments.folder / "material")
    notes.append(corpus(files.corpus()))
    for key, make in contests(files, arguments.quick).items():
        if arguments.only not in key:
            continue
        contest = make()
        if contest.peer in missing:
            notes.append(f"{key}: not measured, {missing[contest.peer]}")
            continue
        since = time.perf_counter()
        try:
            new = run(contest, found, rounds, arguments.threads)
        except ToolError as error:
            notes.append(f"{key}: {error}")
            new = []
        rows += new
        for row in new:
            print(line(row), flush=True)
        print(f"    {key}: {time.perf_counter() - since:.0f} s", flush=True)
    if arguments.only in "start":
        rows.append(start())
        print(line(rows[-1]), flush=True)
    return rows, notes


def interpreters(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The python of each tool that needs another than ours, and what to do about those that have none."""
    found, missing = {}, {}
    for tool, environment in environments.ENVIRONMENT_OF.items():
        path = environments.interpreter(tool, folder)
        if path is not None:
            found[tool] = str(path)
        elif tool == "sentence_transformers" and _importable(tool):
            found[tool] = sys.executable
        else:
            missing[tool] = f"no environment: python -m benchmarks.environments {environment} -o {folder}"
    return found, missing


def _importable(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def start() -> Row:
    """Seconds until `llm2enc --help` has answered, beside an empty Python."""

    def seconds(*command: str) -> float:
        since = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - since

    pairs = [(seconds("-m", "llm2enc", "--help"), seconds("-c", "pass")) for _ in range(11)]
    ours = [own for own, _ in pairs]
    return Row(
        "llm2enc --help, s", "cost", "python -c pass", "s", median(ours), median(p for _, p in pairs), median(ours),
        min(ours), max(ours), 0.30, 0.15, True, "",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- showing


def line(row: Row) -> str:
    """One row for the terminal."""
    void = "" if row.equal else "  VOID: results differ"
    return (
        f"{row.name}: {row.ratio:.2f} ({row.low:.2f}-{row.high:.2f}), gate {row.gate:g}, stretch {row.stretch:g}"
        f"{void}  {row.difference}"
    )


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| | beside | ours | theirs | ratio | wall | gate | stretch | agreement |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        reached = "**void**" if not row.equal else f"{row.ratio:.2f} ({row.low:.2f}–{row.high:.2f})"
        mark = {True: " ✓", False: " ✗"}
        lines.append(
            f"| {row.name} | {row.peer_tool} | {row.ours:.3g} {row.unit} | {row.peer:.3g} {row.unit} | {reached} | "
            f"{'' if row.wall is None else f'{row.wall:.2f}'} | "
            f"{row.gate:g}{mark[row.reaches(row.gate)]} | {row.stretch:g}{mark[row.reaches(row.stretch)]} | "
            f"{row.difference} |"
        )
    return "\n".join(lines)


def corpus(facts: dict[str, float]) -> str:
    """The texts' lengths, and what padding costs on them, in one line."""
    return (
        f"Texts: {facts['texts']:,} of log-normal length, median {facts['median_tokens']:.0f} tokens, 90th percentile "
        f"{facts['p90_tokens']:.0f}. Batches of 32 compute {facts['padding_by_characters']:.2f} tokens per real one sorted "
        f"by characters, {facts['padding_by_tokens']:.2f} sorted by tokens, {facts['padding_in_given_order']:.2f} unsorted."
    )


def machine() -> str:
    """Processor, cores, instructions, load and versions, in one line."""
    import torch

    facts = dict(
        row.split(":", 1) for row in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in row
    )
    name = next((value.strip() for key, value in facts.items() if key.strip() == "model name"), platform.processor())
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "sentence-transformers"))
    return (
        f"Machine: {name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, load "
        f"{os.getloadavg()[0]:.1f}; {packages}; Python {platform.python_version()}."
    )


def report_changes(old: dict, new: dict) -> int:
    """1 if a row of `old` is gone, void, or worse by more than 10 %; every change is printed."""
    now = {row["name"]: row for row in new["rows"]}
    failed = False
    for row in old["rows"]:
        name, found = row["name"], now.get(row["name"])
        if found is None or not found["equal"]:
            print(f"{name}: {'gone' if found is None else 'void, results differ'}")
            failed = True
            continue
        change = found["ratio"] / row["ratio"] - 1
        worse = change > WORSE if row["better"] == "lower" else change < -WORSE
        failed |= worse
        print(f"{name}: {row['ratio']:.2f} -> {found['ratio']:.2f} ({change:+.0%}){' WORSE' if worse else ''}")
    return int(failed)


if __name__ == "__main__":
    main()

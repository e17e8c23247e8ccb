"""The three stages on real text with the packaged model, and a table of what each of them adds.

    python -m benchmarks.quality --data FOLDER -o runs/quality [--json FILE] [--set stages.contrastive.steps=300 ...]

FOLDER holds lm/, sentences/, train/ and eval/ in the formats that benchmarks/quality.yaml and llm2enc/evaluation/tasks.py
name, and baselines.json with the scores of other encoders. Run again after an interruption, it goes on where it was.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llm2enc.conversion import convert
from llm2enc.conversion.run import Row
from llm2enc.evaluation import evaluate
from llm2enc.recipe import Recipe, load_recipe
from llm2enc.recipe.evaluation import FolderEval

BASELINES = {"TF-IDF": "tfidf", "all-MiniLM-L6-v2": "all-MiniLM-L6-v2"}  # row of the table: key in baselines.json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="write the rows of the table here")
    parser.add_argument("--set", nargs="+", action="extend", default=[], dest="overrides", metavar="PATH=VALUE")
    arguments = parser.parse_args()
    result = convert(read_recipe(arguments.data, arguments.overrides), arguments.out, resume=True)
    others = baseline_rows(arguments.data / "baselines.json")
    rows = [*result.history, *others]
    stages = markdown(rows, groups(arguments.data / "eval", list(result.history[-1]["scores"])))
    # Every task once, for the trained encoder: measured after every stage, they would take longer than the training.
    every = evaluate(result.encoder, (FolderEval(kind="folder", path=str(arguments.data / "eval")),))
    final = [{"stage": "trained encoder", "scores": every}, *others]
    rows += final[:1]
    table = f"By stage:\n\n{stages}\n\nEvery task:\n\n{markdown(final, groups(arguments.data / 'eval', list(every)))}"
    print(table)
    (arguments.out / "quality.md").write_text(table + "\n", encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def read_recipe(data: Path, overrides: list[str]) -> Recipe:
    """benchmarks/quality.yaml with the overrides, and the data folder in place of ${data}."""
    recipe = load_recipe(Path(__file__).with_suffix(".yaml"), overrides)
    # In JSON, so that no character of the path can change the structure.
    return Recipe.model_validate_json(recipe.model_dump_json().replace("${data}", json.dumps(str(data))[1:-1]))


def baseline_rows(path: Path) -> list[Row]:
    """What others score on the same tasks, as rows of the table."""
    tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    return [
        {"stage": name, "scores": {task: scores[key] for task, scores in tasks.items()}}
        for name, key in BASELINES.items()
    ]


def groups(folder: Path, metrics: list[str]) -> dict[str, list[str]]:
    """The measured tasks by type, English and other languages apart."""
    found: dict[str, list[str]] = {}
    for name in metrics:
        path = folder / name / "task.json"
        if path.is_file():  # the docstrings have no folder
            task = json.loads(path.read_text(encoding="utf-8"))
            kind = "STS" if task["type"] == "sts" else task["type"].replace("_", " ")
            found.setdefault(kind if task["language"] == "en" else f"{kind}, other languages", []).append(name)
    return found


def markdown(rows: list[Row], groups: Mapping[str, list[str]]) -> str:
    """One line per row: seconds, the mean of every group, and every task, in points of 100."""
    tasks = [name for names in groups.values() for name in names]
    header = ["", "seconds", *(f"mean {kind}" for kind in groups), *tasks]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row in rows:
        scores = row["scores"]
        numbers = [np.mean([scores[name] for name in names]) for names in groups.values()]
        numbers += [scores[name] for name in tasks]
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else ""
        lines.append([row["stage"], seconds, *(f"{100 * number:.1f}" for number in numbers)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()

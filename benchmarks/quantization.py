"""What smaller vectors lose in search: recall and nDCG beside float32 vectors of full width, of the same encoder.

python -m benchmarks.quantization DIR --data FOLDER                  every retrieval task of a folder
python -m benchmarks.quantization DIR --data FOLDER --markdown FILE  the table into a file too

Search is exact. Rows:

int8 x int8        inner product of the codes, as an index over int8 computes it; all dimensions with one range
float x int8       the float query with documents decoded to the middle of their step, likewise
..., a range each  the same with the smallest and largest value of each dimension
bits               Hamming distance of the signs; of equal ones the document that stands first
bits, 40 rescored  the 40 nearest by bits, put in order by their float32 vectors, which stay on disk
D/2, D/4, D/8      the first dimensions, normalised again
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm2enc.encoding import calibrate
from llm2enc.encoding.quantization import quantize
from llm2enc.evaluation import RetrievalTask, find_tasks, read_task
from llm2enc.evaluation.metrics import ranking_metrics, unit

DEPTH, RESCORED = 10, 40


@dataclass(frozen=True)
class Search:
    """What a form of the vectors finds."""

    bytes: int
    """Of a document's vector in the index."""
    ranking: np.ndarray
    """(Q, DEPTH) rows of the documents, best first."""


@dataclass(frozen=True)
class Quality:
    bytes: int
    recall: float
    """Share of the DEPTH documents of float32 that are found too."""
    ndcg: float
    """nDCG@10 by the task's judgements."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="directory of an encoder")
    parser.add_argument("--data", type=Path, required=True, help="folder of tasks")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    from llm2enc.encoding import Encoder

    encoder = Encoder.load(arguments.model)
    tasks = [task for path in find_tasks(arguments.data).values() if isinstance(task := read_task(path), RetrievalTask)]
    if not tasks:
        parser.error(f"{arguments.data} has no retrieval task")
    measured = {}
    for task in tasks:
        queries = encoder.encode(list(task.queries.values()), prompt_name="query", show_progress=True)
        documents = encoder.encode(list(task.documents.values()), prompt_name="document", show_progress=True)
        measured[task.name] = qualities(task, queries, documents)
        print(table({task.name: measured[task.name]}), end="\n\n", flush=True)
    print(table(measured))
    if arguments.markdown:
        arguments.markdown.write_text(table(measured) + "\n", encoding="utf-8")


def qualities(task: RetrievalTask, queries: np.ndarray, documents: np.ndarray) -> dict[str, Quality]:
    """Quality of every form by its name; `float32` is the first."""
    found = searches(unit(queries), unit(documents))
    wanted = found["float32"].ranking
    return {
        name: Quality(one.bytes, recall(one.ranking, wanted), ndcg(one.ranking, task)) for name, one in found.items()
    }


def searches(
    queries: np.ndarray, documents: np.ndarray, depth: int = DEPTH, rescored: int = RESCORED
) -> dict[str, Search]:
    """What every form finds of documents (N, D) for queries (Q, D), all of unit length. Ranges are the documents'."""
    width = documents.shape[1]
    exact = queries @ documents.T  # (Q, N)
    found = {"float32": Search(4 * width, best(exact, depth))}

    for shared, suffix in ((True, ""), (False, ", a range each")):
        ranges = calibrate(documents, shared)
        codes = [quantize(side, "int8", ranges).astype(np.float64) for side in (queries, documents)]  # exact sums
        decoded = ranges[0] + (codes[1] + 128.5) * (ranges[1] - ranges[0]) / 255
        found[f"int8 x int8{suffix}"] = Search(width, best(codes[0] @ codes[1].T, depth))
        found[f"float x int8{suffix}"] = Search(width, best(queries @ decoded.T, depth))

    bits = [np.unpackbits(quantize(side, "ubinary"), axis=1).astype(np.float32) for side in (queries, documents)]
    distance = bits[0].sum(axis=1)[:, None] + bits[1].sum(axis=1) - 2 * bits[0] @ bits[1].T
    size = -(-width // 8)
    found["bits"] = Search(size, best(-distance, depth))
    near = best(-distance, rescored)
    order = best(np.take_along_axis(exact, near, axis=1), depth)
    found[f"bits, {rescored} rescored"] = Search(size, np.take_along_axis(near, order, axis=1))

    for part in (2, 4, 8):
        kept = width // part
        scores = unit(queries[:, :kept]) @ unit(documents[:, :kept]).T
        found[f"D/{part}"] = Search(4 * kept, best(scores, depth))
    return found


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """Columns of the `count` highest scores of each row, best first; of equal ones the first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    """Mean share of each row of `wanted` (Q, K) that is in the same row of `found`."""
    return float(np.mean([len(set(one) & set(other)) / len(other) for one, other in zip(found, wanted, strict=True)]))


def ndcg(ranking: np.ndarray, task: RetrievalTask) -> float:
    """Mean nDCG@10 of rankings (Q, K) in the order of the task's queries and documents."""
    ids = list(task.documents)
    run = {
        query: {ids[row]: float(len(rows) - place) for place, row in enumerate(rows)}
        for query, rows in zip(task.queries, ranking.tolist(), strict=True)
    }
    return float(ranking_metrics(run, task.qrels, task.ignore_identical_ids)["ndcg@10"].mean())


def table(measured: Mapping[str, Mapping[str, Quality]]) -> str:
    """Markdown: a row for each form, means over the tasks first, then recall@10 / nDCG@10 of each task."""
    names: Sequence[str] = list(next(iter(measured.values())))
    lines = [["vectors", "bytes", "recall@10", "nDCG@10", *measured], ["---", *["---:"] * (3 + len(measured))]]
    for name in names:
        rows = [qualities[name] for qualities in measured.values()]
        means = [np.mean([row.recall for row in rows]), np.mean([row.ndcg for row in rows])]
        cells = [f"{row.recall:.3f} / {row.ndcg:.3f}" for row in rows]
        lines.append([name, str(rows[0].bytes), *(f"{mean:.3f}" for mean in means), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()

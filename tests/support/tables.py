"""What tests of scores share: an encoder that looks vectors up, and a small task of every type to be written to files.

score(TableEncoder({"text": [1, 0], ...}), task)    a score that can be worked out by hand
write_task(folder, "sts")                           a task folder of FILES["sts"]
private_cache                                       a fixture: `datasets` caches in the test's own folder, and stays offline
"""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest

from llm2enc.evaluation import Task, score


class TableEncoder:
    """Vectors from a table, and a note of every call."""

    def __init__(self, vectors: dict[str, Sequence[float]]):
        self.vectors = vectors
        self.calls: list[tuple[list[str], dict[str, str | None]]] = []

    def encode(self, texts, *, instruction=None, prompt_name=None):
        self.calls.append((list(texts), {"instruction": instruction, "prompt_name": prompt_name}))
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)


# Cosines with `east`: 1, 0.6, 0, -0.6, -1.
PLANE = {"east": [1, 0], "steep": [3, 4], "north": [0, 2], "back": [-3, 4], "west": [-5, 0], "also steep": [6, 8]}
LOG3 = np.log2(3)  # what a gain at rank 2 is divided by; at rank 3 it is log2(4) = 2


def scored(task: Task, vectors: dict[str, Sequence[float]] = PLANE):
    return score(TableEncoder(vectors), task)


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "cache" / name)
    # A missing directory is looked up on the hub, which a test must not wait for.
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


# --------------------------------------------------------------------------------------------------------------- files

PAIRS = ["sentence1\tsentence2\tscore", "one\ttwo\t5.0", 'a "quoted\tsplit\u2028line\t-1e-1']
LABELLED = [json.dumps({"text": text, "label": label}) for text, label in (("x", "a"), ("y", 1), ("z", "a"))]
CORPUS = [
    {"_id": "a", "title": "Title", "text": "body\u2028more"},
    {"_id": "b", "text": " bare "},
    {"_id": "c", "title": None, "text": "x"},
]
QUERIES = [{"_id": f"q{row}", "text": text} for row, text in enumerate(("first", "second", "never judged", "all 0"))]
QRELS = ["query-id\tcorpus-id\tscore", "q0\ta\t2", "q0\tb\t0", "q1\tc\t1", "q3\ta\t0", "other split\tzzz\t1"]
SUMMARIES = [{"human_summaries": ["h"], "machine_summaries": ["m", "n"], "relevance": [1, 2.5]}]
RERANKED = [
    {"query": "q", "positive": ["p"], "negative": ["n", "m"]},
    {"query": "nothing to tell apart", "positive": ["p"], "negative": []},
]


def jsonl(rows: list[dict]) -> list[str]:
    return [json.dumps(row, ensure_ascii=False) for row in rows]


FILES: dict[str, dict[str, list[str]]] = {
    "sts": {"test.tsv": PAIRS},
    "pair_classification": {"test.tsv": ["label\tsentence1\tsentence2", "1\ta\tb", "0\tc\td"]},
    "bitext": {"test.tsv": ["sentence1\tsentence2", "eins\tone", "zwei\ttwo"]},
    "classification": {"train.jsonl": LABELLED, "test.jsonl": LABELLED[:1]},
    "clustering": {"test.jsonl": LABELLED},
    "reranking": {"test.jsonl": jsonl(RERANKED)},
    "retrieval": {"corpus.jsonl": jsonl(CORPUS), "queries.jsonl": jsonl(QUERIES), "qrels.tsv": QRELS},
    "summarization": {"test.jsonl": jsonl(SUMMARIES)},
}


def write(path: Path, lines: list[str], compressed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(line + "\n" for line in lines).encode()
    if compressed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


def write_task(folder: Path, kind: str, compressed: bool = False, **more: str) -> Path:
    write(folder / "task.json", [json.dumps({"name": folder.name, "type": kind, **more})])
    for name, lines in FILES[kind].items():
        write(folder / name, lines, compressed)
    return folder

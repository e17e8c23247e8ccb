"""Does the saved directory give the same vectors as the encoder that wrote it, in every program that opens it?

The directory is opened again by llm2enc, and by sentence-transformers in a process of its own if that is installed. Both
encode the same texts, alone and in one batch. Other programs are compared in float32, whatever type the weights are
stored in: two roundings to 16 bits would hide the difference that is looked for.
"""

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm2enc.encoder import Encoder

TEXTS = (
    "A short text.",
    "Ein etwas längerer Satz mit Umlauten, der zeigt, dass nicht nur Englisch gelesen wird.",
    "多语言文本 and a few emoji 🙂🙃 in one line",
    "def function(argument):\n    return argument + 1\n",
    "word " * 600,  # beyond the limit of most input formats: both sides must cut at the same token
)
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-3}  # of cosine to 1; rounding of alone against batch

_OPEN_IN_SENTENCE_TRANSFORMERS = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", model_kwargs={"dtype": "float32"})
texts = json.loads(sys.argv[2])
batch = model.encode(texts, normalize_embeddings=True)
alone = np.stack([model.encode([text], normalize_embeddings=True)[0] for text in texts])
print("VECTORS" + json.dumps([batch.tolist(), alone.tolist()]))
"""


@dataclass(frozen=True)
class Parity:
    """How far another program's vectors are from ours."""

    engine: str
    cosine: float | None
    """Smallest cosine similarity over texts, alone and in a batch; None if it could not be compared."""
    note: str = ""
    dtype: str = "float32"
    """What the vectors were computed in, which says how much rounding is expected."""

    @property
    def agrees(self) -> bool:
        return self.cosine is None or self.cosine >= 1 - TOLERANCE[self.dtype]


def verify(encoder: Encoder, folder: Path) -> list[Parity]:
    """Parity of the directory `folder`, written from `encoder`, in each engine that is installed here."""
    ours = _unit(encoder.encode(list(TEXTS)))
    reopened = Encoder.load(folder)
    dtype = str(next(reopened.parameters()).dtype).removeprefix("torch.")
    alone = np.stack([reopened.encode(text) for text in TEXTS])
    own = Parity("llm2enc", _smallest_cosine(ours, [_unit(reopened.encode(list(TEXTS))), _unit(alone)]), dtype=dtype)
    reopened.float()
    return [own, _in_sentence_transformers(_unit(reopened.encode(list(TEXTS))), folder)]


def _in_sentence_transformers(ours: np.ndarray, folder: Path) -> Parity:
    name = "sentence-transformers"
    facts = json.loads((folder / "llm2enc.json").read_text(encoding="utf-8"))
    if not facts.get("native", True):
        return Parity(name, None, f"not comparable: {facts['reason']}")
    if importlib.util.find_spec("sentence_transformers") is None:
        return Parity(name, None, "not installed here: pip install 'llm2enc[serve]'")
    command = [sys.executable, "-c", _OPEN_IN_SENTENCE_TRANSFORMERS, str(folder), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("VECTORS")]
    if not lines:
        return Parity(name, 0.0, f"does not open it: {done.stderr.strip().splitlines()[-1:]}")
    theirs = [np.asarray(vectors, dtype=np.float32) for vectors in json.loads(lines[0].removeprefix("VECTORS"))]
    return Parity(name, _smallest_cosine(ours, theirs))


def _smallest_cosine(ours: np.ndarray, theirs: list[np.ndarray]) -> float:
    return float(min((ours * vectors).sum(axis=1).min() for vectors in theirs))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

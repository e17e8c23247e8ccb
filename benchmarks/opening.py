"""Open a directory by one program and hold its vectors against the golden ones. One line of JSON after FOUND.

    python opening.py sentence_transformers|transformers|infinity DIR

Runs in foreign interpreters: imports nothing but the standard library, numpy, torch and the program.
"""

import importlib
import json
import logging
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

# What a warning about the wrong direction is known by; old releases warn of much else.
TELLING = ("causal", "bidirectional", "requirement", "requires")
PACKAGES = {
    "sentence_transformers": ("sentence_transformers", "transformers"),
    "transformers": ("transformers",),
    "infinity": ("infinity_emb", "sentence_transformers", "transformers"),
}


def main() -> None:
    program, directory = sys.argv[1], Path(sys.argv[2])
    facts = json.loads((directory / "llm2enc.json").read_text(encoding="utf-8"))
    heard = listen()
    versions = {name.replace("infinity_emb", "infinity"): version(name) for name in PACKAGES[program]}
    found: dict[str, Any] = {"versions": versions}
    try:
        encode = PROGRAMS[program](directory, facts)
        golden, texts = np.asarray(facts["golden"]["vectors"]), facts["golden"]["texts"]
        found["alone"] = smallest_cosine(np.concatenate([encode([text]) for text in texts]), golden)
        found["batch"] = smallest_cosine(encode(texts), golden)
    except Exception as error:
        found = {"versions": versions, "error": f"{type(error).__name__}: {error}"}
    found["warnings"] = [text for text in dict.fromkeys(heard) if any(word in text.lower() for word in TELLING)]
    print("FOUND " + json.dumps(found))


def listen() -> list[str]:
    """A list that grows by every warning, from the warnings module or from a logger."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    # transformers' loggers do not pass on to the root.
    for name in (None, "transformers"):
        logging.getLogger(name).addHandler(Ear(logging.WARNING))
    warnings.showwarning = lambda message, *_, **__: heard.append(str(message))
    return heard


def smallest_cosine(vectors: np.ndarray, golden: np.ndarray) -> float:
    """Over the rows of (texts, dimensions)."""
    products = (vectors * golden).sum(axis=1)
    return float((products / np.linalg.norm(vectors, axis=1) / np.linalg.norm(golden, axis=1)).min())


Encode = Callable[[list[str]], np.ndarray]


def by_sentence_transformers(directory: Path, facts: dict[str, Any]) -> Encode:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(directory), device="cpu")
    return lambda texts: model.encode(texts)


def by_infinity(directory: Path, facts: dict[str, Any]) -> Encode:
    """Its engine as its server builds it, on the CPU."""
    from infinity_emb import EngineArgs, SyncEngineArray

    arguments = EngineArgs(model_name_or_path=str(directory), engine="torch", device="cpu", model_warmup=False)
    engines = SyncEngineArray.from_args([arguments])
    prompt = facts["prompts"].get("document", "")

    def encode(texts: list[str]) -> np.ndarray:
        vectors, _ = engines.embed(model=str(directory), sentences=[prompt + text for text in texts]).result()
        return np.stack(vectors)

    return encode


def by_transformers(directory: Path, facts: dict[str, Any]) -> Encode:
    """AutoModel, and pooling by hand: what people write who have no sentence-transformers."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory).eval()
    prompt = facts["prompts"].get("document", "")

    def encode(texts: list[str]) -> np.ndarray:
        batch = tokenizer([prompt + text for text in texts], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"].float()
        weights = {
            "mean": mask,
            "weighted_mean": mask * mask.cumsum(dim=1),
            "last": mask * (mask.cumsum(dim=1) == mask.sum(dim=1, keepdim=True)),
            "first": mask * (mask.cumsum(dim=1) == 1),
        }[facts["pooling"]]
        return ((states * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)).float().numpy()

    return encode


PROGRAMS: dict[str, Callable[[Path, dict[str, Any]], Encode]] = {
    "sentence_transformers": by_sentence_transformers,
    "transformers": by_transformers,
    "infinity": by_infinity,
}


if __name__ == "__main__":
    importlib.import_module("torch")  # first: its absence is a fault of the environment, not of the program
    main()

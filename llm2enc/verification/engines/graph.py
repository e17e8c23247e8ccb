"""What ONNX Runtime and OpenVINO have in common: a graph with the output sentence_embedding."""

from collections.abc import Callable

import numpy as np
from reference import Job, padded
from tokenizers import Tokenizer

Run = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Ids and mask (B, S) int64 -> vectors (B, D)."""


class Graph:
    """A graph that is asked in batches of our own padding."""

    def __init__(self, job: Job, run: Run):
        self.run = run
        self.tokenizer = Tokenizer.from_file(str(job.folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(job.limit)
        self.pad = self.tokenizer.token_to_id(job.pad_token()) or 0

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def embed(self, prompt: str, texts: list[str], side: str) -> np.ndarray:
        """The graph's own vectors. No graph is written of an encoder that leaves its prompts out of the pool."""
        rows, mask = padded([self.ids(prompt + text) for text in texts], self.pad, side)
        return np.asarray(self.run(rows, mask), dtype=np.float32)

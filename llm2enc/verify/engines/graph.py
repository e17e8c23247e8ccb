"""What ONNX Runtime and OpenVINO have in common: a graph with the outputs last_hidden_state and sentence_embedding."""

from collections.abc import Callable

import numpy as np
from by_hand import Job, padded, pooled, unpooled
from tokenizers import Tokenizer

Run = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Ids and mask (B, S) int64 -> states (B, S, D) and vectors (B, D)."""


class Graph:
    """A graph that is asked in batches of our own padding."""

    def __init__(self, job: Job, run: Run):
        self.job, self.run = job, run
        self.tokenizer = Tokenizer.from_file(str(job.folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(job.limit)
        added = self.tokenizer.get_added_tokens_decoder()
        self.special = {token for token, entry in added.items() if entry.special}
        self.pad = self.tokenizer.token_to_id(job.pad_token())
        self.notes: list[str] = []

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def embed(self, prompt: str, texts: list[str], side: str) -> np.ndarray:
        """The graph's own vectors; pooled by hand where the prompt is not pooled, which the graph can't know."""
        rows, mask = padded([self.ids(prompt + text) for text in texts], self.pad, side)
        states, vectors = self.run(rows, mask)
        skipped = unpooled(self.job, prompt, self.ids, self.special)
        if not skipped:
            return np.asarray(vectors, dtype=np.float32)
        note = "with a prompt, last_hidden_state is pooled by hand: sentence_embedding would pool the prompt too"
        self.notes += [note] * (note not in self.notes)
        return pooled(self.job, np.asarray(states, dtype=np.float32), mask, skipped)

"""Vectors on disk, so that nothing is encoded twice: one file per encoder, one row per text and way of reading it.

A file is an SQLite database, so a killed process loses at most the block it was writing, and two processes may share it.
"""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from llm2enc.evaluation.opening import Opened

BLOCK = 2048  # texts encoded and written at a time: what an interruption can lose


def default_cache() -> Path:
    """Where vectors are kept: $LLM2ENC_CACHE, else `llm2enc` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LLM2ENC_CACHE") or Path(home) / "llm2enc")


class CachedEncoder:
    """An encoder that looks its vectors up first. It is a `TextEncoder`."""

    def __init__(
        self,
        encoder: Opened,
        folder: Path | None,
        advance: Callable[[int], None] = lambda count: None,
        identity: str | None = None,
    ):
        """An encoder and where its vectors are kept.

        folder    None keeps vectors in memory
        advance   called with the number of texts that are done
        identity  the encoder's fingerprint, where the caller has it: to hash 14 GB of weights takes long
        """
        self.encoder, self.advance = encoder, advance
        if folder is None:
            self._path = ":memory:"
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._path = str(folder / f"{(identity or encoder.fingerprint())[:32]}.sqlite")
        self._database = sqlite3.connect(self._path, timeout=60)
        self._database.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")

    def close(self) -> None:
        self._database.close()

    def encode(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> np.ndarray:
        """Vectors (B, D) float32."""
        asked = {"instruction": instruction, "prompt_name": prompt_name}
        keys = self._keys(texts, self.encoder.reading(**asked))
        known = dict(self._find(keys))
        self.advance(sum(key in known for key in keys))
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        for start in range(0, len(missing), BLOCK):
            block = dict(list(missing.items())[start : start + BLOCK])
            vectors = np.ascontiguousarray(self.encoder.encode(list(block.values()), **asked), dtype=np.float32)
            rows = [(key, vector.tobytes()) for key, vector in zip(block, vectors, strict=True)]
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
            known |= rows
            self.advance(len(rows))
        return np.stack([np.frombuffer(known[key], dtype=np.float32) for key in keys])

    def _find(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            query = f"SELECT key, vector FROM vectors WHERE key IN ({','.join('?' * len(some))})"
            with closing(self._database.execute(query, some)) as rows:
                yield from rows

    def _keys(self, texts: Sequence[str], reading: str) -> list[bytes]:
        start = hashlib.blake2b(f"{len(reading)} {reading}".encode(), digest_size=16)
        keys = []
        for text in texts:
            digest = start.copy()
            digest.update(text.encode("utf-8", "surrogatepass"))
            keys.append(digest.digest())
        return keys

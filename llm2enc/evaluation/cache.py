"""Vectors on disk, so that nothing is encoded twice: one file per encoder, one row per text and cache key.

A file is an SQLite database, so a killed process loses at most the block it was writing, and two processes may share it. A
row carries its checksum: what a broken disk or half a copy of the file made of it counts for nothing, and is encoded again.
"""

import hashlib
import logging
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from llm2enc.encoding import LoadedModel
from llm2enc.storage import storage_error
from llm2enc.text import Passage

BLOCK = 2048  # texts encoded and written at a time: what an interruption can lose


_log = logging.getLogger(__name__)


class CachedEncoder:
    """An encoder that looks its vectors up first. It is a `TextEncoder`."""

    def __init__(
        self,
        encoder: LoadedModel,
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
        self._database = self._open()

    def close(self) -> None:
        self._database.close()

    def forget(self) -> None:
        """Drop vectors that are in memory only.

        The last bits of a vector depend on the texts beside it. Between tasks this makes what an interrupted run finds the
        same as what it would have found: nothing.
        """
        if self._path == ":memory:":
            self.close()
            self._database = self._open()

    def encode(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> np.ndarray:
        """Vectors (B, D) float32.

        raises  OSError, which names the file, if the disk is full or closed; what was written before is kept
        """
        kwargs = {"instruction": instruction, "prompt_name": prompt_name}
        try:
            return self._encode(texts, kwargs)
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # a damaged file has no kind of its own
                raise self._explained(error) from error
            self._database.close()
            self._move()
            self._database = self._connect()
            return self._encode(texts, kwargs)

    def _encode(self, texts: Sequence[str], kwargs: dict[str, str | None]) -> np.ndarray:
        keys = self._keys(texts, self.encoder.cache_key(**kwargs))
        known = dict(self._find(keys))
        self.advance(sum(key in known for key in keys))
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        for start in range(0, len(missing), BLOCK):
            block = dict(list(missing.items())[start : start + BLOCK])
            vectors = np.ascontiguousarray(self.encoder.encode(list(block.values()), **kwargs), dtype=np.float32)
            found = [(key, vector.tobytes()) for key, vector in zip(block, vectors, strict=True)]
            with self._database:
                rows = [(key, vector + _checksum(key, vector)) for key, vector in found]
                self._database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
            known |= found
            self.advance(len(found))
        return np.stack([np.frombuffer(known[key], dtype=np.float32) for key in keys])

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.OperationalError as error:
            raise self._explained(error) from error
        except sqlite3.DatabaseError:
            self._move()
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=60)
        try:
            database.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
        except BaseException:
            database.close()
            raise
        return database

    def _move(self) -> None:
        """Move a damaged file out of the way of a new one."""
        aside = f"{self._path}.damaged"
        os.replace(self._path, aside)
        for kind in ("journal", "wal", "shm"):  # they belong to the file that is gone
            Path(f"{self._path}-{kind}").unlink(missing_ok=True)
        _log.warning("the vectors in %s are damaged: set aside as %s, and encoded again", self._path, aside)

    def _explained(self, error: sqlite3.Error) -> Exception:
        """The error with the file's name, where it comes of the file system."""
        found = storage_error(error)
        if found is None:
            return error
        return OSError(found.errno, f"{error} (the cache of vectors; see $LLM2ENC_CACHE and --no-cache)", self._path)

    def _find(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            query = f"SELECT key, vector FROM vectors WHERE key IN ({','.join('?' * len(some))})"
            with closing(self._database.execute(query, some)) as rows:
                for key, row in rows:
                    if row[-4:] == _checksum(key, row[:-4]):
                        yield key, row[:-4]

    def _keys(self, texts: Sequence[str], cache_key: str) -> list[bytes]:
        start = hashlib.blake2b(f"{len(cache_key)} {cache_key}".encode(), digest_size=16)
        keys = []
        for text in texts:
            digest = start.copy()
            digest.update(text.encode("utf-8", "surrogatepass"))
            if isinstance(text, Passage):  # with the same characters as a plain text, it may be read otherwise
                digest.update(f"\0{len(text.parts[0])}".encode())
            keys.append(digest.digest())
        return keys


def _checksum(key: bytes, vector: bytes) -> bytes:
    return zlib.crc32(vector, zlib.crc32(key)).to_bytes(4, "little")

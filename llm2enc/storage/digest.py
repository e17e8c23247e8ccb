"""What files hold, as a short string."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

_CHUNK = 2**20  # bytes


def sha256_of(files: Iterable[str | Path]) -> str:
    """SHA-256, in hexadecimal, of the bytes of files, one behind the other. Neither names nor time stamps count."""
    found = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
    return found.hexdigest()

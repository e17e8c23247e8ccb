"""One process at a time: a lock file that the operating system releases with its process, however that ends."""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import SoftFileLock, Timeout, UnixFileLock

from llm2enc.errors import Locked

_WAIT = 0.1  # seconds: a second look at a file that its holder is just removing


@contextmanager
def file_lock(path: Path, what: Path, token: str = "", patience: float = _WAIT) -> Iterator[None]:
    """Hold the lock file `path`, which is gone in the end; `PATH.soft` too where the file system has no locks.

    token     what `owner` tells others about the holder, beside process and machine
    patience  seconds to wait for another process that holds it
    raises    Locked, which names `what`, if that still holds it then, and lives
    """
    lock, remedy = UnixFileLock(path, fallback_to_soft=False), ""
    try:
        try:
            lock.acquire(timeout=patience)
        except (OSError, NotImplementedError) as error:  # filelock's own fallback knows ENOSYS only
            if getattr(error, "errno", errno.ENOSYS) not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            lock = SoftFileLock(f"{path}.soft")
            remedy = f". If that is no longer running, delete {path}.soft: this file system has no locks"
            lock.acquire(timeout=patience)
    except Timeout:
        holder = owner(path)
        who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
        advice = f"wait for it, stop it, or choose another place with -o{remedy}"
        raise Locked(f"{what} is being written by {who}; {advice}") from None
    try:
        path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "token": token}))
        yield
    finally:
        path.unlink(missing_ok=True)  # filelock leaves it; while it is locked, for whoever comes next locks a new one
        lock.release()


def owner(path: Path) -> dict[str, Any]:
    """Return who holds a lock file, as far as it says."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}

"""One process at a time: a lock file that the operating system gives up with its process, however that ends."""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from llm2enc.storage.atomic import alive

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
# File systems without locks, where the number of the process has to do.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def held(path: Path, what: Path, token: str = "") -> Iterator[None]:
    """Hold the lock file `path`, which is gone in the end.

    what    what it guards, for the message
    token   what `owner` tells others about the holder, beside process and machine
    raises  ValueError if another process that lives holds it
    """
    file = _lock(path, what)
    try:
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "token": token}))
        file.flush()
        os.fsync(file.fileno())
        yield
    finally:
        path.unlink(missing_ok=True)  # first: whoever opens it now makes a new one
        file.close()


def owner(path: Path) -> dict[str, Any]:
    """Who holds a lock file, as far as it says."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _lock(path: Path, what: Path) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no file locks")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ValueError(_in_use(what, owner(path))) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                file.close()
                raise
            holder = owner(path)
            if holder and (holder["host"] != socket.gethostname() or alive(holder["pid"])):
                file.close()
                remedy = f"If that is no longer running, delete {path}: this file system has no locks"
                raise ValueError(f"{_in_use(what, holder)}. {remedy}") from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # the job before us has just removed it


def _in_use(what: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
    return f"{what} is being written by {who}; wait for it, stop it, or choose another place with -o"

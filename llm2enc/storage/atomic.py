"""Files that are there whole or not at all: a killed program or a power cut leaves the old one or the new one."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm2enc.errors import InputError


def replace_text(path: Path, text: str) -> None:
    """`replace_bytes` of a text in UTF-8, line ends as they are."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`: beside it, onto the disk, and then into its place.

    The renaming alone would keep a reader from seeing half a file, but a file system may rename before it has written:
    after a power cut the name would stand on an empty file.

    OSError if the folder does not exist or cannot be written. What stood at `path` is then still there, and nothing new.
    """
    # A part of the name is enough to tell files apart, and keeps a long one within what file systems take.
    short = path.with_name(path.name[:50])
    remove_stale(short)
    partial = temp_path(short)
    try:
        with add_path_to_oserror(path):
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Bring every file of a folder onto the disk, before the folder is renamed into its place."""
    for path in [*folder.rglob("*"), folder]:
        sync_one(path)


def sync_one(path: Path) -> None:
    """Bring a file onto the disk, or the names in a folder."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders, and writes names down by itself
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_name(name: str, what: str) -> None:
    """ValueError unless `name` can name a file on every system: no path, no control character, no device of Windows."""
    device = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE)
    if device or not name.strip(". ") or re.search(r"[/\\\x00-\x1f]", name) or len(name.encode()) > 200:
        raise InputError(
            f"{what} is called {name[:80]!r}, which cannot name a file: use letters, digits, spaces, `.`, `_` and `-`, 200 "
            "bytes at most"
        )


def temp_path(place: Path, kind: str = "partial") -> Path:
    """Where this process prepares what will stand at `place`: `.NAME.KIND-PID` beside it."""
    return place.with_name(f".{place.name}.{kind}-{os.getpid()}")


def stale_temps(place: Path, kind: str = "partial") -> list[Path]:
    """What killed processes left beside `place`: `.NAME.KIND-PID` of processes that are gone.

    Of this process's own number too, which an earlier one may have had: in a container all numbers come again.
    """
    form = re.compile(rf"\.{re.escape(place.name)}\.{re.escape(kind)}-(\d+)")
    try:
        names = sorted(os.listdir(place.parent))
    except OSError:  # no such folder, or one that tells no names
        return []
    found = [match for name in names if (match := form.fullmatch(name))]
    return [place.with_name(match[0]) for match in found if int(match[1]) == os.getpid() or not alive(int(match[1]))]


def remove_stale(place: Path, kind: str = "partial") -> None:
    """Remove what killed processes left beside `place`."""
    for path in stale_temps(place, kind):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def alive(process: int) -> bool:
    """Whether a process of this number runs on this machine; True where that cannot be told."""
    if os.name == "nt":  # there, os.kill with any signal ends a process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def check_room(place: Path, size: int = 0) -> None:
    """OSError, with the folder as its file name, unless files can be written at `place` and `size` bytes have room.

    A file is written and removed again, because rights say too little: of root, of a mount that is read-only, of a quota.

    place  a folder, or a file in one; neither need exist
    """
    folder = next(path for path in [place.absolute(), *place.absolute().parents] if path.is_dir())
    probe = temp_path(folder / "llm2enc")
    remove_stale(folder / "llm2enc")
    try:
        try:
            probe.write_bytes(b"0")
        finally:
            probe.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None
    if free < size:
        words = f"{size:,} bytes are needed and {free:,} are free"
        raise OSError(errno.ENOSPC, words, str(folder))


@contextmanager
def temp_directory(place: Path, kind: str = "partial") -> Iterator[Path]:
    """An empty folder beside `place`, `.NAME.KIND-PID`, which is gone in the end; so are those of killed processes."""
    remove_stale(place, kind)
    folder = temp_path(place, kind)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -------------------------------------------------------------------------------------------- disks that take no more

# What a file system says that is full or closed; libraries that write by themselves hand on the text alone.
_REFUSALS = {
    errno.ENOSPC: ("No space left on device", "StorageFull", "os error 28", "database or disk is full"),
    errno.EDQUOT: ("Disk quota exceeded", "os error 122"),
    errno.EFBIG: ("File too large", "os error 27"),
    errno.EROFS: ("Read-only file system", "os error 30", "readonly database"),
    errno.EACCES: ("unable to open database file",),
    errno.EPERM: (),
    errno.EIO: ("disk I/O error", "os error 5)"),
}


def storage_error(error: BaseException) -> OSError | None:
    """The error of a file system (full, closed, broken) that an error is or comes of; None for any other error."""
    chain: list[BaseException] = [error]
    while len(chain) < 20:
        last = chain[-1]
        cause = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
        if cause is None:
            break
        chain.append(cause)
    for one in chain:
        if isinstance(one, OSError) and one.errno is not None:
            if one.errno in _REFUSALS:
                return one
        elif isinstance(one, Exception):
            for number, texts in _REFUSALS.items():
                if any(text in str(one) for text in texts):
                    return OSError(number, os.strerror(number))
    return None


@contextmanager
def add_path_to_oserror(path: Path) -> Iterator[None]:
    """An error of the file system from inside says which file it is about: that of a failed `write` does not know."""
    try:
        yield
    except Exception as error:
        found = storage_error(error)
        if found is None or found.filename is not None:
            raise
        raise OSError(found.errno, found.strerror, str(path)) from error

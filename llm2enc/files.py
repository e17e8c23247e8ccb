"""Text files that are replaced whole: a killed program or a power cut leaves the old file or the new one."""

import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, line ends as they are: beside it, onto the disk, and then into its place.

    The renaming alone would keep a reader from seeing half a file, but a file system may rename before it has written:
    after a power cut the name would stand on an empty file.

    OSError if the folder does not exist or can't be written. What stood at `path` is then still there, and nothing new.
    """
    # A part of the name is enough to tell files apart, and keeps a long one within what file systems take.
    partial = path.with_name(f".{path.name[:50]}.partial-{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

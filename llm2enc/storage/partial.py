"""A run that is not finished: a folder beside the file that it writes.

OUT.partial/
  run.json   what the file depends on; a run of anything else does not go on from here
  rows.*     the rows that are done
  done*      how many of them are on the disk
"""

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from llm2enc.errors import InputError
from llm2enc.storage.atomic import add_path_to_oserror, replace_text, sync_one
from llm2enc.storage.lock import file_lock

Facts = dict[str, Any]
"""What a run's rows depend on, by name; `count` of them is the number of rows."""


class PartialFolder(ABC):
    """The folder beside `out` that holds a run until it is finished."""

    unit: ClassVar[str]
    """What is counted, for messages."""
    files: ClassVar[tuple[str, ...]]
    """What a run may leave before it has written run.json, as patterns."""

    def __init__(self, out: Path, rows: str):
        """`rows` is the name of the file in the folder that becomes `out`."""
        self.out = out
        self.folder = out.with_name(f"{out.name}.partial")
        self.rows = self.folder / rows
        self._facts = self.folder / "run.json"

    @abstractmethod
    def count_done(self, facts: Facts) -> int:
        """How many of the rows are on the disk."""

    def head(self, facts: Facts) -> bytes:
        """What the file of rows begins with."""
        return b""

    def facts(self) -> Facts | None:
        """What the former run was of; None if there is none, or one that had not begun.

        raises  ValueError for a folder that is none of ours
        """
        try:
            return json.loads(self._facts.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if not self.folder.exists() or all(map(self._is_ours, self.folder.iterdir())):
                return None
        except NotADirectoryError:
            pass
        except ValueError:
            raise InputError(f"{self._facts} is damaged; remove {self.folder} to begin anew") from None
        raise InputError(f"{self.folder} is in the way, and holds no unfinished run of ours; move it away") from None

    def check(self, facts: Facts) -> bool:
        """Whether a former run of the same can go on.

        facts   some or all of what the rows depend on, by name
        raises  ValueError, which names the difference, if there are rows of something else
        """
        former = self.facts()
        if former is None:
            return False
        words, done = difference(former, facts), self.count_done(former)
        if not words or not done:
            return not words
        raise InputError(
            f"{self.folder} holds {done:,} of {former['count']:,} {self.unit} of another run ({words}). Go on with what "
            "that run was given, write to another file, or remove the folder to begin anew"
        )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """ValueError if another run writes the same file at this time. The lock ends with its process, however."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.folder / "lock", self.out):
            try:
                yield
            finally:
                former = self.facts()
                if former is None or not self.count_done(former):  # nothing came of it, or all
                    self.remove()

    def begin(self, facts: Facts) -> None:
        """Write run.json and a file without rows, unless they are there."""
        if self.facts() == json.loads(json.dumps(facts)) and self.rows.is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in [self._facts, *self.folder.glob("done*")]:
            path.unlink(missing_ok=True)
        with add_path_to_oserror(self.rows), self.rows.open("wb") as file:
            file.write(self.head(facts))
            file.flush()
            os.fsync(file.fileno())
        replace_text(self._facts, json.dumps(facts, indent=1) + "\n")
        sync_one(self.folder)
        sync_one(self.folder.parent)

    def remove(self) -> None:
        """Remove the folder: rows first, by whose absence a finished run is known after a kill, run.json last."""
        for path in sorted(self.folder.glob("*"), key=lambda path: (path == self._facts, path != self.rows)):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_ours(self, path: Path) -> bool:
        return any(map(path.match, ("lock", "lock.soft", "*.partial-*", *self.files)))


def difference(former: Facts, facts: Facts) -> str:
    """What differs in `facts` from those of a former run, in words; empty if nothing does."""
    facts = json.loads(json.dumps(facts))
    other = [name for name, value in facts.items() if former.get(name) != value]
    return "; ".join(f"{name}: {_short(former.get(name))}, now {_short(facts[name])}" for name in other)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:12]}..."

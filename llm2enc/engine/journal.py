"""Rows in, rows out: the one way in which every step of the data engine writes its file.

OUT                        JSON lines, also as .gz; whole or absent
OUT.provenance.json        names, content and settings that the rows were made from; counts by reason; SHA-256 of OUT
OUT.partial/               until it is finished
  run.json                 what the rows depend on; a run of anything else does not go on from here
  rows.jsonl               the rows that are made
  done.jsonl               for every block of input rows that is on the disk: its end, the bytes of rows.jsonl, its counts

A block is on the disk before the line that counts it, and what lies behind the last such line is cut off: a run that is
killed anywhere ends as the run that was left alone.
"""

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm2enc.errors import InputError, explained
from llm2enc.storage import (
    Facts,
    PartialFolder,
    add_path_to_oserror,
    check_room,
    difference,
    remove_stale,
    replace_text,
    sha256_of,
    sync_one,
    temp_path,
)
from llm2enc.terminal import bar

Counts = dict[str, dict[str, int]]
"""What is counted (rows, candidates) -> what became of it -> how many."""


@dataclass(frozen=True)
class Block:
    """What some input rows become."""

    rows: list[dict[str, Any]]
    """Rows of the file that is written."""
    counts: Mapping[str, Mapping[str, int]]
    """What became of the input rows, by reason."""


@dataclass(frozen=True)
class _Done:
    end: int = 0
    """Input rows that are done."""
    size: int = 0
    """Bytes of the rows that were made of them."""
    counts: Counts = field(default_factory=dict)
    """Of all of them."""
    lines: int = 0
    """Bytes of the lines that say so."""


class Journal(PartialFolder):
    """A file of rows that a step of the data engine makes of other rows."""

    unit = "rows"
    files = ("rows.jsonl", "done.jsonl")

    def __init__(self, out: Path):
        """InputError for another ending than .jsonl and .jsonl.gz, or a file there that no step of the engine has made."""
        if not out.name.endswith((".jsonl", ".jsonl.gz")):
            raise InputError(f"rows are written as .jsonl or .jsonl.gz, got {out.name!r}")
        super().__init__(out, "rows.jsonl")
        self.provenance = out.with_name(f"{out.name}.provenance.json")
        self._blocks = self.folder / "done.jsonl"
        if out.exists() and not self.provenance.is_file():
            raise InputError(f"{out} exists already; choose another file or remove it")

    def count_done(self, facts: Facts) -> int:
        return self._done().end

    def finished(self, facts: Facts) -> Counts | None:
        """The counts of a run of the same facts that came to its end; None if there is none.

        raises  InputError, which names the difference, if the file or its folder is of something else, or was changed since
        """
        if not self.out.exists():
            self.check(facts)
            return None
        with explained(str(self.provenance), f"remove it and {self.out} to begin anew", (ValueError, KeyError)):
            former = json.loads(self.provenance.read_text(encoding="utf-8"))
            made_from, counts, digest = former["facts"], former["counts"], former["sha256"]
        if words := difference(made_from, facts):
            raise InputError(f"{self.out} was made from something else ({words}); choose another file or remove it")
        if sha256_of([self.out]) != digest:
            raise InputError(f"{self.out} was changed since it was made; choose another file or remove it")
        self.remove()  # of a run that was killed at its very end
        return counts

    def run(
        self,
        facts: Facts,
        work: Callable[[range], Block],
        block: int,
        names: Mapping[str, str | None],
        before: Counts,
        show_progress: bool = False,
    ) -> Counts:
        """Write the file, and return the counts; goes on where a run of the same facts was interrupted.

        facts   what the rows depend on; `finished` has allowed them. Of them `step` is what is done, `count` the number of
                input rows
        work    what the input rows of a range become: the same whenever it is called
        block   input rows of one call; what an interruption can lose
        names   of what the rows are made from, for the provenance: the same content may stand under other names
        before  what became of rows that are not among the input rows
        raises  OSError with the file's name if it cannot be written; what is on the disk stays, and a later call goes on
        """
        facts = facts | {"block": block}
        check_room(self.folder)
        with self.alone():
            self.check(facts)
            self.begin(facts)
            done = self._done()
            with (
                add_path_to_oserror(self.rows),
                self.rows.open("r+b") as rows,
                self._blocks.open("ab") as lines,
                bar(facts["step"], facts["count"], show_progress) as move,
            ):
                rows.truncate(done.size)
                rows.seek(done.size)
                lines.truncate(done.lines)
                move(done.end)
                for first in range(done.end, facts["count"], block):
                    span = range(first, min(first + block, facts["count"]))
                    made = work(span)
                    _append(rows, made.rows)
                    _append(lines, [{"end": span.stop, "bytes": rows.tell(), "counts": made.counts}])
                    move(len(span))
            counts = added(self._done().counts, before)
            self._finish(facts, names, counts)
        return counts

    def _done(self) -> _Done:
        """The blocks that are on the disk; a line that a kill tore counts for nothing, nor does one whose rows are gone."""
        done = _Done()
        if not (self._blocks.is_file() and self.rows.is_file()):
            return done
        size = self.rows.stat().st_size
        for line in self._blocks.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n") or (block := json.loads(line))["bytes"] > size:
                break
            done = _Done(block["end"], block["bytes"], added(done.counts, block["counts"]), done.lines + len(line))
        return done

    def _finish(self, facts: Facts, names: Mapping[str, str | None], counts: Counts) -> None:
        """Put everything in its place, the provenance first, and remove the folder."""
        whole = _packed(self.rows, self.out) if self.out.suffix == ".gz" else self.rows
        record = {"names": names, "facts": facts, "counts": counts, "sha256": sha256_of([whole])}
        replace_text(self.provenance, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        os.replace(whole, self.out)
        sync_one(self.out.absolute().parent)
        self.remove()


def added(*counts: Mapping[str, Mapping[str, int]]) -> Counts:
    """The sum of counts, in the order in which their names first come."""
    total: Counts = {}
    for one in counts:
        for what, reasons in one.items():
            of = total.setdefault(what, {})
            for reason, number in reasons.items():
                of[reason] = of.get(reason, 0) + number
    return total


def _append(file: Any, records: Iterable[Mapping[str, Any]]) -> None:
    """Add a line for each record, onto the disk."""
    file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode("utf-8"))
    file.flush()
    os.fsync(file.fileno())


def _packed(rows: Path, out: Path) -> Path:
    """The rows as .gz, beside `out`; equal rows give equal bytes."""
    remove_stale(out)
    place = temp_path(out)
    with add_path_to_oserror(place), rows.open("rb") as plain, place.open("wb") as file:
        with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
            shutil.copyfileobj(plain, packed)
        file.flush()
        os.fsync(file.fileno())
    return place

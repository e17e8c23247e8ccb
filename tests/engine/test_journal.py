"""The journal: a file of rows that is whole or absent, and the same wherever its run broke off."""

import gzip
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm2enc.engine import Block, Journal

FACTS = {"step": "toy", "count": 10, "seed": 1}
BEFORE = {"rows": {"dropped: empty": 2}}


def toy(span: range) -> Block:
    """Every third row is dropped, every fifth becomes two."""
    rows = [{"n": n, "text": "ä\u2028" * n} for n in span if n % 3 for _ in range(1 + (n % 5 == 0))]
    dropped = sum(n % 3 == 0 for n in span)
    return Block(rows, {"rows": {"kept": len(span) - dropped, "dropped: third": dropped}})


def run(out: Path, facts: dict[str, Any] = FACTS, work: Callable[[range], Block] = toy) -> Any:
    journal = Journal(out)
    found = journal.finished(facts)
    return journal.run(facts, work, 3, {"texts": "a.txt"}, BEFORE) if found is None else found


class _Killed(BaseException):
    """What no code catches, as it catches no kill."""


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_the_same_wherever_it_broke_off(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A break at every single step onto the disk, each of a run of its own, which then goes on."""
    (tmp_path / "whole").mkdir()
    whole, step = tmp_path / "whole" / name, 0
    counts = run(whole)
    while True:
        (tmp_path / f"{step}").mkdir()
        broken = tmp_path / f"{step}" / name
        with monkeypatch.context() as patch:
            steps = iter(range(step))

            def counted(real: Callable, steps: Iterator[int] = steps) -> Callable:
                def call(*arguments: Any, **options: Any) -> Any:
                    if next(steps, None) is None:
                        raise _Killed
                    return real(*arguments, **options)

                return call

            for function in ("fsync", "replace", "unlink", "rmdir"):
                patch.setattr(os, function, counted(getattr(os, function)))
            try:
                run(broken)
                break
            except _Killed:
                step += 1
        assert run(broken) == counts
        assert {path.name: path.read_bytes() for path in broken.parent.iterdir()} == {
            path.name: path.read_bytes() for path in whole.parent.iterdir()
        }
    assert step > 15


def test_rows_and_counts_and_provenance(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    counts = run(out)
    assert [json.loads(line)["n"] for line in out.read_text("utf-8").split("\n")[:-1]] == [1, 2, 4, 5, 5, 7, 8]
    assert counts == {"rows": {"kept": 6, "dropped: third": 4, "dropped: empty": 2}}
    record = json.loads((tmp_path / "rows.jsonl.provenance.json").read_text())
    assert record["facts"].items() >= FACTS.items() and record["counts"] == counts
    assert record["names"] == {"texts": "a.txt"}
    assert record["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    run(tmp_path / "rows.jsonl.gz")
    assert gzip.decompress((tmp_path / "rows.jsonl.gz").read_bytes()) == out.read_bytes()


def stopped(span: range) -> Block:
    """`toy`, interrupted at row 6."""
    if span.start == 6:
        raise KeyboardInterrupt
    return toy(span)


def test_a_half_row_and_a_half_line_are_cut_off(tmp_path: Path) -> None:
    """What a kill leaves between the rows and the line that counts them."""

    whole, out = tmp_path / "whole.jsonl", tmp_path / "rows.jsonl"
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(out, work=stopped)
    journal = Journal(out)
    for name in ("rows.jsonl", "done.jsonl"):
        with (journal.folder / name).open("ab") as file:
            file.write(b'{"end": 9, "by')
    seen: list[range] = []
    run(out, work=lambda span: seen.append(span) or toy(span))
    assert seen == [range(6, 9), range(9, 10)] and out.read_bytes() == whole.read_bytes()


def test_a_line_whose_rows_are_gone_counts_for_nothing(tmp_path: Path) -> None:
    """Half of the folder on a disk that lost the rest: made again from the last block whose rows are there."""

    whole, out = tmp_path / "whole.jsonl", tmp_path / "rows.jsonl"
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(out, work=stopped)
    rows = Journal(out).folder / "rows.jsonl"
    rows.write_bytes(rows.read_bytes()[:-1])
    assert run(out)["rows"]["kept"] == 6 and out.read_bytes() == whole.read_bytes()


def test_a_damaged_provenance_says_what_to_remove(tmp_path: Path) -> None:
    run(tmp_path / "rows.jsonl")
    for damaged in ("{", "{}"):
        (tmp_path / "rows.jsonl.provenance.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"rows.jsonl.provenance.json cannot be used .* to begin anew"):
            run(tmp_path / "rows.jsonl")


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    counts, before = run(out), out.stat().st_mtime_ns
    assert run(out, work=lambda span: pytest.fail("made again")) == counts and out.stat().st_mtime_ns == before


def test_other_facts_are_refused_with_the_difference(tmp_path: Path) -> None:
    def stopped(span: range) -> Block:
        if span.start:
            raise KeyboardInterrupt
        return toy(span)

    out = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(out, work=stopped)
    with pytest.raises(ValueError, match=re.escape("holds 3 of 10 rows of another run (seed: 1, now 2)")):
        run(out, FACTS | {"seed": 2})
    run(out)
    with pytest.raises(ValueError, match=re.escape("was made from something else (seed: 1, now 2)")):
        run(out, FACTS | {"seed": 2})
    out.write_text("{}\n")
    with pytest.raises(ValueError, match="was changed since it was made"):
        run(out)


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="exists already"):
        Journal(tmp_path / "mine.jsonl")
    with pytest.raises(ValueError, match=r"written as .jsonl or .jsonl.gz, got 'mine.csv'"):
        Journal(tmp_path / "mine.csv")

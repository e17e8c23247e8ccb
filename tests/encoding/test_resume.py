"""Interruptions: a run that is killed, and started again, ends with the very bits of one that was left alone."""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from llm2enc import cli
from llm2enc.data import Rows
from llm2enc.encoding import EncodeOptions, Encoder, PartialFile
from llm2enc.encoding import to_file as encoding
from llm2enc.evaluation import benchmark
from llm2enc.evaluation import cache as vectors_on_disk
from tests.support import jobs
from tests.support.builders import make_encoder, sentences

TEXTS = [*sentences(300), *sentences(40), *(f"{text} once more" for text in sentences(60, seed=3))]  # 40 come twice
WAIT = 200  # seconds, for a process on a busy machine
SMALL = {"CHUNK_TEXTS": 4, "BUFFER_TEXTS": 10}  # many blocks, so that a run has many moments


def rows_of(texts: list[str]) -> Rows[str]:
    return Rows("texts", len(texts), lambda places: [texts[place] for place in places])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(f"llm2enc.encoding.pipeline.{name}", value)
    monkeypatch.setattr("llm2enc.encoding.pipeline.BUFFER_TOKENS", 90)  # some blocks end by tokens, others by texts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "mine"
    make_encoder().save(folder)
    return folder


def facts_for(encoder: Encoder, texts: list[str], **more: Any) -> dict[str, Any]:
    facts = encoding.encoder_facts(encoder, EncodeOptions())
    return {"count": len(texts), "texts": encoding.text_digest(texts), **facts, **more}


# ------------------------------------------------------------------------------------------------- blocks and journals-


def test_blocks_are_what_can_be_encoded_alone(encoder: Encoder, small: None) -> None:
    rows, texts = encoder.block_rows(TEXTS), encoder.encode(TEXTS)
    blocks = list(encoder.encode_blocks(TEXTS))
    assert list(map(len, rows)) == list(map(len, blocks)) and len(set(map(len, rows))) > 1
    for block in rows[::7]:
        alone = next(encoder.encode_blocks(TEXTS[block.start :]))  # as a run that goes on from there
        np.testing.assert_array_equal(alone, texts[block.start : block.stop])
    assert encoder.block_rows([]) == []


class _Killed(BaseException):
    """What no code catches, as it catches no kill."""


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_file_is_the_same_wherever_the_run_broke_off(
    suffix: str, encoder: Encoder, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A break at every single step onto the disk, each of a run of its own, which then goes on."""
    texts, facts = TEXTS[:24], facts_for(encoder, TEXTS[:24])

    def run(place: Path) -> None:
        partial = PartialFile(place)
        if partial.is_finished(facts):
            partial.remove()
        else:
            partial.check(facts)
            encoding.encode_file(encoder, rows_of(texts), partial, facts)
            partial.finish()

    whole, step = tmp_path / f"whole{suffix}", 0
    run(whole)
    while True:
        broken = tmp_path / f"broken-{step}{suffix}"
        with monkeypatch.context() as patch:
            steps = iter(range(step))

            def counted(real: Callable, steps: Iterator[int] = steps) -> Callable:
                def call(*arguments: Any, **options: Any) -> Any:
                    if next(steps, None) is None:
                        raise _Killed
                    return real(*arguments, **options)

                return call

            for name in ("fsync", "replace", "unlink", "rmdir"):
                patch.setattr(os, name, counted(getattr(os, name)))
            try:
                run(broken)
                break
            except _Killed:
                step += 1
        run(broken)
        assert broken.read_bytes() == whole.read_bytes() and not PartialFile(broken).folder.exists()
    assert step > 15
    if suffix == ".npy":
        np.testing.assert_array_equal(np.load(whole), encoder.encode(texts))
    else:
        table = parquet.read_table(whole)
        assert table.column_names == ["embedding"]
        np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), encoder.encode(texts))


def test_torn_lines_and_rows_that_are_not_there_do_not_count(tmp_path: Path) -> None:
    partial, facts = PartialFile(tmp_path / "out.npy"), {"count": 30, "width": 2, "dtype": "<f4"}
    partial.begin(facts)
    assert partial.missing(facts) == [range(30)]
    block = np.ones((5, 2), dtype=np.float32)
    with partial.writer(facts, rank=0) as write:
        write(0, block)
        write(10, block)
    with partial.writer(facts, rank=1) as write:
        write(5, block)
    assert partial.done(facts) == [range(15)] and partial.missing(facts) == [range(15, 30)]
    with (partial.folder / "done-0.txt").open("a") as journal:
        journal.write("15 2")  # of `15 20`
    assert partial.done(facts) == [range(15)]
    with partial.writer(facts, rank=0) as write:
        write(20, block)
    assert partial.missing(facts) == [range(15, 20), range(25, 30)]
    os.truncate(partial.rows, partial.rows.stat().st_size - 1)  # a row less than was counted
    assert partial.missing(facts) == [range(15, 30)]
    partial.rows.unlink()
    assert partial.missing(facts) == [range(30)]


def test_rows_are_on_the_disk_before_they_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial, facts = PartialFile(tmp_path / "out.npy"), {"count": 4, "width": 2, "dtype": "<f4"}
    partial.begin(facts)
    seen, sync = [], os.fsync
    with partial.writer(facts, rank=0) as write:
        rows, journal = partial.rows.stat().st_ino, (partial.folder / "done-0.txt").stat().st_ino

        def synced(handle: int) -> None:
            journaled = (partial.folder / "done-0.txt").read_text()
            seen.append(({rows: "rows", journal: "journal"}[os.fstat(handle).st_ino], journaled))
            sync(handle)

        monkeypatch.setattr(os, "fsync", synced)
        write(0, np.ones((2, 2)))
    assert seen == [("rows", ""), ("journal", "0 2\n")]


def test_another_run_is_not_taken_for_this_one(tmp_path: Path) -> None:
    partial, facts = PartialFile(tmp_path / "out.npy"), {"count": 4, "width": 2, "dtype": "<f4", "texts": "abc"}
    partial.begin(facts)
    assert partial.check(facts | {"versions": [1]} | {"texts": "abc"}) is False  # no row yet: nothing to lose
    with partial.writer(facts, rank=0) as write:
        write(0, np.ones((2, 2)))
    assert partial.check({"texts": "abc"})
    with pytest.raises(ValueError, match=r"2 of 4 vectors of another run \(texts: abc, now other\)"):
        partial.check({"texts": "other"})
    partial._facts.write_text("{")
    with pytest.raises(ValueError, match="is damaged; remove"):
        partial.check(facts)
    (tmp_path / "mine.npy.partial").mkdir()
    (tmp_path / "mine.npy.partial" / "notes.txt").touch()
    with pytest.raises(ValueError, match="is in the way"):
        PartialFile(tmp_path / "mine.npy").check(facts)


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    with (
        PartialFile(tmp_path / "out.npy").alone(),
        pytest.raises(ValueError, match="is being written by process"),
        PartialFile(tmp_path / "out.npy").alone(),
    ):
        pass
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------- several processes


def _shared(place: dict[str, str], folder: Path, model: Path) -> None:
    os.environ.update(place)
    os.environ["SAID"] = str(folder.with_name("said.txt"))
    _make_small()
    _command("encode", model, folder / "texts.txt", "-o", folder / "shared.npy")


def test_processes_that_share_the_work_write_the_file_of_one(model: Path, tmp_path: Path) -> None:
    """Two processes go on with what one had done when it was killed."""
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    _run(_alone, model, tmp_path, "whole.npy", 0)
    _run(_alone, model, tmp_path, "shared.npy", 30)
    done = PartialFile(tmp_path / "shared.npy")
    assert 0 < sum(map(len, done.done(done.facts()))) < len(TEXTS)
    both = [jobs.start(_shared, place, tmp_path, model) for place in jobs.places(2)]
    for process in both:
        process.join(WAIT)
    assert [process.exitcode for process in both] == [0, 0], (tmp_path.with_name("said.txt")).read_text()
    assert (tmp_path / "shared.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shared.npy", "texts.txt", "whole.npy"]


def _alone(model: Path, folder: Path, name: str, kill_after: int) -> None:
    """Encode; with `kill_after` die after so many steps onto the disk."""
    _make_small()
    if kill_after:
        steps, sync = iter(range(kill_after)), os.fsync
        os.fsync = lambda handle: sync(handle) if next(steps, None) is not None else os._exit(9)
    _command("encode", model, folder / "texts.txt", "-o", folder / name)


# ----------------------------------------------------------------------------------------------------- kills at random


def _make_small() -> None:
    from llm2enc.encoding import pipeline

    for name, value in SMALL.items():
        setattr(pipeline, name, value)
    vectors_on_disk.BLOCK = 16
    benchmark.LOCAL_SECONDS = 0.01


def _command(*arguments: str | Path) -> None:
    """A command line in a process of its own; its messages go to $SAID."""
    import torch

    torch.set_num_threads(1)
    said = os.open(os.environ.get("SAID", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(said, stream)
    sys.argv = ["llm2enc", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as stop:
        os._exit(int(stop.code or 0))


def _killable(said: str, cache: str, arguments: list[str]) -> None:
    os.environ |= {"SAID": said, "LLM2ENC_CACHE": cache}
    _make_small()
    _command(*arguments)


def _run(target: Callable, *arguments: Any) -> int:
    """The exit code of a process that does this."""
    process = jobs.start(target, *arguments)
    process.join(WAIT)
    return process.exitcode


def pairs_in(folder: Path) -> Path:
    path = folder / "pairs.csv"
    path.write_text("one,two\n" + "".join(f'"{text}","{text[::-1]}"\n' for text in sentences(40)))
    return path


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_seconds(inner) for key, inner in value.items() if key != "seconds"}
    return [without_seconds(inner) for inner in value] if isinstance(value, list) else value


def results_of(folder: Path) -> dict[str, Any]:
    """Everything that an evaluation wrote, without the time it took."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        text = path.read_text()
        found[str(path.relative_to(folder))] = without_seconds(json.loads(text)) if path.suffix == ".json" else text
    return found


SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def kill_until_done(start: Callable[[], Any], longest: float, kills: int, seed: int) -> list[tuple[str, int]]:
    """Kill a command at random moments until it was killed so often, then let it finish: (signal, exit code) of each."""
    generator, ends = random.Random(seed), []
    while len(ends) < kills:
        process, number = start(), SIGNALS[len(ends) % 3]
        time.sleep(generator.uniform(0, longest))
        if process.is_alive():
            os.kill(process.pid, number)
        process.join(WAIT)
        ends.append((number.name, process.exitcode))
        if process.exitcode == 0:
            return ends
    process = start()
    process.join(WAIT)
    return [*ends, ("none", process.exitcode)]


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", ["encode", "evaluate"])
def test_killed_at_random_moments_the_result_is_the_same_to_the_bit(
    kind: str, kills: int, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[:150]))
    pairs = pairs_in(tmp_path)

    def given(name: str) -> list[Any]:
        if kind == "encode":
            arguments = ["encode", model, tmp_path / "texts.txt", "-o", tmp_path / f"{name}.npy"]
        else:
            arguments = ["evaluate", model, "--tasks", pairs, "-o", tmp_path / name]
        return [str(tmp_path / "said.txt"), str(tmp_path / f"cache-{name}"), list(map(str, arguments))]

    jobs.clean()
    started = time.perf_counter()
    assert _run(_killable, *given("whole")) == 0, (tmp_path / "said.txt").read_text()
    longest = time.perf_counter() - started
    counts: Counter[str] = Counter()
    for number in range(20 * kills):
        name = f"killed-{number}"
        ends = kill_until_done(
            lambda name=name: jobs.start(_killable, *given(name)), longest, kills - counts.total(), number
        )
        said = (tmp_path / "said.txt").read_text()
        assert ends[-1][1] == 0 and "Traceback" not in said, (ends, said)
        if kind == "encode":
            assert (tmp_path / f"{name}.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
            assert not (tmp_path / f"{name}.npy.partial").exists()
        else:
            assert results_of(tmp_path / name) == results_of(tmp_path / "whole")
        counts.update(f"{name} {code}" for name, code in ends if code)
        if counts.total() >= kills:
            break
    # A signal before the command has begun ends it as signals do, with a traceback of Python's for Ctrl-C.
    assert counts.total() == kills and {end.split()[1] for end in counts} <= {"-9", "130", "-15", "-2", "1"}, counts

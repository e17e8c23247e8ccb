"""Disks that are full or closed, and what killed processes leave: a message, an exit code, and nothing lost."""

import errno
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import typer

from llm2enc import cli
from llm2enc.cli.interruption import interruptible
from llm2enc.encoding import Encoder
from llm2enc.evaluation import CachedEncoder
from llm2enc.evaluation.mteb_adapter import _remove_torn
from llm2enc.export import Source
from llm2enc.storage import atomic as files
from llm2enc.storage import atomic_directory, recover
from llm2enc.verification import subprocesses as running
from tests.support import jobs
from tests.support.builders import make_encoder, sentences

GONE = 2**22 + 1  # the number of no process: Linux gives out 2**22 at most


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "mine"
    make_encoder().save(folder)
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """Exit code and messages of a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["llm2enc", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    return int(stopped.value.code or 0), capsys.readouterr().err


def refusing(number: int, after: int) -> Callable[[int], None]:
    """An fsync that says that the disk is full, or closed, after so many calls."""
    calls, real = iter(range(after)), os.fsync

    def sync(handle: int) -> None:
        if next(calls, None) is None:
            raise OSError(number, os.strerror(number))
        real(handle)

    return sync


# ----------------------------------------------------------------------------------------------------- full and closed


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_no_more_ends_encode_with_a_message_and_keeps_the_rows(
    number: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llm2enc.encoding.pipeline.CHUNK_TEXTS", 4)
    monkeypatch.setattr("llm2enc.encoding.pipeline.BUFFER_TEXTS", 8)
    (tmp_path / "texts.txt").write_text("\n".join(sentences(40)))
    command = ("encode", model, tmp_path / "texts.txt", "-o", tmp_path / "out.npy")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refusing(number, 10))
        code, said = call(capsys, *command)
    assert code == 1 and f"error: {tmp_path / 'out.npy.partial' / 'rows.npy'}: {os.strerror(number)}. " in said
    assert "the same command goes on from there" in said and "Traceback" not in said
    code, said = call(capsys, *command)
    assert code == 0 and "of 40 vectors: going on from there" in said
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["out.npy", "texts.txt"]


def test_room_is_looked_for_before_the_model_is_loaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("the model is loaded")

    (tmp_path / "texts.txt").write_text("\n".join(sentences(40)))
    (tmp_path / "pairs.csv").write_text("one,two\n" + "".join(f'"{text}","b {text}"\n' for text in sentences(8)))
    monkeypatch.setattr("llm2enc.encoding.encoder.Encoder.load", loaded)
    monkeypatch.setenv("LLM2ENC_CACHE", str(tmp_path / "cache"))
    commands = (
        ("encode", model, tmp_path / "texts.txt", "-o", tmp_path / "out.npy"),
        ("evaluate", model, "--tasks", tmp_path / "pairs.csv", "-o", tmp_path / "results"),
    )
    for command, needed in zip(commands, (40 * 32 * 4, 16 * 32 * 4), strict=True):
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda _, needed=needed: type("Usage", (), {"free": needed - 1}))
            code, said = call(capsys, *command)
        assert code == 1 and f"{tmp_path}: " in said and "are needed and" in said and "Make room" in said

        def closed(path: Path, data: bytes) -> int:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", closed)
            code, said = call(capsys, *command)
        assert code == 1 and f"{tmp_path}: Read-only file system. Look at the rights" in said
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["pairs.csv", "texts.txt"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: No space left on device. Make room"),
        (
            RuntimeError("I/O error: No space left on device (os error 28)"),
            "No space left on device (os error 28). Make",
        ),
        (sqlite3.OperationalError("attempt to write a readonly database"), "readonly database. Look at the rights"),
        (OSError(errno.EFBIG, "File too large", "/x/y"), "`ulimit -f`"),
        (KeyboardInterrupt(), "Interrupted. All is kept."),
    ],
)
def test_what_comes_from_outside_ends_a_command_with_a_message(
    error: BaseException, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as stopped:
        interruptible(command, "All is kept.")()
    said = capsys.readouterr().err
    assert words in said and said.rstrip().endswith("All is kept.")
    assert stopped.value.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 1)


def test_our_own_errors_stay_what_they_are() -> None:
    def command(error: Exception) -> None:
        raise error

    for error in (
        ValueError("seed: expected a number"),
        FileNotFoundError(errno.ENOENT, "no such file"),
        KeyError("x"),
    ):
        with pytest.raises(type(error)):
            interruptible(command, "")(error)


def test_sigterm_is_taken_for_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as stopped:
        interruptible(lambda: os.kill(os.getpid(), signal.SIGTERM), "All is kept.")()
    assert stopped.value.exit_code == 130 and "Interrupted. All is kept." in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is former


def test_ctrl_c_before_a_command_begins(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("llm2enc.cli.app"), "app", interrupted)  # `cli.app` is the object of that name
    assert call(capsys, "encode") == (130, "Interrupted.\n")


def test_a_ctrl_c_that_python_drops_comes_again(capsys: pytest.CaptureFixture[str]) -> None:
    class Last:
        def __del__(self) -> None:
            if self.signalled:
                signal.raise_signal(signal.SIGTERM)  # of a background job the shell has switched SIGINT off
            else:
                raise RuntimeError("another matter")

    def command() -> None:
        for signalled in (False, True):
            last = Last()
            last.signalled = signalled
            del last
        went_on.append(True)
        time.sleep(10)

    went_on: list[bool] = []
    hook = sys.unraisablehook
    others: list = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", others.append)
        with pytest.raises(typer.Exit) as stopped:
            interruptible(command, "All is kept.")()
        assert sys.unraisablehook == others.append
    assert stopped.value.exit_code == 130 and went_on == [True] and sys.unraisablehook is hook
    assert [dropped.exc_type for dropped in others] == [RuntimeError]
    assert capsys.readouterr().err == "Interrupted. All is kept.\n"


# ------------------------------------------------------------------------------------------------------------ leftovers


def test_what_killed_processes_left_goes_with_the_next_write(tmp_path: Path) -> None:
    place = tmp_path / "facts.json"
    for name in (f".facts.json.partial-{GONE}", f".other.json.partial-{GONE}", f".facts.json.partial-{os.getppid()}"):
        (tmp_path / name).touch()
    files.replace_text(place, "{}")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [f".facts.json.partial-{os.getppid()}", f".other.json.partial-{GONE}", "facts.json"]
    for name in (f".model.partial-{GONE}", f".model.partial-{os.getpid()}"):  # in a container numbers come again
        (tmp_path / name).mkdir()
    with atomic_directory(tmp_path / "model") as partial:
        (partial / "new").touch()
    assert not list(tmp_path.glob(".model*")) and (tmp_path / "model" / "new").is_file()


@pytest.mark.parametrize("step", [1, 2])
def test_a_kill_between_two_renamings_loses_nothing(step: int, model: Path, tmp_path: Path) -> None:
    """The process dies before the new directory has its name, or before the former one is removed."""
    folder = tmp_path / "model"
    make_encoder().save(folder)
    child = jobs.start(_dies, folder, step)
    child.join()
    assert child.exitcode == 9
    assert folder.exists() == (step == 2) and len(list(tmp_path.glob(".model.former-*"))) == 1
    if step == 1:
        assert Source.of(folder).folder == folder and (folder / "model.safetensors").is_file()
    with atomic_directory(folder) as partial:
        (partial / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and [p.name for p in folder.iterdir()] == ["new"]


def _dies(folder: Path, step: int) -> None:
    """Write it anew, and end at once when so many renamings are done, or when something is to be removed."""
    names, rename = iter(range(step)), Path.rename

    def dies(self: Path, target: Path) -> Path:
        if next(names, None) is None:
            os._exit(9)
        return rename(self, target)

    Path.rename = dies
    files.shutil.rmtree = lambda *_, **__: os._exit(9)
    with atomic_directory(folder) as partial:
        (partial / "llm2enc.json").write_text("{}")


def test_a_directory_that_can_not_be_put_back_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f".model.former-{GONE}").mkdir()

    def closed(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "replace", closed)
    with pytest.raises(ValueError, match=f"it is .*model.former-{GONE}: rename it"):
        recover(tmp_path / "model")


def test_a_killed_verify_leaves_nothing_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in (f"llm2enc-verify-{GONE}-ab", f"llm2enc-verify-{os.getppid()}-cd", "llm2enc-verify-ef"):
        (tmp_path / name).mkdir()
    running._sweep()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([f"llm2enc-verify-{os.getppid()}-cd", "llm2enc-verify-ef"])


# -------------------------------------------------------------------------------------------------------------- vectors


def test_damaged_vectors_are_encoded_again(tmp_path: Path) -> None:
    encoder, texts = make_encoder(), sentences(12)
    with_cache = CachedEncoder(encoder, tmp_path)
    wanted = with_cache.encode(texts)
    with with_cache._database as database:  # a bit of one row falls over, and another row is cut
        (key, row), (other, _) = database.execute("SELECT key, vector FROM vectors LIMIT 2")
        database.execute("UPDATE vectors SET vector = ? WHERE key = ?", (bytes([row[0] ^ 1]) + row[1:], key))
        database.execute("UPDATE vectors SET vector = ? WHERE key = ?", (row[:20], other))
    np.testing.assert_allclose(with_cache.encode(texts), wanted, atol=1e-6)
    with_cache.close()
    (path,) = tmp_path.iterdir()
    for damage in (b"no database at all", path.read_bytes()[:5000] + bytes(3000)):
        path.write_bytes(damage)
        with_cache = CachedEncoder(encoder, tmp_path)
        np.testing.assert_allclose(with_cache.encode(texts), wanted, atol=1e-6)
        with_cache.close()
        assert (tmp_path / f"{path.name}.damaged").is_file()


def test_without_a_cache_a_task_does_not_see_what_another_one_encoded(tmp_path: Path, monkeypatch) -> None:
    """Else an interrupted run, which skips finished tasks, would encode a text beside others than the whole run did."""
    encoder, counts, real = make_encoder(), [], Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, texts, **asked: counts.append(1) or real(self, texts, **asked))
    for folder, wanted in ((None, 2), (tmp_path, 1)):
        counts.clear()
        cached = CachedEncoder(encoder, folder)
        for _ in range(2):
            cached.encode(sentences(3))
            cached.forget()
        cached.close()
        assert len(counts) == wanted


def test_half_a_result_of_mteb_is_removed(tmp_path: Path) -> None:
    for name, text in (("whole.json", '{"scores": {}}'), ("half.json", '{"scores": {'), ("empty.json", "")):
        (tmp_path / name).write_text(text)
    _remove_torn(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.json"] and json.loads(
        (tmp_path / "whole.json").read_text()
    )

"""Fuzzed command lines: garbage ends with exit code 2 and a message, and nothing is written."""

import sys
from pathlib import Path
from unittest import mock

import pytest
import typer.main
from hypothesis import example
from hypothesis import strategies as st

from llm2enc import cli
from tests.support.fuzzing import TEXTS, fuzz
from tests.support.tables import private_cache

_private_cache = private_cache  # for every test of this file
COMMANDS = typer.main.get_command(cli.app).commands
OPTIONS = {
    name: [o for p in command.params for o in getattr(p, "opts", ()) if o[0] == "-"]
    for name, command in COMMANDS.items()
}
GARBAGE = [
    *(
        "",
        " ",
        "no/such",
        "no-such",
        "x.yaml",
        "/no/such/folder",
        "a" * 5000,
        "-1",
        "nan",
        "1e999",
        "0",
        "\x1b[31m",
        "😀",
    ),
    *(
        "--",
        "-",
        "-x",
        "--no-such",
        "=1",
        "seed=",
        "user/name",
        "C:\\x",
        "a,b",
        "[",
        "{}",
        "%s",
        "${HOME}",
        "*",
        "a\nb",
        "st:",
        "0xh100",
    ),
    *(
        "broken.yaml",
        "empty.jsonl",
        "empty.txt",
        "bytes.npy",
        "bytes.jsonl",
        "bytes.gz",
        "folder",
        "folder/model",
        "config.json",
    ),
]
VALUES = st.sampled_from(GARBAGE) | TEXTS.filter(lambda text: "\0" not in text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of every kind that are none."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "folder").mkdir()
    for name, data in {
        "broken.yaml": b"a: [", "empty.jsonl": b"", "empty.txt": b"", "bytes.npy": b"\x93NUMPY\xff", "bytes.jsonl": b"\xff{",
        "bytes.gz": b"\x1f\x8b\x08", "config.json": b'{"model_type": 3}', "folder/config.json": b"[]",
    }.items():  # fmt: skip
        (folder / name).write_bytes(data)
    return folder


@st.composite
def lines(draw: st.DrawFn, command: str) -> list[str]:
    words = [*draw(st.lists(VALUES, max_size=2))]
    for _ in range(draw(st.integers(0, 3))):
        words += [draw(st.sampled_from(OPTIONS[command])), *draw(st.lists(VALUES, max_size=1))]
    # Without data of their own these two read all docstrings, which takes half a minute.
    own = {"evaluate": ["--tasks", "no/such"], "compare": ["--data", "no/such"]}.get(command, [])
    return [*own, *(word for word in words if word not in {"--help", "--list"})]


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "cache" not in path.parts
    }


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_garbage_is_refused_with_a_message(command: str, place: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = contents(place)

    @example(words=[])
    @fuzz(8, words=lines(command))
    def check(words: list[str]) -> None:
        with mock.patch.object(sys, "argv", ["llm2enc", command, *words]), pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr()
        lists = command == "recipes" and not [word for word in words if word[:1] != "-"]
        assert stop.value.code == 2 or lists or (not words and stop.value.code in (0, 1)), said
        assert said.err.strip() or said.out.strip()
        assert contents(place) == before

    check()

"""Files that are replaced whole, or not at all."""

import os
import stat
from pathlib import Path

import pytest

from llm2enc.storage import replace_text


def test_a_file_is_written_and_replaced_as_the_text_is(tmp_path: Path) -> None:
    path, text = tmp_path / ("long " * 50)[:240], "Zürich\r\n東京 🦜\n\n"
    replace_text(path, "old and longer than the new text is")
    replace_text(path, text)
    assert path.read_bytes() == text.encode() and list(tmp_path.iterdir()) == [path]
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    path = tmp_path / "facts.json"
    path.write_text("old")
    monkeypatch.setattr(os, name, full)
    with pytest.raises(OSError, match="disk full"):
        replace_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_text_that_is_no_unicode_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "half of a pair: \ud83e")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_text_is_on_the_disk_before_the_name_points_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, sync, rename = [], os.fsync, os.replace

    def synced(handle: int) -> None:
        steps.append(("fsync", os.fstat(handle).st_ino, os.fstat(handle).st_size))
        sync(handle)

    def renamed(old: Path, new: Path) -> None:
        steps.append(("replace", old.stat().st_ino, old.stat().st_size))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    replace_text(tmp_path / "facts.json", "four")
    file = (tmp_path / "facts.json").stat().st_ino
    assert steps == [("fsync", file, 4), ("replace", file, 4)]

"""Directories that are whole or absent: a killed program or a power cut leaves the old one or the new one."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm2enc.errors import InputError
from llm2enc.storage.atomic import add_path_to_oserror, stale_temps, sync, sync_one, temp_directory, temp_path

_log = logging.getLogger(__name__)


@contextmanager
def atomic_directory(folder: Path) -> Iterator[Path]:
    """An empty directory beside `folder` that takes its place in the end, or is removed if anything goes wrong.

    All of it is on the disk before it has the name. For a moment there is neither the former directory nor the new one
    under it: of a process that was killed then, `recover` repairs what it left. A link stays a link: what it points to is
    replaced.
    """
    folder = folder.resolve()
    recover(folder)
    former = temp_path(folder, "former")
    with temp_directory(folder) as partial:
        with add_path_to_oserror(folder):
            yield partial
            _share(partial)
            sync(partial)
        try:
            if folder.exists():
                folder.rename(former)
            partial.rename(folder)
        except BaseException:
            if former.exists() and not folder.exists():
                former.rename(folder)
            raise
    sync_one(folder.parent)
    shutil.rmtree(former, ignore_errors=True)


def recover(folder: Path) -> None:
    """Bring back the directory that a killed process had taken away to put another one in its place.

    Where the new one is in its place already, the former one goes. ValueError, which says where it is, if it cannot be
    moved.
    """
    folder = folder.resolve()
    formers = sorted(stale_temps(folder, "former"), key=lambda path: path.stat().st_mtime)
    if not formers:
        return
    if folder.is_dir() and any(folder.iterdir()):
        for former in formers:
            shutil.rmtree(former, ignore_errors=True)
        return
    try:
        formers[-1].replace(folder)
    except OSError as error:
        if folder.is_dir():  # another process was first
            return
        raise InputError(
            f"a process that replaced {folder} was killed on the way, and the former directory cannot be put back "
            f"({error.strerror}); it is {formers[-1]}: rename it"
        ) from None
    _log.warning("%s was being replaced by a process that was killed; the former directory is back", folder)


def _share(folder: Path) -> None:
    """Give all files the rights that the umask gives: safetensors makes its own readable to their owner alone."""
    probe = folder / ".rights"
    probe.touch()
    rights = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(rights)

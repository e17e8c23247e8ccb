"""A saved directory as files: how one is written beside its place, and put back after a kill."""

import json
import logging
from pathlib import Path
from typing import Any

from llm2enc.errors import InputError
from llm2enc.storage import replace_text

METADATA_FILE = "llm2enc.json"

_log = logging.getLogger(__name__)


def check_target(folder: Path) -> None:
    """ValueError if `folder` holds something that is not an older export."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a directory")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / METADATA_FILE).is_file():
        raise InputError(
            f"{folder} is not empty and no export of llm2enc ({METADATA_FILE} is missing); choose another directory"
        )


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON that people can read; the file is replaced whole."""
    replace_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

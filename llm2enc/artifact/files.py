"""An exported directory as files: its facts, and how one is written beside its place."""

import json
import logging
from pathlib import Path
from typing import Any

from llm2enc.errors import InputError
from llm2enc.storage import recover, replace_text

FACTS = "llm2enc.json"
FORMAT = 1

_log = logging.getLogger(__name__)


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of llm2enc.json. ValueError if `folder` is not an export that this release reads."""
    path = folder / FACTS
    if not folder.exists():
        recover(folder)
    if not path.is_file():
        raise InputError(
            f"{folder} is not a directory written by llm2enc: it has no {FACTS}. Convert a model first: "
            "llm2enc convert NAME -o DIR"
        )
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{path} is damaged: it is not valid JSON. Export the directory again") from None
    if facts.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {facts.get('format')!r}, this llm2enc reads format {FORMAT}; install the release that "
            f"wrote it ({facts.get('versions', {}).get('llm2enc', 'unknown')}), or a newer one"
        )
    return facts


def recipes_of(facts: dict[str, Any]) -> list[dict[str, Any] | None]:
    """The recipe that made an encoder, or those of all that were merged into it; None for one that is not known."""
    if "merge" not in facts:
        return [facts["recipe"]]
    return [recipe for parent in facts["merge"]["parents"] for recipe in parent["recipes"]]


def check_target(folder: Path) -> None:
    """ValueError if `folder` holds something that is not an older export."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a directory")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FACTS).is_file():
        raise InputError(
            f"{folder} is not empty and no export of llm2enc ({FACTS} is missing); choose another directory"
        )


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON that people can read; the file is replaced whole."""
    replace_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

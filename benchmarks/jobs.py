"""What tools share. They run in foreign interpreters, beside worker.py: the standard library only."""

import json
import re
from pathlib import Path
from typing import Any


def read(path: str) -> list[Any]:
    """The rows of a JSON file."""
    return json.loads(Path(path).read_text())


def plain(name: str) -> str:
    """A parameter's name without the prefixes and suffixes that libraries put around it."""
    name = re.search(r"(layers\.\d+\..*|embed_tokens\..*|norm\.weight)$", name)[0]
    return re.sub(r"\.default\.weight$", "", name)

"""What a check of a directory comes to."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["agrees", "differs", "unsupported", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One point in which an engine was compared with the directory."""

    engine: str
    version: str
    """The release whose sources the rule was read from."""
    verdict: Verdict
    message: str
    remedy: str = ""
    """A flag of the engine or an option of the export; empty where nothing is to be done or nothing helps."""

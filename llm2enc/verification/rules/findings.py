"""What a check of a directory comes to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from llm2enc.verification.rules.layout import Layout

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


def pooled_prompts(layout: Layout, finding: Callable[..., Finding]) -> Iterator[Finding]:
    """Of engines that do not know include_prompt: they pool a prompt's tokens too. Only a mean is moved by that."""
    if not layout.include_prompt and layout.pooling == "mean" and layout.prompts:
        message = "the prompt's tokens are pooled, which is not meant"
        yield finding("differs", message, "serve it by sentence-transformers")

"""What engines that cannot be run here would do with a saved directory, from its files alone.

One table per engine says what its sources, in the release that was read, make of a directory. `check` compares that with
what the directory means: with llm2enc.json if it is there, else with what sentence-transformers would do.

    agrees       the same vectors, up to rounding; the message may name a condition
    differs      other vectors, without an error
    unsupported  the engine stops with an error
    unknown      the files do not say
"""

from pathlib import Path

from llm2enc.verification.rules.engine import RuleResult, Verdict, apply
from llm2enc.verification.rules.infinity import INFINITY
from llm2enc.verification.rules.model_files import read
from llm2enc.verification.rules.tei import TEI
from llm2enc.verification.rules.vllm import VLLM

__all__ = ["ENGINES", "RuleResult", "Verdict", "check", "verdicts"]

ENGINES = (VLLM, TEI, INFINITY)
_WORST_FIRST: tuple[Verdict, ...] = ("unsupported", "differs", "unknown", "agrees")


def check(folder: Path) -> list[RuleResult]:
    """What each engine would do alike or otherwise, one result per point. ValueError if `folder` is no model."""
    files = read(folder)
    return [result for engine in ENGINES for result in apply(engine, files)]


def verdicts(results: list[RuleResult]) -> dict[str, Verdict]:
    """The worst verdict of each engine."""
    found: dict[str, Verdict] = {}
    for result in results:
        former = found.setdefault(result.engine, result.verdict)
        if _WORST_FIRST.index(result.verdict) < _WORST_FIRST.index(former):
            found[result.engine] = result.verdict
    return found

"""What engines that cannot be run here would do with a saved directory, from its files alone.

One table per engine says what its sources, in the release that was read, make of a directory. `check` compares that with
what the directory means: with llm2enc.json if it is there, else with what sentence-transformers would do.

    agrees       the same vectors, up to rounding; the message may name a condition
    differs      other vectors, without an error
    unsupported  the engine stops with an error
    unknown      the files do not say
"""

from pathlib import Path

from llm2enc.verification.rules.findings import Finding, Verdict, findings
from llm2enc.verification.rules.infinity import INFINITY
from llm2enc.verification.rules.layout import read
from llm2enc.verification.rules.tei import TEI
from llm2enc.verification.rules.vllm import VLLM

__all__ = ["ENGINES", "Finding", "Verdict", "check", "verdicts"]

ENGINES = (VLLM, TEI, INFINITY)
_WORST_FIRST: tuple[Verdict, ...] = ("unsupported", "differs", "unknown", "agrees")


def check(folder: Path) -> list[Finding]:
    """What each engine would do alike or otherwise, one finding per point. ValueError if `folder` is no model."""
    layout = read(folder)
    return [finding for engine in ENGINES for finding in findings(engine, layout)]


def verdicts(findings: list[Finding]) -> dict[str, Verdict]:
    """The worst verdict of each engine."""
    return {
        engine: min((f.verdict for f in findings if f.engine == engine), key=_WORST_FIRST.index)
        for engine in dict.fromkeys(finding.engine for finding in findings)
    }

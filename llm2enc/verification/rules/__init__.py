"""What engines that can't be run here would make of a saved directory, from its files alone.

Each module holds the rules of one engine as its sources state them, for the version that was read: which model it would
build, in which direction it would attend, what it would pool and normalise, where it would cut. `check` compares that
with what the directory means: with llm2enc.json if it is there, else with what sentence-transformers would do.

    agrees       the same vectors, up to rounding; the message may name a condition
    differs      other vectors, without an error
    unsupported  the engine stops with an error
    unknown      the files don't say
"""

from pathlib import Path

from llm2enc.verification.rules import infinity, tei, vllm
from llm2enc.verification.rules.findings import Finding, Verdict
from llm2enc.verification.rules.layout import read

__all__ = ["ENGINES", "Finding", "Verdict", "check", "verdicts"]

ENGINES = {module.ENGINE: module for module in (vllm, tei, infinity)}
_WORST_FIRST: tuple[Verdict, ...] = ("unsupported", "differs", "unknown", "agrees")


def check(folder: Path) -> list[Finding]:
    """What each engine would do alike or otherwise, one finding per point. ValueError if `folder` is no model."""
    layout = read(folder)
    findings = [finding for module in ENGINES.values() for finding in module.check(layout)]
    if layout.reason:
        # Every engine reads what sentence-transformers reads, so none can do better.
        findings += [
            Finding(name, module.VERSION, "differs", layout.reason, "serve it by llm2enc")
            for name, module in ENGINES.items()
        ]
    return findings


def verdicts(findings: list[Finding]) -> dict[str, Verdict]:
    """The worst verdict of each engine."""
    return {
        engine: min((f.verdict for f in findings if f.engine == engine), key=_WORST_FIRST.index)
        for engine in dict.fromkeys(finding.engine for finding in findings)
    }

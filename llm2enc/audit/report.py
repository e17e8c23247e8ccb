"""What a data audit finds, as plain data."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
_RANK = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Finding:
    """One thing to know about a source."""

    check: str
    """Name of the check, `swapped-columns`."""
    severity: Severity
    """`error`: training fails or learns something wrong. `warning`: worth mending. `note`: good to know."""
    what: str
    remedy: str
    """What to do; empty if there is nothing to do."""
    count: int = 0
    """Rows, texts or evaluation texts it concerns; `total` says of how many."""
    total: int = 0
    rows: tuple[int, ...] = ()
    """Numbers of up to two example rows, from 1."""

    @property
    def share(self) -> float:
        return self.count / self.total if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.share}


@dataclass
class SourceReport:
    """One data source as one stage reads it."""

    name: str
    stage: str
    """Objective of the stage, contrastive, simcse, mntp or clm; without a recipe also `texts` and `scored pairs`."""
    rows: int = 0
    """Rows that were read; all of the source's unless `sampled`."""
    available: int = 0
    """Rows that the source has; of a stream those that were read."""
    sampled: str = ""
    """How the rows were chosen, if there are more than were read."""
    recognised: dict[str, str] = field(default_factory=dict)
    """Of a file or folder: its format, why, and the `data` block for a recipe."""
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By side: texts, distinct texts, characters (median)."""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of positives, negatives or pairs that have scores: how many, and the least, the median and the most."""
    instructions: dict[str, int] = field(default_factory=dict)
    """Rows by instruction, the most frequent first."""
    lengths: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By side: tokens without template (quantiles), share truncated, tokens lost."""
    measured_with: str = ""
    """Tokenizer, template and limit that lengths and examples come from."""
    languages: dict[str, dict[str, float]] = field(default_factory=dict)
    """By side: share of each language, by `languages.language_of`."""
    shown: list[dict[str, Any]] = field(default_factory=list)
    """Example rows as the model sees them."""
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "findings": [finding.to_json() for finding in self.sorted()]}

    def sorted(self) -> list[Finding]:
        """Worst first."""
        return sorted(self.findings, key=lambda finding: (_RANK[finding.severity], -finding.share))


@dataclass
class Report:
    """All sources of a path or a recipe."""

    sources: list[SourceReport] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    """Sources of a recipe that cannot be read, and why."""
    evaluation: dict[str, int] = field(default_factory=dict)
    """Texts of each evaluation task that the sources were compared with."""

    @property
    def has_errors(self) -> bool:
        return any(finding.severity == "error" for source in self.sources for finding in source.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "sources": [source.to_json() for source in self.sources],
            "unreadable": self.unreadable,
            "evaluation": self.evaluation,
        }


def graded(share: float, warning: float, error: float = 2.0) -> Severity:
    """The severity of something that concerns this share of the texts."""
    return "error" if share >= error else "warning" if share >= warning else "note"


def percent(share: float) -> str:
    """12.3 %, and what is not nothing never as 0.0 %."""
    return "under 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"

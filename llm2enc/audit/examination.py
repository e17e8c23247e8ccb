"""All checks on one source, in one pass."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from llm2enc.audit.checks import languages, prefixes
from llm2enc.audit.checks.balance import Balance
from llm2enc.audit.checks.contamination import EvaluationTexts
from llm2enc.audit.checks.duplicates import Batching, Relations
from llm2enc.audit.checks.lengths import Reading, measure
from llm2enc.audit.checks.quality import TextFaults
from llm2enc.audit.checks.scores import Scores
from llm2enc.audit.checks.swapped import Sides
from llm2enc.audit.chunks import LIMIT, Reservoir, Row, choose, slabs
from llm2enc.audit.report import Finding, SourceReport
from llm2enc.audit.show import show
from llm2enc.data import Pair, Rows, Stream


@dataclass(frozen=True)
class Setting:
    """What a source is examined for: the stage that reads it, and what to compare it with."""

    batching: Batching
    reading: Reading | None = None
    evaluation: EvaluationTexts | None = None
    examples: int = 2
    """Rows to show."""
    limit: int = LIMIT
    stage: str = "contrastive"


def examine_rows(
    rows: Rows[Row] | Stream[Row] | Sequence[Row],
    setting: Setting,
    name: str = "rows",
    advance: Callable[[int], None] = lambda count: None,
) -> SourceReport:
    """The report on pairs, scored pairs or texts.

    advance  hears how many more rows were read
    raises   ValueError for a cell of a stream that is no text
    """
    started = time.perf_counter()
    chosen, sampled = choose(rows, setting.limit)
    faults, relations, sides, balance, reservoir = TextFaults(), Relations(), Sides(), Balance(), Reservoir()
    scores = Scores()
    search = setting.evaluation.search() if setting.evaluation else None
    passes = [faults, relations, sides, balance, scores, reservoir, *([search] if search else [])]
    head = list(islice(chosen, setting.examples))
    report = SourceReport(name, setting.stage, sampled=sampled)
    for slab in slabs(chain(head, chosen), advance):
        report.rows += len(slab.rows)
        for check in passes:
            check.add(slab)
    if not report.rows:
        report.findings.append(Finding("empty", "error", "the source has no rows", "give it some"))
        return report
    report.available = report.rows if isinstance(rows, Stream) else len(rows)
    if isinstance(rows, Stream) and report.rows < setting.limit:
        report.sampled = ""  # the stream ended before
    report.columns = _columns(relations, sides)
    report.scores = scores.summary()
    report.instructions = dict(balance.instructions.most_common())
    report.findings = [
        *faults.findings(),
        *relations.findings(setting.batching),
        *sides.findings(),
        *scores.findings(),
        *balance.findings(relations.keys("positive"), setting.reading),
        *(search.findings() if search else []),
    ]
    _look_closer(report, reservoir, setting)
    if setting.reading:
        report.shown = show([row for row in head if _is_whole(row)], setting.reading)
    report.seconds = time.perf_counter() - started
    return report


def _look_closer(report: SourceReport, reservoir: Reservoir, setting: Setting) -> None:
    """What is measured on a sample of the rows."""
    numbers, sample = reservoir.slab()
    told = languages.told(sample)
    report.languages = languages.shares(told)
    report.findings += languages.findings(numbers, sample, told) + prefixes.findings(numbers, sample, setting.reading)
    if setting.reading:
        report.measured_with = setting.reading.described
        report.lengths, findings = measure(sample, setting.reading)
        report.findings += findings


def _columns(relations: Relations, sides: Sides) -> dict[str, dict[str, float]]:
    distinct = relations.distinct()
    return {
        side: {
            "texts": len(sides.characters(side)),
            "distinct": count,
            "characters": float(np.median(sides.characters(side))),
        }
        for side, count in distinct.items()
        if len(sides.characters(side))
    }


def _is_whole(row: Row) -> bool:
    return not isinstance(row, Pair) or (isinstance(row.query, str) and isinstance(row.positive, str))

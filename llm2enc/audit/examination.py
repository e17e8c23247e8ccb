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
from llm2enc.audit.checks.lengths import InputView, measure
from llm2enc.audit.checks.quality import TextFaults
from llm2enc.audit.checks.scores import Scores
from llm2enc.audit.checks.swapped import SwappedColumns
from llm2enc.audit.chunks import LIMIT, Reservoir, Row, choose, chunks
from llm2enc.audit.report import Finding, SourceReport
from llm2enc.audit.show import show
from llm2enc.data import Pair, Rows, Stream


@dataclass(frozen=True)
class AuditOptions:
    """What a source is examined for: the stage that reads it, and what to compare it with."""

    batching: Batching
    view: InputView | None = None
    evaluation: EvaluationTexts | None = None
    examples: int = 2
    """Rows to show."""
    limit: int = LIMIT
    stage: str = "contrastive"


def examine_rows(
    rows: Rows[Row] | Stream[Row] | Sequence[Row],
    options: AuditOptions,
    name: str = "rows",
    advance: Callable[[int], None] = lambda count: None,
) -> SourceReport:
    """The report on pairs, scored pairs or texts.

    advance  hears how many more rows were read
    raises   ValueError for a cell of a stream that is no text
    """
    started = time.perf_counter()
    chosen, sampled = choose(rows, options.limit)
    faults, relations, swapped, balance, reservoir = TextFaults(), Relations(), SwappedColumns(), Balance(), Reservoir()
    scores = Scores()
    search = options.evaluation.search() if options.evaluation else None
    passes = [faults, relations, swapped, balance, scores, reservoir, *([search] if search else [])]
    head = list(islice(chosen, options.examples))
    report = SourceReport(name, options.stage, sampled=sampled)
    for chunk in chunks(chain(head, chosen), advance):
        report.rows += len(chunk.rows)
        for check in passes:
            check.add(chunk)
    if not report.rows:
        report.findings.append(Finding("empty", "error", "the source has no rows", "give it some"))
        return report
    report.available = report.rows if isinstance(rows, Stream) else len(rows)
    if isinstance(rows, Stream) and report.rows < options.limit:
        report.sampled = ""  # the stream ended before
    report.columns = _columns(relations, swapped)
    report.scores = scores.summary()
    report.instructions = dict(balance.instructions.most_common())
    report.findings = [
        *faults.findings(),
        *relations.findings(options.batching),
        *swapped.findings(),
        *scores.findings(),
        *balance.findings(relations.keys("positive"), options.view),
        *(search.findings() if search else []),
    ]
    _look_closer(report, reservoir, options)
    if options.view:
        report.shown = show([row for row in head if _is_whole(row)], options.view)
    report.seconds = time.perf_counter() - started
    return report


def _look_closer(report: SourceReport, reservoir: Reservoir, options: AuditOptions) -> None:
    """What is measured on a sample of the rows."""
    numbers, sample = reservoir.chunk()
    by_side = languages.detect(sample)
    report.languages = languages.shares(by_side)
    report.findings += languages.findings(numbers, sample, by_side) + prefixes.findings(numbers, sample, options.view)
    if options.view:
        report.measured_with = options.view.described
        report.lengths, findings = measure(sample, options.view)
        report.findings += findings


def _columns(relations: Relations, swapped: SwappedColumns) -> dict[str, dict[str, float]]:
    distinct = relations.distinct()
    return {
        side: {
            "texts": len(swapped.characters(side)),
            "distinct": count,
            "characters": float(np.median(swapped.characters(side))),
        }
        for side, count in distinct.items()
        if len(swapped.characters(side))
    }


def _is_whole(row: Row) -> bool:
    return not isinstance(row, Pair) or (isinstance(row.query, str) and isinstance(row.positive, str))

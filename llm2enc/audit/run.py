"""Data audit: what a source holds, as the model will see it, and what is wrong with it.

examine(path="pairs.jsonl")                       one file, glob, folder or hub data set
examine(recipe=load_recipe("pocket"))             every source of every stage, against the recipe's own evaluation
examine_rows(pairs, AuditOptions(Batching(64)))   rows in memory

One pass over each source, in memory that does not grow with the texts (chunks.py). No weights are loaded.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from llm2enc.audit.checks.balance import mixture, one_source
from llm2enc.audit.checks.contamination import EvaluationTexts, evaluation_texts
from llm2enc.audit.checks.duplicates import Batching
from llm2enc.audit.checks.lengths import InputView
from llm2enc.audit.chunks import LIMIT
from llm2enc.audit.examination import AuditOptions, examine_rows
from llm2enc.audit.report import Finding, Report, SourceReport, graded
from llm2enc.audit.targets import DataSource, name_of, of_path, of_recipe, open_source, tasks_of
from llm2enc.errors import DataError, require
from llm2enc.recipe import Recipe

__all__ = ["AuditOptions", "Batching", "Finding", "InputView", "Report", "SourceReport", "examine", "examine_rows"]


def examine(
    path: str | None = None,
    recipe: Recipe | None = None,
    evaluation: Iterable[str] = (),
    model: str = "pocket",
    examples: int = 2,
    limit: int = LIMIT,
    advance: Callable[[str, int], None] = lambda name, count: None,
) -> Report:
    """The report on a path, or on every data source of a recipe.

    evaluation  task folders to compare with, besides the recipe's own evaluation
    model       whose tokenizer counts, where there is no recipe
    examples    rows to show as the model sees them
    limit       rows of a source beyond which a sample is read
    advance     hears the name of the source and how many more of its rows were read
    raises      ValueError if the path cannot be read; an unreadable source of a recipe is in the report
    """
    require("py3langid", extra="audit")
    if path is not None:
        sources = of_path(path, recipe, model)
    elif recipe is not None:
        sources = of_recipe(recipe)
    else:
        raise DataError("nothing to look at: give a path of data, or a recipe")
    tasks = evaluation_texts(tasks_of(recipe, evaluation))
    report = Report(evaluation=tasks.counts)
    read: list[tuple[DataSource, SourceReport]] = []
    for source in sources:
        try:
            read.append((source, _examine_one(source, tasks, examples, limit, advance)))
        except ValueError as error:
            if len(sources) == 1:
                raise
            report.unreadable[name_of(source)] = str(error)
    report.sources = [examined for _, examined in read]
    if path is None and recipe is not None:
        _compare_sources(recipe, read)
    return report


def _compare_sources(recipe: Recipe, read: list[tuple[DataSource, SourceReport]]) -> None:
    """Add what is out of proportion between the sources of a stage."""
    for number, stage in enumerate(recipe.stages):
        members = [
            (source.spec.weight, examined) for source, examined in read if source.number == number and examined.rows
        ]
        if members:
            weights, reports = zip(*members, strict=True)
            shares = mixture([examined.available for examined in reports], weights, stage.mixture_alpha)
            reports[int(shares.argmax())].findings += one_source(shares)


def _examine_one(
    source: DataSource,
    tasks: EvaluationTexts,
    examples: int,
    limit: int,
    advance: Callable[[str, int], None],
) -> SourceReport:
    source, opened = open_source(source)
    options = AuditOptions(
        batching=replace(
            source.batching,
            in_batch_negatives=source.batching.in_batch_negatives and source.spec.in_batch_negatives,
            unique_ids=source.spec.unique_ids,
        ),
        view=source.view,
        evaluation=tasks if tasks.counts else None,
        examples=examples,
        limit=limit,
        stage=source.stage,
    )
    name = name_of(source)
    report = examine_rows(opened.rows, options, name, lambda count: advance(name, count))
    report.recognised = opened.recognised
    if opened.dropped:
        total = report.rows + opened.dropped
        what = (
            f"{opened.dropped:,} of {total:,} rows have no query, no positive or no text, and training leaves them out"
        )
        remedy = "row numbers below count the others; fill these rows or take them out"
        severity = graded(opened.dropped / total, warning=0.001, error=0.5)
        report.findings.append(Finding("left-out", severity, what, remedy, opened.dropped, total))
    return report

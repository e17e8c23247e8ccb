"""`llm2enc mine`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm2enc.cli.messages import narrate, quiet, say
from llm2enc.cli.options import Json, check_choice
from llm2enc.errors import InputError
from llm2enc.terminal import Column, table

if TYPE_CHECKING:
    from rich.table import Table

    from llm2enc.engine import Counts


def mine(
    pairs: Annotated[str, typer.Argument(help="Pairs, as training reads them: a file, a glob or a BEIR folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="File for the rows: .jsonl or .jsonl.gz.")],
    model: Annotated[
        str | None,
        typer.Option(help="Encoder that ranks: a directory, a run, or one of sentence-transformers or the hub."),
    ] = None,
    bm25: Annotated[
        bool, typer.Option("--bm25", help="Rank by shared words; with --model both are fused by reciprocal ranks.")
    ] = False,
    corpus: Annotated[
        str | None,
        typer.Option(help="File of texts or BEIR folder that negatives come from; all documents of PAIRS by default."),
    ] = None,
    negatives: Annotated[int, typer.Option(help="How many negatives a row gets.")] = 7,
    ranks: Annotated[str, typer.Option(help="First and last rank of candidates; positives do not count.")] = "1-100",
    share: Annotated[
        str, typer.Option(help="Candidates score below this share of the positive; `none` for no such rule.")
    ] = "0.95",
    margin: Annotated[float | None, typer.Option(help="Candidates score below the positive minus this.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Candidates score this at most.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Candidates score this at least.")] = None,
    reference: Annotated[
        str, typer.Option(help="With several positives, whose score --share and --margin start from: min, max or mean.")
    ] = "min",
    sampling: Annotated[
        str, typer.Option(help="Of the candidates that are left: top, random, or softmax of their scores.")
    ] = "top",
    seed: Annotated[int, typer.Option(help="Of random and softmax.")] = 0,
    rescore: Annotated[
        str | None, typer.Option(help="Directory of a cross-encoder or encoder that scores the candidates anew.")
    ] = None,
    instructions: Annotated[
        str, typer.Option(help="own: the encoder's `query` prompt for queries; task: the row's instruction; none.")
    ] = "own",
    as_json: Json = False,
) -> None:
    """Find hard negatives for pairs. Goes on where it was interrupted; OUT.provenance.json says what OUT was made from."""
    check_choice("--instructions", instructions, ("own", "task", "none"))
    first, last = _ranks(ranks)
    quiet()
    narrate()
    from llm2enc.engine import mine

    counts = mine(
        pairs, out, model=model, bm25=bm25, corpus=corpus, rescore=rescore,
        instructions=instructions,  # pyright: ignore[reportArgumentType] - checked above
        show_progress=sys.stderr.isatty(), negatives=negatives, ranks=(first, last), share=_share(share), margin=margin,
        max_score=max_score, min_score=min_score, reference=reference, sampling=sampling, seed=seed,
    )  # fmt: skip
    if as_json:
        import json

        print(json.dumps(counts))
    else:
        from rich.console import Console

        Console().print(_table(counts))
    say(f"{out}: training reads it as it is")


def _ranks(given: str) -> tuple[int, int]:
    first, _, last = given.partition("-")
    if not (first.isdigit() and last.isdigit()):
        raise InputError(f"--ranks is {given!r}; expected the first and the last, such as 30-100")
    return int(first), int(last)


def _share(given: str) -> float | None:
    try:
        return None if given == "none" else float(given)
    except ValueError:
        raise InputError(f"--share is {given!r}; expected a number such as 0.95, or none") from None


def _table(counts: "Counts") -> "Table":
    """What became of rows and candidates, with the share of each."""
    rows = []
    for what, reasons in counts.items():
        total = sum(reasons.values())
        rows += [(what, "all", f"{total:,}", "")]
        rows += [(None, reason, f"{number:,}", f"{number / total:.1%}") for reason, number in reasons.items() if number]
    return table(["", "", Column("number", "right"), Column("share", "right")], rows)

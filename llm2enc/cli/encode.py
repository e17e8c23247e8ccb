"""`llm2enc encode`."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm2enc.cli.messages import quiet, say
from llm2enc.cli.options import check_choice
from llm2enc.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from llm2enc.data import TextRows
    from llm2enc.encoding import EncodeOptions, Encoder, PartialFile
    from llm2enc.storage import Facts

CALIBRATION_TEXTS = 10_000  # of a file given to `encode --calibrate`; more hardly widen the ranges


def encode(
    model: Annotated[Path, typer.Argument(help="Directory of an encoder, e.g. runs/pocket/model.")],
    source: Annotated[
        str, typer.Argument(help="Texts: .txt (one a line), .jsonl, .csv, .parquet, also .gz; - for a pipe.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="File for the vectors: .npy, or .parquet (`embedding`).")],
    column: Annotated[
        str | None, typer.Option(help="Column of the texts; `text`, or the only one with texts, by default.")
    ] = None,
    skip_empty: Annotated[
        bool, typer.Option(help="Leave out empty texts; OUT.rows.npy has the rows kept, from 0.")
    ] = False,
    instruction: Annotated[str | None, typer.Option(help="What the texts are queries for.")] = None,
    prompt_name: Annotated[str | None, typer.Option(help="`query`, `document` or a prompt of the recipe.")] = None,
    truncate_dim: Annotated[int | None, typer.Option(help="Keep the first so many dimensions.")] = None,
    precision: Annotated[str, typer.Option(help="float32, int8, uint8, binary or ubinary (a bit per dimension).")] = (
        "float32"
    ),
    calibrate: Annotated[
        str | None, typer.Option(help="Texts, read like SOURCE, whose vectors give the ranges of int8 and uint8.")
    ] = None,
    ranges: Annotated[
        Path | None, typer.Option(help="Ranges of an earlier run (OUT.ranges.npy), to encode queries like documents.")
    ] = None,
) -> None:
    """Encode a file of texts, a vector for each line or row. With int8 or uint8 the ranges are written too: OUT.ranges.npy.

    Goes on where it was interrupted: what is done stands in OUT.partial until all is. Under torchrun processes share it.
    """
    if out.suffix not in (".npy", ".parquet"):
        raise InputError(f"vectors are written as .npy or .parquet, got {out.name!r}")
    check_choice("--precision", precision, ("float32", "int8", "uint8", "binary", "ubinary"))
    _check_ranges(precision, calibrate, ranges)
    ranges_out = out.with_suffix(".ranges.npy") if precision in ("int8", "uint8") else None
    rows_out = out.with_suffix(".rows.npy") if skip_empty else None
    from llm2enc.encoding import PartialFile

    partial = PartialFile(out)
    former = partial.facts()
    if former is None:
        _check_free(out, ranges_out, rows_out)
    quiet()
    from llm2enc import distributed
    from llm2enc.data import read_text_files
    from llm2enc.encoding import EncodeOptions, text_digest

    distributed.start()
    given = _read_ranges(ranges) if ranges else None
    _check_pipes(distributed.world_size(), *filter(None, (source, calibrate)))
    texts = read_text_files(source, column, skip_empty)
    samples = read_text_files(calibrate, column, skip_empty) if calibrate else None
    if distributed.is_main():
        say("\n".join(_decided(rows, skip_empty) for rows in (texts, samples) if rows is not None))
    if samples is not None:  # from the whole file, which may be sorted
        samples = samples[:: -(-len(samples) // CALIBRATION_TEXTS)]
    options = EncodeOptions(
        instruction, prompt_name, truncate_dim=truncate_dim,
        precision=precision,  # pyright: ignore[reportArgumentType] - checked above
    )  # fmt: skip
    facts = {
        "count": len(texts),
        "texts": text_digest(texts),
        "precision": precision,
        "truncate_dim": truncate_dim,
        "calibrated on": None if samples is None else text_digest(samples),
        "ranges": None if given is None else hashlib.sha256(given.tobytes()).hexdigest(),
    }
    if partial.is_finished(facts):
        distributed.barrier()
        if distributed.is_main():
            partial.remove()
            say(f"{out}: {len(texts)} vectors, finished by the run before")
        return
    partial.check(facts)
    beside = {} if rows_out is None else {rows_out: _kept_rows(texts)}
    left = [path for path, data in beside.items() if path.is_file() and path.read_bytes() == data]  # by a killed run
    _check_free(out, None if partial.holds(ranges_out) else ranges_out, *(beside.keys() - left))
    _check_disk(partial, model, facts)
    distributed.barrier()  # every process has looked before one writes
    _run(model, texts, samples, given, partial, facts, options, ranges_out, beside)


def _run(
    model, texts, samples, ranges, partial: "PartialFile", facts: "Facts", options: "EncodeOptions", ranges_out, beside
) -> None:
    """What comes after all that can be checked without the model."""
    from contextlib import nullcontext

    from llm2enc import distributed
    from llm2enc.encoding import Encoder, encode_file, encoder_facts
    from llm2enc.storage import replace_bytes

    encoder = Encoder.load(model)
    facts |= encoder_facts(encoder, options)
    main = distributed.is_main()
    goes_on = partial.check(facts)
    with (
        partial.alone() if main else nullcontext(),
        distributed.abort_with_peers("Finished rows are kept: go on with the same command"),
    ):
        if goes_on and main:
            done = sum(map(len, partial.done(facts)))
            say(f"{partial.folder} holds {done:,} of {len(texts):,} vectors: going on from there")
        if ranges_out is not None:
            ranges = _ranges(encoder, samples, ranges, partial, goes_on, options)
        options = replace(options, ranges=ranges, show_progress=main)
        encoder.encode_blocks([], options)  # refuses before anything is written
        encode_file(encoder, texts, partial, facts, options)
        if main:
            for path, data in beside.items():  # before the vectors, which mean nothing without them
                replace_bytes(path, data)
                say(f"{path}: the rows of {texts.name} that have a vector, counted from 0")
            partial.finish(ranges_out)
            width = options.truncate_dim or encoder.dimensions
            say(f"{partial.out}: {len(texts)} vectors of {width} dimensions in {options.precision}")


def _decided(texts: "TextRows", skip_empty: bool) -> str:
    """What the files were taken for, and which of their texts are empty."""
    count, first = texts.empty
    then = "left out" if skip_empty else "encoded as empty texts; --skip-empty leaves them out"
    empty = f"\n{count:,} of {texts.total:,} texts are empty (the first in row {first:,}): {then}" if count else ""
    return f"{texts.name}: {texts.decided}{empty}"


def _kept_rows(texts: "TextRows") -> bytes:
    """A .npy file of the rows of the source, from 0, that the texts stand in."""
    import io

    import numpy as np

    file = io.BytesIO()
    np.save(file, np.arange(len(texts)) if texts.kept is None else texts.kept)
    return file.getvalue()


def _check_pipes(processes: int, *sources: str) -> None:
    """ValueError for what can be read once, and would be read twice."""
    from llm2enc.data import is_pipe

    pipes = [source for source in sources if is_pipe(source)]
    if pipes and (processes > 1 or len(pipes) > len(set(pipes))):
        raise InputError(
            f"{pipes[0]} can be read once, and would be {max(processes, 2)} times; write it to a file first"
        )


def _ranges(
    encoder: "Encoder", samples, given, partial: "PartialFile", goes_on: bool, options: "EncodeOptions"
) -> "np.ndarray":
    """The ranges of int8 and uint8: of the run that goes on, as given, or found in the samples by every process alike."""
    import io

    import numpy as np

    from llm2enc import distributed
    from llm2enc.encoding import calibrate
    from llm2enc.storage import replace_bytes

    if goes_on and partial.ranges.is_file():
        return np.load(partial.ranges)
    if given is None:
        # Shared, because an index compares int8 codes as they are.
        plain = replace(options, precision="float32", show_progress=distributed.is_main())
        given = calibrate(np.concatenate(list(encoder.encode_blocks(samples, plain))), shared=True)
    if distributed.is_main():
        file = io.BytesIO()
        np.save(file, given)
        partial.folder.mkdir(parents=True, exist_ok=True)
        replace_bytes(partial.ranges, file.getvalue())
    return given


def _check_free(*files: Path | None) -> None:
    """ValueError for a file that is there already."""
    for path in files:
        if path is not None and path.exists():
            raise InputError(f"{path} exists already; choose another file or remove it")


def _check_disk(partial: "PartialFile", model: Path, facts: "Facts") -> None:
    """OSError if the folder cannot be written or has no room for the vectors that are missing."""
    import numpy as np

    from llm2enc.artifact import read_metadata
    from llm2enc.encoding import layout
    from llm2enc.storage import check_room

    entries, kind = layout(facts["truncate_dim"] or read_metadata(model).dimensions, facts["precision"])
    row = entries * np.dtype(kind).itemsize
    former = partial.facts()
    missing = facts["count"] if former is None else sum(map(len, partial.missing(former)))
    twice = facts["count"] * row if partial.out.suffix == ".parquet" else 0
    check_room(partial.folder, missing * row + twice)


def _check_ranges(precision: str, calibrate: str | None, ranges: Path | None) -> None:
    """ValueError unless there is one source of ranges exactly where they are needed."""
    if precision not in ("int8", "uint8"):
        if calibrate or ranges:
            raise InputError("--calibrate and --ranges are only for --precision int8 and uint8; leave them out")
    elif calibrate and ranges:
        raise InputError("give either --calibrate or --ranges, not both: both say what the codes mean")
    elif not (calibrate or ranges):
        raise InputError(
            f"--precision {precision} needs ranges, the same for documents and queries: --calibrate FILE with texts like "
            "the documents (their own file will do) for the first, then --ranges FILE.npy with what that run wrote"
        )


def _read_ranges(path: Path) -> "np.ndarray":
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        raise InputError(f"{path} is no .npy file of ranges, as `encode --precision int8` writes them") from None

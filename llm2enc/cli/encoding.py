"""`llm2enc encode`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm2enc.cli.shared import check_choice, quiet, say

if TYPE_CHECKING:
    import numpy as np

CALIBRATION_TEXTS = 10_000  # of a file given to `encode --calibrate`; more hardly widen the ranges


def encode(
    model: Annotated[Path, typer.Argument(help="Directory of an encoder, e.g. runs/pocket/model.")],
    source: Annotated[Path, typer.Argument(help="Texts: .txt (one a line), .jsonl, .csv or .parquet, also .gz.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="File for the vectors (.npy).")],
    column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    instruction: Annotated[str | None, typer.Option(help="What the texts are queries for.")] = None,
    prompt_name: Annotated[str | None, typer.Option(help="`query`, `document` or a prompt of the recipe.")] = None,
    truncate_dim: Annotated[int | None, typer.Option(help="Keep the first so many dimensions.")] = None,
    precision: Annotated[str, typer.Option(help="float32, int8, uint8, binary or ubinary (a bit per dimension).")] = (
        "float32"
    ),
    calibrate: Annotated[
        Path | None, typer.Option(help="Texts, read like SOURCE, whose vectors give the ranges of int8 and uint8.")
    ] = None,
    ranges: Annotated[
        Path | None, typer.Option(help="Ranges of an earlier run (OUT.ranges.npy), to encode queries like documents.")
    ] = None,
) -> None:
    """Encode a file of texts. With int8 or uint8 the ranges are written too, beside the vectors: OUT.ranges.npy."""
    if out.suffix != ".npy":
        raise ValueError(f"vectors are written as .npy, got {out.name!r}")
    check_choice("--precision", precision, ("float32", "int8", "uint8", "binary", "ubinary"))
    _check_ranges(precision, calibrate, ranges)
    ranges_out = out.with_suffix(".ranges.npy") if precision in ("int8", "uint8") else None
    for path in (out, ranges_out):
        if path is not None and path.exists():
            raise ValueError(f"{path} exists already; choose another file or remove it")
    from llm2enc.data import read_texts
    from llm2enc.encoder import Encoder
    from llm2enc.quantization import calibrate as ranges_of
    from llm2enc.quantization import layout
    from llm2enc.recipe import FilesData

    def read(path: Path):
        return read_texts(FilesData(kind="files", path=str(path), columns={"text": column} if column != "text" else {}))

    quiet()
    found = _read_ranges(ranges) if ranges else None
    texts, samples = read(source), read(calibrate) if calibrate else None
    encoder = Encoder.load(model)
    reading = {"instruction": instruction, "prompt_name": prompt_name, "truncate_dim": truncate_dim}
    if samples is not None:
        every = -(-len(samples) // CALIBRATION_TEXTS)  # from the whole file, which may be sorted
        # Shared, because an index compares int8 codes as they are.
        found = ranges_of(encoder.encode(samples[::every], show_progress=True, **reading), shared=True)
    blocks = encoder.encode_blocks(texts, precision=precision, ranges=found, show_progress=True, **reading)
    width = truncate_dim or encoder.backbone.width
    entries, kind = layout(width, precision)
    if ranges_out is not None:  # before the vectors, which mean nothing without them
        _save(iter([found]), width, ranges_out)
    try:
        count = _save(blocks, entries, out, kind.str)
    except BaseException:
        if ranges_out is not None:
            ranges_out.unlink()
        raise
    say(f"{out}: {count} vectors of {width} dimensions in {precision}")


def _check_ranges(precision: str, calibrate: Path | None, ranges: Path | None) -> None:
    """ValueError unless there is one source of ranges exactly where they are needed."""
    if precision not in ("int8", "uint8"):
        if calibrate or ranges:
            raise ValueError("--calibrate and --ranges are only for --precision int8 and uint8; leave them out")
    elif calibrate and ranges:
        raise ValueError("give either --calibrate or --ranges, not both: both say what the codes mean")
    elif not (calibrate or ranges):
        raise ValueError(
            f"--precision {precision} needs ranges, the same for documents and queries: --calibrate FILE with texts like "
            "the documents (their own file will do) for the first, then --ranges FILE.npy with what that run wrote"
        )


def _read_ranges(path: Path) -> "np.ndarray":
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        raise ValueError(f"{path} is no .npy file of ranges, as `encode --precision int8` writes them") from None


def _save(blocks: Iterator["np.ndarray"], width: int, out: Path, dtype: str = "<f4") -> int:
    """Write blocks (b, width) to a .npy file as they come, and move it into place at the end; the row count."""
    import numpy as np

    partial = out.with_suffix(".partial.npy")
    kind = {"descr": dtype, "fortran_order": False}
    rows = 0
    try:
        with partial.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {**kind, "shape": (0, width)})
            for block in blocks:
                file.write(np.ascontiguousarray(block, dtype=dtype).data)
                rows += len(block)
            file.seek(0)  # numpy leaves room in the header for the number of rows to grow
            np.lib.format.write_array_header_1_0(file, {**kind, "shape": (rows, width)})
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return rows

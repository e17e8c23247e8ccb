"""The command line. Heavy imports stay inside the commands, so that `--help` and a wrong recipe answer at once.

Exit codes: 0 done, 1 failed, 2 usage or bad input, 3 refused (can't be converted), 130 interrupted with a checkpoint.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # help in plain text: rich takes three times as long to import as all the rest
    help="Turn a decoder-only language model into a proven text encoder.",
)

Set = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a field of the recipe.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no vectors on disk.")]

CALIBRATION_TEXTS = 10_000  # of a file given to `encode --calibrate`; more hardly widen the ranges


@app.command()
def convert(
    recipe: Annotated[
        str, typer.Argument(help="Shipped recipe (see `llm2enc recipes`), .yaml file, or a model with --training-free.")
    ],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the run; runs/NAME by default.")] = None,
    overrides: Set = None,
    training_free: Annotated[bool, typer.Option(help="Convert, prove and export only.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on with the run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Delete the run in the folder first.")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: convert, prove, train, export, verify."""
    loaded = _recipe(recipe, overrides or [], training_free)
    folder = out or Path("runs") / loaded.name
    _quiet()
    from llm2enc import distributed
    from llm2enc.conversion import convert as run
    from llm2enc.trainer import Interrupted

    try:
        result = run(loaded, folder, resume=resume, overwrite=overwrite)
    except Interrupted as stopped:
        again = " ".join(["llm2enc convert", recipe, "-o", str(folder), *(f"--set {c}" for c in overrides or [])])
        _say(f"Interrupted. {stopped}. Go on with:\n  {again} --resume")
        raise typer.Exit(130) from None
    if not distributed.is_main():
        return
    if as_json:
        parity = [
            {"engine": p.engine, "cosine": p.cosine, "verdict": p.verdict, "note": p.note, "remedy": p.remedy}
            for p in result.parity
        ]
        answer = {"folder": str(result.folder), "history": result.history, "baselines": result.baselines}
        print(json.dumps({**answer, "parity": parity}))
    else:
        _print_result(result)
    if not all(parity.agrees for parity in result.parity):
        raise typer.Exit(1)


def _recipe(name: str, overrides: list[str], training_free: bool):
    """The recipe asked for; without --training-free, before torch is imported."""
    from llm2enc.recipe import load_recipe, recipe_names

    if training_free and name not in recipe_names() and Path(name).suffix not in {".yaml", ".yml"}:
        from llm2enc.conversion import training_free as recipe_of

        return load_recipe(recipe_of(name).model_dump(mode="json"), overrides)
    return load_recipe(name, [*overrides, *(["stages=[]"] if training_free else [])])


@app.command()
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
    _check_choice("--precision", precision, ("float32", "int8", "uint8", "binary", "ubinary"))
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

    _quiet()
    found = _read_ranges(ranges) if ranges else None
    texts, samples = read(source), read(calibrate) if calibrate else None
    encoder = Encoder.load(model)
    reading = {"instruction": instruction, "prompt_name": prompt_name, "truncate_dim": truncate_dim}
    if samples is not None:
        every = -(-len(samples) // CALIBRATION_TEXTS)  # from the whole file, which may be sorted
        found = ranges_of(encoder.encode(samples[::every], show_progress=True, **reading))
    blocks = encoder.encode_blocks(texts, precision=precision, ranges=found, show_progress=True, **reading)
    width = truncate_dim or encoder.backbone.width
    entries, kind = layout(width, precision)
    if ranges_out is not None:
        _save(iter([found]), width, ranges_out)
    _say(f"{out}: {_save(blocks, entries, out, kind.str)} vectors of {width} dimensions in {precision}")


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


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Directory of an encoder, of a run, or a sentence-transformers hub id.")],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            help="`smoke` (docstrings, the default), a folder of tasks, a BEIR data set, a file of pairs, `nanobeir`, "
            "`mteb`, or any task or benchmark of mteb. May be repeated.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Results; runs/evaluate/NAME by default.")] = None,
    instructions: Annotated[
        str, typer.Option(help="own: the encoder's `query` prompt for queries; task: the task's instruction; none.")
    ] = "own",
    by_mteb: Annotated[
        bool, typer.Option("--by-mteb", help="Local tasks too are scored by mteb, into its own result files.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only say how long each rung of the ladder would take.")] = False,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Measure an encoder on the eight MTEB task types, on local data or by mteb. Goes on where it was interrupted."""
    _check_choice("--instructions", instructions, ("own", "task", "none"))
    _quiet()
    from llm2enc.evaluation import command, ladder

    sources = tasks or ["smoke"]
    if plan:
        rows = command.plan(model, sources)
        print(json.dumps(rows)) if as_json else ladder.print_estimates(rows)
        return
    folder = out or Path("runs") / "evaluate" / _label(model)
    with _interruptible():
        results, failures = command.run(
            model, sources, folder, _cache(no_cache), instructions, by_mteb,
            report=_say, show_progress=sys.stderr.isatty(),
        )  # fmt: skip
    if as_json:
        print((folder / "results.json").read_text(encoding="utf-8") if results else "{}")
    else:
        command.print_results(results, failures)
    if results:
        _say(f"results: {folder}")
    if failures:
        raise typer.Exit(1)


@app.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(help="Causal models (`pocket`, directories, hub ids), runs, encoders (also `st:HUB_ID`)."),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help="A file of pairs, a folder of tasks, or `smoke` (docstrings, the default). Repeatable."
        ),
    ] = None,
    readings: Annotated[
        list[str] | None,
        typer.Option(
            "--readings", help="causal-mean, echo-last, bidirectional-mean@6, ...; eight by default. Repeatable."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Report; runs/compare/NAME by default.")] = None,
    layers: Annotated[bool, typer.Option(help="Also score every layer of the mean-pooled readings.")] = True,
    max_text_tokens: Annotated[int, typer.Option(min=2, help="Longest text in tokens, for every reading alike.")] = 256,
    dtype: Annotated[
        str, typer.Option(help="auto (float32 on a CPU, bfloat16 on a GPU), float32, bfloat16 or float16.")
    ] = "auto",
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Say how a model is best read as an encoder: causal, bidirectional or Echo, and how pooled. Writes a report."""
    _check_choice("--dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    _quiet()
    from llm2enc.comparison import compare as run
    from llm2enc.comparison import save

    folder = out or Path("runs") / "compare" / "-".join(map(_label, models))
    with _interruptible(), _status(sys.stderr.isatty()) as advance:
        found = run(
            models, data or ["smoke"], folder, readings=readings, layers=layers, max_text_tokens=max_text_tokens,
            dtype=dtype, cache=_cache(no_cache), advance=advance,
        )  # fmt: skip
    save(found, folder)
    if as_json:
        print((folder / "compare.json").read_text(encoding="utf-8"))
    else:
        _print_comparison(found)
        print(f"report: {folder / 'report.html'}")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Hub id, directory, config.json or `pocket`.")],
    as_json: Json = False,
) -> None:
    """Say whether a model can be made bidirectional. It goes layer by layer and loads no weights."""
    _quiet()
    from llm2enc.inspection import inspect as look

    found = look(model)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        _print_inspection(found.to_json())
    if found.verdict == "refused":
        raise typer.Exit(3)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe, resolved.")] = None,
    overrides: Set = None,
) -> None:
    """List the shipped recipes, or show one."""
    from rich.console import Console
    from rich.table import Table

    from llm2enc.recipe import load_recipe, recipe_names

    if name is not None:
        print(load_recipe(name, overrides or []).to_yaml(), end="")
        return
    table = Table("recipe", "model", "stages", "what it does")
    for recipe in map(load_recipe, recipe_names()):
        stages = " -> ".join(stage.objective for stage in recipe.stages)
        table.add_row(recipe.name, recipe.model.name, stages, recipe.description)
    Console().print(table)


def main() -> None:
    """Entry point: user errors become one message and an exit code, never a traceback."""
    try:
        app()
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        _say(f"error: {error}")
        sys.exit(code)


def _exit_code(error: Exception) -> int | None:
    """2 for bad input, 3 for a refused model, 1 for a failed run; None for our own faults, which keep their traceback."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if "CannotConvert" in names:
        return 3
    if "NotFinite" in names:
        return 1
    return 2 if isinstance(error, ValueError | TypeError | OSError) else None


def _check_choice(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ValueError(f"{option} is {given!r}; expected one of {', '.join(known)}")


def _cache(off: bool) -> Path | None:
    """The folder of vectors, unless it is switched off."""
    from llm2enc.evaluation.cache import default_cache

    return None if off else default_cache() / "vectors"


def _label(model: str) -> str:
    """A folder name for a model: the last part of its name, with the one above where that is only `model`."""
    path = Path(model)
    parts = path.resolve().parts if path.exists() else path.parts
    last = parts[-2:] if parts[-1] == "model" else parts[-1:]
    return "-".join("".join(c if c.isalnum() or c in "-_." else "-" for c in part) for part in last)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends with a message and code 130 instead of a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        _say("Interrupted. What is finished is kept: the same command goes on from here.")
        raise typer.Exit(130) from None


@contextmanager
def _status(show: bool) -> Iterator[Callable[[str, int], None]]:
    """A line that says what is being measured and how many of its texts are done, and the function that moves it."""
    if not show:
        yield lambda name, count: None
        return
    from rich.console import Console

    done: dict[str, int] = {}
    with Console(stderr=True).status("opening the model") as status:

        def advance(name: str, count: int) -> None:
            done[name] = done.get(name, 0) + count
            status.update(f"{name}: {done[name]:,} texts")

        yield advance


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _quiet() -> None:
    """Libraries' progress bars and notices make way for our own."""
    from llm2enc.backbone import quiet

    quiet()


def _print_comparison(found) -> None:
    from rich.console import Console

    from llm2enc.comparison.table import table

    console = Console()
    console.print(table(found))
    for sentence in [*found.advice, *(f"note: {note}" for note in found.notes)]:
        console.print(f"- {sentence}", markup=False, highlight=False)


def _print_result(result) -> None:
    from rich.console import Console
    from rich.table import Table

    from llm2enc.conversion import gains

    console = Console()
    metrics = list(result.history[-1]["scores"])
    table = Table("stage", *metrics, "seconds", title="scores on held-out data")
    for row in result.history:
        table.add_row(row["stage"], *(f"{row['scores'][m]:.3f}" for m in metrics), f"{row['seconds']:.0f}")
    if result.baselines:
        table.add_row(
            "TF-IDF", *(f"{result.baselines[m]:.3f}" if m in result.baselines else "" for m in metrics), "", style="dim"
        )
    for row in gains(result.history):
        table.add_row(f"gain {row['stage']}", *(f"{row['gains'].get(m, 0):+.3f}" for m in metrics), "", style="dim")
    console.print(table)
    for parity in result.parity:
        verdict = "not compared" if parity.cosine is None else f"cosine {parity.cosine:.6f}"
        said = "; ".join(part for part in (parity.note, parity.remedy) if part)
        console.print(f"{parity.engine}: {verdict} {said}".rstrip())
    console.print(f"encoder: {result.folder / 'model'}")


def _print_inspection(found: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(show_header=False)
    for key, value in found.items():
        if key != "layers":
            table.add_row(key, str(value))
    console.print(table)
    layers = Table("layer", "type", "attention")
    for layer in found["layers"]:
        layers.add_row(str(layer["index"]), str(layer["type"]), str(layer["attention"]))
    console.print(layers)


if __name__ == "__main__":
    main()

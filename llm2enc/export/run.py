"""What leaves the house: export formats, which other programs open without code of ours.

    sentence-transformers   the directory itself, which transformers, vLLM, TEI and infinity open too
    onnx, openvino, gguf    further formats, written into the directory
    mteb                    how mteb runs the model
    adapter                 the LoRA chain of a run as one adapter for the model it started from

Each format is a module with SUMMARY, `unsupported_reason` and `write`. A format that an encoder cannot have is refused
with the reason before anything is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from llm2enc.artifact import DTYPES, METADATA_FILE, Metadata, check_target, read_metadata
from llm2enc.encoding import Encoder
from llm2enc.errors import CannotExport, InputError
from llm2enc.recipe import load_recipe
from llm2enc.storage import recover

DIRECTORY = "sentence-transformers"
SUMMARY = "the directory itself, which sentence-transformers, transformers, vLLM and text-embeddings-inference open"


@dataclass(frozen=True)
class ExportFormat:
    """An export format by the name that the command line gives it."""

    module: str
    """In this package; empty for the directory itself."""
    dtypes: tuple[str, ...] = ()
    """Storage types it is written in, the default first; empty where there is no choice."""
    alone: bool = False
    """Whether it is of use without the directory around it."""


FORMATS = {
    DIRECTORY: ExportFormat("", DTYPES),  # `Encoder.save` writes it
    "onnx": ExportFormat("onnx", ("float32", "float16")),
    "openvino": ExportFormat("openvino", ("float32", "float16")),
    "gguf": ExportFormat("gguf", ("float16", "float32", "q8_0"), alone=True),
    "adapter": ExportFormat("adapter", alone=True),
    "mteb": ExportFormat("mteb"),  # the last to be written: it lists the others
}
# What says that two directories hold one encoder: weights and configuration, and how they are read.
_SAME = ("fingerprint", "input", "pooling", "normalize")


@dataclass(frozen=True)
class Source:
    """What is exported."""

    folder: Path
    """An exported directory."""
    run: Path | None
    """The run that made it, if it is still beside it."""

    @staticmethod
    def of(path: Path) -> "Source":
        """The source that a directory or a run's folder stands for. ValueError if it is neither."""
        for place in (path, path / "model"):
            if not place.exists():
                recover(place)
        folder = path if (path / METADATA_FILE).is_file() else path / "model"
        if not (folder / METADATA_FILE).is_file():
            raise InputError(
                f"{path} is neither a directory written by llm2enc nor a run (no {METADATA_FILE}, no "
                f"model/{METADATA_FILE}); make one with `llm2enc convert NAME -o DIR`"
            )
        above = folder.absolute().parent
        return Source(folder, above if (above / "recipe.yaml").is_file() else None)


@dataclass(frozen=True)
class Exported:
    """What `export` wrote."""

    files: list[Path]
    notes: list[str]
    """What whoever opens these formats should know, beyond the card."""


def export(
    source: Path,
    formats: Sequence[str],
    out: Path | None = None,
    dtypes: Sequence[str] = (),
    repo: str | None = None,
) -> Exported:
    """Write `formats` of an exported directory or a run, into the directory itself or into `out`.

    formats  names of FORMATS
    out      where to: a new directory if DIRECTORY is among the formats, otherwise another one of this very encoder; formats
             that stand alone may go anywhere
    dtypes   storage types; where none is one of a format's own, its default, and for DIRECTORY the type of the weights
    repo     USER/NAME on the hub, for what names the model there
    raises   CannotExport with every reason, ValueError for unusable arguments; nothing is written then. A package that is
             missing (ValueError) or a format that turns out to give other vectors (CannotExport) shows on the way only:
             formats written before it stay
    """

    chosen = _dtypes(formats, dtypes)
    formats = list(chosen)
    found = Source.of(source)
    metadata = read_metadata(found.folder)
    _check_out(found, metadata, formats, out)
    encoder = Encoder.load(found.folder)
    reasons = [f"{format}: {why}" for format in formats if (why := _refusal(format, encoder, metadata, found))]
    if reasons:
        raise CannotExport("; ".join(reasons))
    files: list[Path] = []
    notes: list[str] = []
    folder = found.folder
    if out is not None:
        folder = out
        if DIRECTORY in formats:
            recipe = load_recipe(metadata.recipe) if metadata.recipe else None
            dtype = next(iter(chosen[DIRECTORY]), None)  # once more, in another storage type if one is given
            encoder.save(folder, recipe=recipe, history=metadata.history, merge=metadata.merge, dtype=dtype)
            files += sorted(path for path in folder.rglob("*") if path.is_file())
            metadata, encoder = read_metadata(folder), Encoder.load(folder)
    for format in formats:
        if format == "adapter":
            files += _module(format).write(found.run, folder)
        elif format != DIRECTORY:
            keywords: dict[str, Any] = {"dtypes": chosen[format]} if chosen[format] else {}
            keywords |= {"name": repo} if format == "mteb" else {}
            files += _module(format).write(encoder, folder, metadata, **keywords)
            notes += _module(format).notes(encoder, metadata) if format == "gguf" else []
    return Exported(files, notes)


def summaries() -> dict[str, str]:
    """One line on each format."""
    return {name: SUMMARY if name == DIRECTORY else _module(name).SUMMARY for name in FORMATS}


def why_not(source: Source) -> dict[str, str]:
    """Why a source cannot have a format, by format; empty where it can."""

    encoder, metadata = Encoder.load(source.folder), read_metadata(source.folder)
    return {format: _refusal(format, encoder, metadata, source) for format in FORMATS}


def _refusal(format: str, encoder: Encoder, metadata: Metadata, source: Source) -> str:
    if format == DIRECTORY:
        return ""
    if format != "adapter":
        return _module(format).unsupported_reason(encoder, metadata)
    if source.run is None:
        return "an adapter is made of the stages of a run; give the run's folder, as `llm2enc convert` left it"
    return _module(format).unsupported_reason(source.run)


def _module(format: str) -> ModuleType:
    return import_module(f"llm2enc.export.{FORMATS[format].module}")


def _dtypes(formats: Sequence[str], asked: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Storage types by format, in the order of FORMATS. ValueError for what is unknown to all, or cannot be told apart."""
    unknown = [format for format in formats if format not in FORMATS]
    if unknown:
        raise InputError(f"no format {', '.join(unknown)}; expected {', '.join(FORMATS)}")
    known = {format: FORMATS[format].dtypes for format in FORMATS if format in formats}
    chosen = {format: tuple(dtype for dtype in types if dtype in asked) for format, types in known.items()}
    lost = [dtype for dtype in asked if not any(dtype in types for types in known.values())]
    if lost:
        choice = "; ".join(f"{format}: {', '.join(types) or 'no choice'}" for format, types in known.items())
        raise InputError(f"{', '.join(lost)}: not a storage type of the formats asked for ({choice})")
    if len(chosen.get(DIRECTORY, ())) > 1:
        raise InputError(f"one directory holds one storage type, got {', '.join(chosen[DIRECTORY])}")
    return {format: own or (() if format == DIRECTORY else known[format][:1]) for format, own in chosen.items()}


def _check_out(source: Source, metadata: Metadata, formats: Sequence[str], out: Path | None) -> None:
    """ValueError if `out` would lose something, or hold files that belong to another encoder or to none."""
    if DIRECTORY in formats:
        if out is None:
            raise InputError(f"{source.folder} is such a directory already; say where to write another one with -o")
        if out.resolve() == source.folder.resolve():
            raise InputError(
                f"{out} is the directory to be exported, and would lose its other formats; choose another one with -o"
            )
        check_target(out)
    elif out is not None and (out / METADATA_FILE).is_file():
        theirs = read_metadata(out)
        # An adapter's weights are those of a run, whose encoder may stand there in another type; it looks by itself.
        if list(formats) != ["adapter"] and any(getattr(theirs, name) != getattr(metadata, name) for name in _SAME):
            raise InputError(f"{out} holds another encoder than {source.folder}; choose another directory")
    elif out is not None:
        parts = [format for format in formats if not FORMATS[format].alone]
        if parts:
            raise InputError(
                f"{', '.join(parts)}: of no use in {out} without the tokenizer and the settings of the directory; add "
                "--to sentence-transformers, or leave -o out"
            )
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file; give a directory")

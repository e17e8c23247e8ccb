"""What leaves the house: forms of an encoder that other programs open without code of ours.

    sentence-transformers   the directory itself, which transformers, vLLM, TEI and infinity open too
    onnx, openvino, gguf    further forms, written into the directory
    mteb                    how mteb runs the model
    adapter                 the LoRA chain of a run as one adapter for the model it started from

Each form is a module with SUMMARY, `unsupported_reason` and `write`. A form that an encoder cannot have is refused with
the reason before anything is written.
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
class Form:
    """A form by the name that the command line gives it."""

    module: str
    """In this package; empty for the directory itself."""
    dtypes: tuple[str, ...] = ()
    """Storage types it is written in, the default first; empty where there is no choice."""
    alone: bool = False
    """Whether it is of use without the directory around it."""


FORMS = {
    DIRECTORY: Form("", DTYPES),  # `Encoder.save` writes it
    "onnx": Form("onnx", ("float32", "float16")),
    "openvino": Form("openvino", ("float32", "float16")),
    "gguf": Form("gguf", ("float16", "float32", "q8_0"), alone=True),
    "adapter": Form("adapter", alone=True),
    "mteb": Form("mteb"),  # the last to be written: it lists the others
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
    """What whoever opens these forms should know, beyond the card."""


def export(
    source: Path,
    forms: Sequence[str],
    out: Path | None = None,
    dtypes: Sequence[str] = (),
    repo: str | None = None,
) -> Exported:
    """Write `forms` of an exported directory or a run, into the directory itself or into `out`.

    forms    names of FORMS
    out      where to: a new directory if DIRECTORY is among the forms, otherwise another one of this very encoder; forms
             that stand alone may go anywhere
    dtypes   storage types; where none is one of a form's own, its default, and for DIRECTORY the type of the weights
    repo     USER/NAME on the hub, for what names the model there
    raises   CannotExport with every reason, ValueError for unusable arguments; nothing is written then. A package that is
             missing (ValueError) or a form that turns out to give other vectors (CannotExport) shows on the way only:
             forms written before it stay
    """

    chosen = _dtypes(forms, dtypes)
    forms = list(chosen)
    found = Source.of(source)
    metadata = read_metadata(found.folder)
    _check_out(found, metadata, forms, out)
    encoder = Encoder.load(found.folder)
    reasons = [f"{form}: {why}" for form in forms if (why := _refusal(form, encoder, metadata, found))]
    if reasons:
        raise CannotExport("; ".join(reasons))
    files: list[Path] = []
    notes: list[str] = []
    folder = found.folder
    if out is not None:
        folder = out
        if DIRECTORY in forms:
            files += _rewrite(encoder, metadata, folder, chosen[DIRECTORY])
            metadata, encoder = read_metadata(folder), Encoder.load(folder)
    for form in forms:
        if form == "adapter":
            files += _module(form).write(found.run, folder)
        elif form != DIRECTORY:
            keywords: dict[str, Any] = {"dtypes": chosen[form]} if chosen[form] else {}
            keywords |= {"name": repo} if form == "mteb" else {}
            files += _module(form).write(encoder, folder, metadata, **keywords)
            notes += _module(form).notes(encoder, metadata) if form == "gguf" else []
    return Exported(files, notes)


def summaries() -> dict[str, str]:
    """One line on each form."""
    return {name: SUMMARY if name == DIRECTORY else _module(name).SUMMARY for name in FORMS}


def why_not(source: Source) -> dict[str, str]:
    """Why a source cannot have a form, by form; empty where it can."""

    encoder, metadata = Encoder.load(source.folder), read_metadata(source.folder)
    return {form: _refusal(form, encoder, metadata, source) for form in FORMS}


def _refusal(form: str, encoder: Encoder, metadata: Metadata, source: Source) -> str:
    if form == DIRECTORY:
        return ""
    if form != "adapter":
        return _module(form).unsupported_reason(encoder, metadata)
    if source.run is None:
        return "an adapter is made of the stages of a run; give the run's folder, as `llm2enc convert` left it"
    return _module(form).unsupported_reason(source.run)


def _module(form: str) -> ModuleType:
    return import_module(f"llm2enc.export.{FORMS[form].module}")


def _dtypes(forms: Sequence[str], asked: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Storage types by form, in the order of FORMS. ValueError for what is unknown to all, or cannot be told apart."""
    unknown = [form for form in forms if form not in FORMS]
    if unknown:
        raise InputError(f"no form {', '.join(unknown)}; expected {', '.join(FORMS)}")
    known = {form: FORMS[form].dtypes for form in FORMS if form in forms}
    chosen = {form: tuple(dtype for dtype in types if dtype in asked) for form, types in known.items()}
    lost = [dtype for dtype in asked if not any(dtype in types for types in known.values())]
    if lost:
        choice = "; ".join(f"{form}: {', '.join(types) or 'no choice'}" for form, types in known.items())
        raise InputError(f"{', '.join(lost)}: not a storage type of the forms asked for ({choice})")
    if len(chosen.get(DIRECTORY, ())) > 1:
        raise InputError(f"one directory holds one storage type, got {', '.join(chosen[DIRECTORY])}")
    return {form: own or (() if form == DIRECTORY else known[form][:1]) for form, own in chosen.items()}


def _check_out(source: Source, metadata: Metadata, forms: Sequence[str], out: Path | None) -> None:
    """ValueError if `out` would lose something, or hold files that belong to another encoder or to none."""
    if DIRECTORY in forms:
        if out is None:
            raise InputError(f"{source.folder} is such a directory already; say where to write another one with -o")
        if out.resolve() == source.folder.resolve():
            raise InputError(
                f"{out} is the directory to be exported, and would lose its other forms; choose another one with -o"
            )
        check_target(out)
    elif out is not None and (out / METADATA_FILE).is_file():
        theirs = read_metadata(out)
        # An adapter's weights are those of a run, whose encoder may stand there in another type; it looks by itself.
        if list(forms) != ["adapter"] and any(getattr(theirs, name) != getattr(metadata, name) for name in _SAME):
            raise InputError(f"{out} holds another encoder than {source.folder}; choose another directory")
    elif out is not None:
        parts = [form for form in forms if not FORMS[form].alone]
        if parts:
            raise InputError(
                f"{', '.join(parts)}: of no use in {out} without the tokenizer and the settings of the directory; add "
                "--to sentence-transformers, or leave -o out"
            )
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file; give a directory")


def _rewrite(encoder: Encoder, metadata: Metadata, folder: Path, dtypes: tuple[str, ...]) -> list[Path]:
    """The directory once more, in another storage type if one is given."""

    recipe = load_recipe(metadata.recipe) if metadata.recipe else None
    dtype = dtypes[0] if dtypes else None
    encoder.save(folder, recipe=recipe, history=metadata.history, merge=metadata.merge, dtype=dtype)
    return sorted(path for path in folder.rglob("*") if path.is_file())

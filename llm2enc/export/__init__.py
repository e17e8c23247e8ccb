"""What leaves the house: forms of an encoder that other programs open without code of ours.

    sentence-transformers   the directory itself, which transformers, vLLM, TEI and infinity open too
    onnx, openvino, gguf    further forms, written into the directory
    mteb                    how mteb runs the model
    adapter                 the LoRA chain of a run as one adapter for the model it started from

Each form is a module with SUMMARY, `refusal` and `write`. A form that an encoder can't have is refused with the reason
before anything is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from llm2enc.export.files import FACTS, read_facts

if TYPE_CHECKING:
    from llm2enc.encoder import Encoder

DIRECTORY = "sentence-transformers"


class CannotExport(ValueError):
    """An encoder that a form can't hold; the message says why, and what can be done."""


@dataclass(frozen=True)
class Form:
    """A form by the name that the command line gives it."""

    module: str
    dtypes: tuple[str, ...] = ()
    """Storage types it is written in, the default first; empty where there is no choice."""


FORMS = {
    DIRECTORY: Form("sentence_transformers", ("float32", "bfloat16", "float16")),
    "onnx": Form("onnx", ("float32", "float16")),
    "openvino": Form("openvino", ("float32", "float16")),
    "gguf": Form("gguf", ("float16", "float32", "q8_0")),
    "mteb": Form("mteb"),
    "adapter": Form("adapter"),
}


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
        folder = path if (path / FACTS).is_file() else path / "model"
        if not (folder / FACTS).is_file():
            raise ValueError(
                f"{path} is neither a directory written by llm2enc nor a run (no {FACTS}, no model/{FACTS}); make one "
                "with `llm2enc convert NAME -o DIR`"
            )
        above = folder.absolute().parent
        return Source(folder, above if (above / "recipe.yaml").is_file() else None)


def export(
    source: Path,
    forms: Sequence[str],
    out: Path | None = None,
    dtypes: Sequence[str] = (),
    repo: str | None = None,
) -> list[Path]:
    """Write `forms` of an exported directory or a run, into the directory itself or into `out`.

    forms    names of FORMS
    out      where to; it gets what is asked for, so a whole directory only if DIRECTORY is among the forms
    dtypes   storage types; without any, each form's default, and for DIRECTORY the type that the weights have
    repo     USER/NAME on the hub, for what names the model there
    returns  the files written
    raises   CannotExport with every reason, ValueError for unusable arguments; nothing is written then
    """
    from llm2enc.encoder import Encoder

    chosen = _dtypes(forms, dtypes)
    found = Source.of(source)
    if DIRECTORY in forms and out is None:
        raise ValueError(f"{found.folder} is such a directory already; say where to write another one with -o")
    facts = read_facts(found.folder)
    encoder = Encoder.load(found.folder)
    reasons = [f"{form}: {why}" for form in forms if (why := _refusal(form, encoder, facts, found))]
    if reasons:
        raise CannotExport("; ".join(reasons))
    written: list[Path] = []
    folder = found.folder
    if out is not None:
        folder = out
        if DIRECTORY in forms:
            written += _rewrite(encoder, facts, folder, chosen[DIRECTORY] if dtypes else ())
            facts, encoder = read_facts(folder), Encoder.load(folder)
    for form in forms:
        if form == "adapter":
            written += _module(form).write(found.run, folder)
        elif form != DIRECTORY:
            keywords: dict[str, Any] = {"dtypes": chosen[form]} if chosen[form] else {}
            keywords |= {"name": repo} if form == "mteb" else {}
            written += _module(form).write(encoder, folder, facts, **keywords)
    return written


def summaries() -> dict[str, str]:
    """One line on each form."""
    return {name: _module(name).SUMMARY for name in FORMS}


def notes(source: Path, forms: Sequence[str]) -> list[str]:
    """What whoever opens these forms should know, beyond the card."""
    from llm2enc.encoder import Encoder

    if "gguf" not in forms:
        return []
    folder = Source.of(source).folder
    return _module("gguf").notes(Encoder.load(folder), read_facts(folder))


def why_not(source: Source) -> dict[str, str]:
    """Why a source can't have a form, by form; empty where it can."""
    from llm2enc.encoder import Encoder

    encoder, facts = Encoder.load(source.folder), read_facts(source.folder)
    return {form: _refusal(form, encoder, facts, source) for form in FORMS}


def _refusal(form: str, encoder: "Encoder", facts: dict[str, Any], source: Source) -> str:
    if form == DIRECTORY:
        return ""
    if form != "adapter":
        return _module(form).refusal(encoder, facts)
    if source.run is None:
        return "an adapter is made of the stages of a run; give the run's folder, as `llm2enc convert` left it"
    return _module(form).refusal(source.run)


def _module(form: str) -> ModuleType:
    return import_module(f"llm2enc.export.{FORMS[form].module}")


def _dtypes(forms: Sequence[str], asked: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Storage types by form. ValueError for an unknown form, or a type that none of the forms knows."""
    unknown = [form for form in forms if form not in FORMS]
    if unknown:
        raise ValueError(f"no form {', '.join(unknown)}; expected {', '.join(FORMS)}")
    chosen = {form: tuple(d for d in FORMS[form].dtypes if d in asked) or FORMS[form].dtypes[:1] for form in forms}
    lost = [dtype for dtype in asked if not any(dtype in FORMS[form].dtypes for form in forms)]
    if lost:
        known = "; ".join(f"{form}: {', '.join(FORMS[form].dtypes) or 'no choice'}" for form in forms)
        raise ValueError(f"{', '.join(lost)}: not a storage type of the forms asked for ({known})")
    return chosen


def _rewrite(encoder: "Encoder", facts: dict[str, Any], folder: Path, dtypes: tuple[str, ...]) -> list[Path]:
    """The directory once more, in another storage type if one is given."""
    from llm2enc.export.sentence_transformers import write
    from llm2enc.recipe import load_recipe

    if len(dtypes) > 1:
        raise ValueError(f"one directory holds one storage type, got {', '.join(dtypes)}")
    recipe = load_recipe(facts["recipe"]) if facts["recipe"] else None
    write(encoder, folder, recipe=recipe, history=facts["history"], dtype=dtypes[0] if dtypes else None)
    return sorted(path for path in folder.rglob("*") if path.is_file())

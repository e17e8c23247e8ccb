"""Does a directory of llm2enc give the same vectors in every program that opens it?

It is opened again by llm2enc, whose vectors are the measure, and by every engine that is installed, each in a process of
its own (engines/). All read the same texts with the same prompts, alone and in batches padded right and left. Engines are
compared in float32, whatever type the weights are stored in: two roundings to 16 bits would hide the difference that is
looked for; files of fewer bits get the room of theirs (TOLERANCE).
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from llm2enc.artifact import METADATA_FILE, Metadata, digests, read_metadata
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.verification import files
from llm2enc.verification.diagnosis import Comparison, Reference, compare, remedy, where
from llm2enc.verification.probe_texts import fewer, runs, texts
from llm2enc.verification.report import TOLERANCE, Parity, Report, Verdict
from llm2enc.verification.subprocesses import Answer, ask

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """A program that opens the directory or one of its exported files."""

    script: str
    needs: tuple[str, ...]  # packages
    install: str
    files: str = ""  # which it opens, as a glob; empty: it opens the directory itself
    target: str = ""  # of `llm2enc export`
    modes: tuple[str, ...] = ("alone", "right", "left")


OTHERS = {
    "sentence-transformers": Engine(
        "in_sentence_transformers", ("sentence_transformers",), "'llm2enc[serve]'", modes=("alone", "batch", "left")
    ),
    "transformers": Engine("in_transformers", ("transformers",), "transformers"),
    "onnx": Engine("in_onnx", ("onnxruntime", "tokenizers"), "onnxruntime", "onnx/*.onnx", "onnx"),
    "openvino": Engine("in_openvino", ("openvino", "tokenizers"), "openvino", "openvino/*.xml", "openvino"),
    "llama.cpp": Engine("in_llama_cpp", ("llama_cpp",), "llama-cpp-python", "gguf/*.gguf", "gguf", ("alone", "batch")),
}
ENGINES = ("files", "llm2enc", *OTHERS, "rules")
AT_THE_END_OF_A_CONVERSION = ("llm2enc", "sentence-transformers", "transformers")


def verify(
    folder: str | Path, engines: Sequence[str] | None = None, encoder: Encoder | None = None, seconds: float = 900
) -> Report:
    """Rows for the directory `folder`, which llm2enc wrote.

    engines  some of ENGINES; all of them by default
    encoder  the one it was written from a moment ago: it is compared as well, and large models read fewer texts, which the
             notes count
    seconds  the longest an engine may take for one file
    raises   ValueError for another directory, or an engine that is none
    """
    folder, asked = Path(folder), engines is not None
    if "contracts" in (engines or ()):
        _log.warning("the engine `contracts` is called `rules` now; the old name goes with release 0.2")
    engines = engines and ["rules" if name == "contracts" else name for name in engines]
    unknown = [name for name in engines or () if name not in ENGINES]
    if unknown:
        raise InputError(f"no engine named {', '.join(unknown)}; choose of {', '.join(ENGINES)}")
    if not (folder / METADATA_FILE).is_file():
        raise InputError(f"{folder} has no {METADATA_FILE}: verify_third_party looks at other encoders")
    metadata = read_metadata(folder)
    wanted = [name for name in ENGINES if engines is None or name in engines]
    rows = [files.check(folder, metadata)] if "files" in wanted else []
    started = time.perf_counter()
    try:
        read = digests(folder)  # before the files are opened: a later change is then seen
        reopened = Encoder.load(folder, full_proof=encoder is None)  # proven when it was written, a moment ago
    except Exception as error:  # whatever was done to the directory: the report says that it cannot be opened
        text = " ".join(str(error).split())
        again = "write the directory again with the encoder it came from"
        rows.append(Parity("llm2enc", None, f"does not open it: {text}", verdict="failed", remedy=again))
        return Report(str(folder), rows, asked)
    every = given = texts(reopened.max_tokens)
    if encoder is not None:
        given = fewer(every, sum(parameter.numel() for parameter in reopened.parameters()))
    cover = "" if given == every else f"it read {len(given)} of {len(every)} texts: `llm2enc verify {folder}` reads all"
    if "llm2enc" in wanted:
        row = _own(reopened, metadata, encoder, given)
        rows.append(replace(row, seconds=time.perf_counter() - started))
    if any(name in OTHERS for name in wanted):
        measure = _Measure(folder, metadata, reopened, given, seconds)
        rows += [row for name in wanted if name in OTHERS for row in measure.rows(name)]
    if cover:
        rows = [
            row if row.cosine is None else replace(row, note="; ".join(filter(None, (row.note, cover)))) for row in rows
        ]
    if "rules" in wanted:
        try:
            rows += engine_rules(folder)
        except ValueError as error:  # a file that is no JSON; what was measured is told all the same
            again = "put the file back, or write the directory again"
            rows.append(Parity("rules", None, str(error), verdict="failed", remedy=again))
    return Report(str(folder), rows, asked, None if encoder else reopened.backbone.proof, read)


def engine_rules(folder: Path) -> list[Parity]:
    """What engines that are not run here make of the directory, by what their sources read of it: one row each."""
    from llm2enc.verification.rules import check, verdicts

    words: dict[str, Verdict] = {"agrees": "should agree", "differs": "should differ"}
    results, rows = check(folder), []
    for engine, worst in verdicts(results).items():
        own = [found for found in results if found.engine == engine and found.verdict == worst]
        note = "; ".join(dict.fromkeys(found.message.rstrip(".") for found in own))
        hint = "; ".join(dict.fromkeys(found.remedy.rstrip(".") for found in own if found.remedy))
        rows.append(Parity(engine, None, note, verdict=words.get(worst, worst), remedy=hint, version=own[0].version))
    return rows


# ------------------------------------------------------------------------------------------------------------- llm2enc


def _own(reopened: Encoder, metadata: Metadata, encoder: Encoder | None, texts: dict[str, str]) -> Parity:
    """The reopened encoder against its golden vectors, its fingerprint, and the encoder it was written from."""
    dtype = str(next(reopened.parameters()).dtype).removeprefix("torch.")
    golden = metadata.golden
    pairs = [(np.asarray(golden.vectors, dtype=np.float32), reopened.encode(golden.texts))]
    if encoder is not None:
        given = list(texts.values())
        ours = encoder.encode(given)
        pairs += [(ours, reopened.encode(given)), (ours, np.stack([reopened.encode(text) for text in given]))]
    units = [(_unit(one), _unit(other)) for one, other in pairs]
    cosine = float(np.min([(one * other).sum(1).min() for one, other in units]))  # NaN stays
    difference = float(np.max([np.abs(one - other).max() for one, other in units]))
    faults = []
    if reopened.weights_fingerprint() != metadata.fingerprint:
        faults.append("the weights are not those that were written (fingerprint)")
    if not cosine >= 1 - TOLERANCE[dtype]:
        faults.append("golden vectors of llm2enc.json, or the vectors it was written from, are not reached")
    if not faults:
        return Parity("llm2enc", cosine, dtype=dtype, difference=difference)
    again = "model.safetensors or config.json were changed: take them from where the directory was written"
    return Parity("llm2enc", cosine, "; ".join(faults), dtype, "differs", again, difference)


# -------------------------------------------------------------------------------------------------------------- others


class _Measure:
    """Asks engines, one after another, and compares with the reopened encoder in float32."""

    def __init__(self, folder: Path, metadata: Metadata, encoder: Encoder, texts: dict[str, str], seconds: float):
        self.folder, self.metadata, self.seconds = folder, metadata, seconds
        encoder.float()
        # Two prompts that read a text alike need one run; that their strings are right is seen in the files.
        inputs = {encoder.cache_key(prompt_name=name): name for name in reversed(metadata.prompts)}
        self.prompts = list(dict.fromkeys(inputs.values()))[::-1]
        self.reference = Reference.of(encoder, texts, self.prompts) if metadata.native else None

    def rows(self, name: str) -> list[Parity]:
        """One row for each file that the engine opens."""
        engine = OTHERS[name]
        found = sorted(self.folder.glob(engine.files)) if engine.files else [None]
        if not found:
            what = engine.files.replace("*", "model")
            hint = f"llm2enc export DIR --to {engine.target}"
            return [Parity(name, None, f"no {what}", verdict="missing", remedy=hint)]
        if not all(find_spec(package) for package in engine.needs):
            hint = f"pip install {engine.install}"
            return [Parity(name, None, "not installed here", verdict="not installed", remedy=hint)]
        if self.reference is None:
            hint = "open it with llm2enc, or change the recipe's input as the reason says"
            return [Parity(name, None, self.metadata.reason, verdict="not comparable", remedy=hint)]
        return [self._row(name, engine, file, self.reference) for file in found]

    def _row(self, name: str, engine: Engine, file: Path | None, reference: Reference) -> Parity:
        started = time.perf_counter()
        given = list(reference.texts.values())
        planned = runs(self.prompts, engine.modes, list(reference.texts), reference.encoder.max_tokens)
        trusted = self.metadata.needs_code and files.has_our_code(self.folder)
        answer = ask(engine.script, self.folder, file, given, planned, self.seconds, trusted)
        label, dtype = (str(file.relative_to(self.folder)), _dtype(file)) if file else ("", "float32")
        took = time.perf_counter() - started
        row = Parity(name, None, dtype=dtype, form=label, version=answer.version, seconds=round(took, 1))
        if answer.failure:
            hint = f"write {label} again: llm2enc export DIR --to {engine.target}" if file else "see the message"
            return replace(row, verdict="failed", note=answer.failure, remedy=hint)
        found = compare(reference, answer, planned, dtype)
        row = replace(row, cosine=found.cosine, difference=found.difference)
        notes = _notes(found, answer)
        if answer.missing:
            hint = "put the prompts of llm2enc.json into config_sentence_transformers.json"
            note = f"it knows no prompt named {', '.join(answer.missing)}"
            return replace(row, verdict="differs", note="; ".join([note, *notes]), remedy=hint)
        if found.agrees:
            return replace(row, note="; ".join(notes))
        place = where(found, planned, answer)
        hint = remedy(found, answer, planned, name, label)
        return replace(row, verdict="differs", note="; ".join([place, *notes]), remedy=hint)


def _notes(found: Comparison, answer: Answer) -> list[str]:
    notes = []
    if found.dtype != "float32":
        notes.append(f"stored in {found.dtype}: {1 - TOLERANCE[found.dtype]:g} is enough")
    if found.shifted:
        notes.append("pad on the right only: positions are absolute, so padding in front of a text moves its vector")
    if found.left_out:
        notes.append(f"without {', '.join(found.left_out)}")
    return notes + answer.notes


def _dtype(file: Path) -> str:
    """What a file's weights are stored in, by its name."""
    marks = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "q8": "q8_0", "int8": "int8"}
    return next((dtype for mark, dtype in marks.items() if mark in file.stem.lower()), "float32")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

"""What was found: one row per engine and file, and where it is kept."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm2enc.artifact import ProofRecord, read_metadata, with_engines, write_metadata
from llm2enc.model import Proof
from llm2enc.storage import replace_text

Verdict = Literal[
    "agrees", "differs", "not comparable", "not installed", "missing", "failed",  # of what was run here
    "should agree", "should differ", "unsupported", "unknown",  # READ
]  # fmt: skip

# Of what was not run but read of the files: the engine rules.
READ: tuple[Verdict, ...] = ("should agree", "should differ", "unsupported", "unknown")

# Cosine to 1, by what the vectors were computed in or the weights stored in: rounding, of alone against batch too.
TOLERANCE = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 2e-2, "q8_0": 1e-2, "int8": 5e-2}


@dataclass(frozen=True)
class Parity:
    """How far a program's vectors of a directory are from ours."""

    engine: str
    cosine: float | None
    """Smallest cosine similarity over texts, prompts, alone and in batches; None if it could not be compared."""
    note: str = ""
    dtype: str = "float32"
    """What the vectors were computed in, which says how much rounding is expected."""
    verdict: Verdict = "agrees"
    remedy: str = ""
    """What to do, where it does not agree."""
    difference: float | None = None
    """Largest absolute difference of two coordinates, of vectors of length 1."""
    form: str = ""
    """The file that was opened; empty for the directory itself."""
    version: str = ""
    seconds: float = 0.0

    @property
    def agrees(self) -> bool:
        """Whether nothing speaks against it: what cannot be compared here does not."""
        return self.verdict not in ("differs", "failed")


@dataclass(frozen=True)
class Report:
    """Everything that was found about one directory."""

    folder: str
    rows: list[Parity]
    asked: bool = False
    """Whether the engines were named by the caller, who then wants none of them left out."""
    proof: Proof | None = None
    """The full proof that ran on the directory, if one did."""
    digests: dict[str, str] | None = None
    """Of the files that it ran on."""

    @property
    def agrees(self) -> bool:
        left_out = any(row.verdict in ("missing", "not installed") for row in self.rows)
        return all(row.agrees for row in self.rows) and not (self.asked and left_out)

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "agrees": self.agrees,
            "rows": [dataclasses.asdict(row) | {"agrees": row.agrees} for row in self.rows],
        }


def write_card(folder: Path, report: Report) -> None:
    """Put the table into README.md and the rows into llm2enc.json of the directory; each file is replaced whole.

    Where everything agrees llm2enc.json takes the proof too, so that the next `Encoder.load` need not run it again after a
    new release of torch or a change of a file.

    raises  OSError if the directory cannot be written
    """
    changes: dict[str, Any] = {"verification": {k: value for k, value in report.to_json().items() if k != "folder"}}
    if report.proof and report.agrees:
        changes |= {"proof": ProofRecord(**dataclasses.asdict(report.proof)), "files": report.digests}
    metadata = read_metadata(folder).model_copy(update=changes)
    card = folder / "README.md"
    rows = [
        {
            "engine": " ".join(word for word in (row.engine, row.version, row.form) if word),
            "cosine": row.cosine,
            "difference": row.difference,
            "verdict": f"{row.verdict} (read, not run)" if row.verdict in READ else row.verdict,
            "remedy": row.remedy,
        }
        for row in report.rows
        if row.verdict not in ("missing", "not installed")  # says something of this machine, not of the model
    ]
    text = with_engines(card.read_text(encoding="utf-8") if card.is_file() else "", rows)
    replace_text(card, text)
    write_metadata(folder, metadata)

"""A script of engines/ in a fresh process: it cannot see llm2enc's patches, nor files of the folder one stands in."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llm2enc.storage import alive
from llm2enc.verification.probe_texts import Run

_PREFIX = "llm2enc-verify-"
_SCRIPTS = Path(__file__).parent / "engines"


@dataclass(frozen=True)
class Answer:
    """What an engine gave for a job; `failure` says why it gave nothing."""

    failure: str = ""
    version: str = ""
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Prompts that the directory does not offer to it."""
    normalizes: bool = True
    ids: dict[str, list[list[int] | None]] = field(default_factory=dict)
    """Per prompt, what it reads of each text; None for a text it cannot take."""
    vectors: dict[int, np.ndarray] = field(default_factory=dict)
    """(N, D) by the number of the run, in the run's own order of texts; NaN for a text it cannot take."""


def ask(
    script: str,
    folder: Path,
    file: Path | None,
    texts: list[str],
    runs: list[Run],
    seconds: float,
    trusted: bool = False,
) -> Answer:
    """The answer of engines/`script`.py, killed after `seconds`.

    trusted  it may run code of the directory
    """
    job = {
        "folder": str(folder.absolute()),
        "file": str(file.absolute()) if file else "",
        "texts": texts,
        "trusted": trusted,
        "runs": [{"prompt": run.prompt, "side": run.side, "batches": run.batches} for run in runs],
    }
    _sweep()
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as name:
        here = Path(name)
        (here / "job.json").write_text(json.dumps(job), encoding="utf-8")
        failure = _run(_SCRIPTS / f"{script}.py", here, seconds)
        if failure:
            return Answer(failure=failure)
        with np.load(here / "answer.npz") as found:
            about = json.loads(str(found["about"]))
            arrays = {number: found[f"vectors{number}"] for number in range(len(runs)) if f"vectors{number}" in found}
    return Answer(**about, vectors=arrays)


def _sweep() -> None:
    """Remove what killed processes left in the folder of temporary files."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        process = path.name.removeprefix(_PREFIX).partition("-")[0]
        if process.isdigit() and not alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _run(script: Path, here: Path, seconds: float) -> str:
    """Run a script on job.json of a folder; why it left no answer there, or nothing."""
    command = [sys.executable, str(script), "job.json", "answer.npz"]
    try:
        # Run by its path: sys.path begins with the script's folder, not with the one we stand in.
        # Without a terminal to ask at: programs that want to know whether they may run code stop instead.
        done = subprocess.run(command, cwd=here, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"gave no answer within {seconds:g} seconds"
    code = done.returncode
    if not code and (here / "answer.npz").is_file():
        return ""
    lines = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"{how}: {' / '.join(lines[-2:])}" if lines else how

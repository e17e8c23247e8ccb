"""One saved directory in the releases of other programs that people still run, each in an environment of its own.

    python -m benchmarks.stacks DIR -o FOLDER                     builds what is missing, then opens DIR in every stack
    python -m benchmarks.stacks DIR -o FOLDER --only 5.2.3        stacks whose name contains this
    python -m benchmarks.stacks DIR -o FOLDER --markdown FILE     the table, into a file too

DIR is what `llm2enc` wrote: its llm2enc.json holds golden vectors, and every program's vectors are held against them. An
environment costs about a minute and 500 MB: torch is shared with the interpreter that runs this.
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from benchmarks.environments import TORCH

SAME = 1e-4  # of cosine to 1: golden vectors are rounded to six digits
SECONDS = 600  # that a program may take; a server's threads may never end
_OPENING = Path(__file__).with_name("opening.py")


@dataclass(frozen=True)
class Stack:
    """Releases that are installed together, and the programs of them that open the directory."""

    name: str
    requirements: tuple[str, ...]
    programs: tuple[str, ...] = ("sentence_transformers", "transformers")


def _sentence_transformers(release: str, transformers: str) -> Stack:
    return Stack(
        f"sentence-transformers {release}, transformers {transformers}",
        (f"sentence-transformers=={release}", f"transformers=={transformers}"),
    )


STACKS = (
    _sentence_transformers("3.4.1", "4.48.3"),
    _sentence_transformers("5.1.2", "4.57.6"),
    _sentence_transformers("5.2.3", "4.57.6"),
    # 5.4 is the first to know the keys that stop older ones, and allows transformers from 4.41 on.
    _sentence_transformers("5.4.1", "4.57.6"),
    _sentence_transformers("5.5.1", "4.57.6"),
    _sentence_transformers("5.5.1", "5.1.0"),
    _sentence_transformers("5.5.1", "5.4.0"),
    Stack("sentence-transformers 6.2.0, newest transformers", ("sentence-transformers==6.2.0", "transformers")),
    # What it asks for itself: sentence-transformers 3 and numpy 1. BetterTransformer, which it imports, left optimum 2.
    Stack("infinity_emb 0.0.78", ("infinity_emb[torch,optimum]==0.0.78",), ("infinity", "transformers")),
)


@dataclass(frozen=True)
class Outcome:
    """What one program of a stack made of the directory."""

    stack: str
    program: str
    versions: dict[str, str]
    error: str = ""
    alone: float | None = None
    """Smallest cosine to a golden vector, each text on its own."""
    batch: float | None = None
    """The same for all texts in one batch, where some are padded."""
    warnings: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        return all(cosine is not None and cosine >= 1 - SAME for cosine in (self.alone, self.batch))

    @property
    def verdict(self) -> str:
        """One of: stops, same vectors, other vectors, other vectors with a warning."""
        if self.error:
            return "stops"
        if self.same:
            return "same vectors"
        return "other vectors, with a warning" if self.warnings else "OTHER VECTORS, SILENTLY"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True, help="environments become folders in this one")
    parser.add_argument("--only", default="", help="stacks whose name contains this")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    stacks = [stack for stack in STACKS if arguments.only in stack.name]
    if not stacks:
        parser.error(f"--only {arguments.only!r} names none of: {'; '.join(stack.name for stack in STACKS)}")
    if not (arguments.directory / "llm2enc.json").is_file():
        parser.error(f"{arguments.directory} has no llm2enc.json, so there is nothing to compare with; export it first")
    pooling = json.loads((arguments.directory / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    if not pooling["include_prompt"]:
        parser.error(f"{arguments.directory} leaves prompts out of the pool, which opening.py does not do by hand")
    outcomes = []
    for stack in stacks:
        python = build(stack, arguments.out)
        for program in stack.programs:
            outcomes.append(look(stack, program, python, arguments.directory))
            print(f"{stack.name}: {program}: {outcomes[-1].verdict}", flush=True)
    print(f"\n{table(outcomes)}")
    if arguments.markdown:
        arguments.markdown.write_text(table(outcomes) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ building


def build(stack: Stack, folder: Path) -> Path:
    """The interpreter of the stack's environment in `folder`, built anew unless it is there with the same contents."""
    target = folder.absolute() / stack.name.replace(", ", "+").replace(" ", "-")
    python, receipt = target / "bin" / "python", target / "installed.txt"
    contents = "\n".join(stack.requirements) + "\n"
    if receipt.is_file() and receipt.read_text(encoding="utf-8") == contents:
        return python
    if target.exists() and not (target / "pyvenv.cfg").is_file():
        raise ValueError(f"{target} is there and is no Python environment, so it is not replaced; give another folder")
    print(f"building {stack.name} in {target}", flush=True)
    venv.create(target, clear=True, with_pip=True)
    requirements = stack.requirements
    shared = share_torch(folder.absolute() / "shared-torch")
    if shared is None:
        requirements = (TORCH, *requirements)
    else:
        site = next(target.glob("lib/python*/site-packages"))
        (site / "shared-torch.pth").write_text(f"{shared}\n", encoding="utf-8")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--quiet", *requirements], check=True)
    receipt.write_text(contents, encoding="utf-8")
    return python


def share_torch(folder: Path) -> Path | None:
    """A folder of links to this interpreter's torch and what it needs; None if it has no such torch.

    The folder lies outside every environment: pip never uninstalls what it finds there, it installs its own beside it.
    """
    name, _, release = TORCH.partition("==")
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    if found.version.partition("+")[0] != release:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    for package in _closure(found, set()):
        tops = {path.parts[0] for path in package.files or [] if len(path.parts) > 1 or path.suffix == ".py"}
        for top in sorted(tops - {"..", "__pycache__"}):
            link = folder / top
            if not link.is_symlink():
                link.symlink_to(package.locate_file(top))
    return folder


def _closure(package: Distribution, seen: set[str]) -> Iterator[Distribution]:
    """`package` and everything it requires on this machine."""
    from packaging.requirements import Requirement

    seen.add(package.name.lower())
    yield package
    for line in package.requires or []:
        requirement = Requirement(line)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and requirement.name.lower() not in seen:
            yield from _closure(distribution(requirement.name), seen)


# ------------------------------------------------------------------------------------------------------------- looking


def look(stack: Stack, program: str, python: Path, directory: Path) -> Outcome:
    """Open `directory` by `program` in a process of the stack's interpreter."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "DO_NOT_TRACK": "1"}
    command = [str(python), str(_OPENING), program, str(directory.absolute())]
    try:
        process = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            cwd=directory,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Outcome(stack.name, program, {program: ""}, f"no answer within {SECONDS} seconds")
    lines = [line for line in process.stdout.splitlines() if line.startswith("FOUND ")]
    if not lines:
        raise ValueError(f"{stack.name}: {program} ended with {process.returncode} and no answer:\n{process.stderr}")
    found = json.loads(lines[-1].removeprefix("FOUND "))
    return Outcome(stack.name, program, **{**found, "warnings": tuple(found.get("warnings", ()))})


def table(outcomes: list[Outcome]) -> str:
    """Markdown, a row per program of a stack; stacks that share a program's release and outcome share the row."""
    rows = ["| program | with | outcome | alone | in a batch | message |", "| --- | --- | --- | --- | --- | --- |"]
    for outcome in outcomes:
        versions = dict(outcome.versions)
        own = versions.pop(outcome.program)
        others = ", ".join(f"{name.replace('_', '-')} {version}" for name, version in versions.items())
        cosines = [f"{value:.4f}" if value is not None else "" for value in (outcome.alone, outcome.batch)]
        message = outcome.error or " ".join(outcome.warnings)
        program = f"{outcome.program.replace('_', '-')} {own}"
        if outcome.program == "transformers":
            program, others = f"transformers {own} (AutoModel)", ""
        cells = [program, others, outcome.verdict, *cosines, f"`{_short(message)}`" if message else ""]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(dict.fromkeys(rows))


def _short(message: str, limit: int = 260) -> str:
    flat = " ".join(message.split()).replace("|", "/").replace("`", "'")
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."


if __name__ == "__main__":
    sys.exit(main())

"""What it costs to open a saved encoder, beside sentence-transformers on the same directory.

python -m benchmarks.loading DIR ...                 CPU seconds of each program and our ratio
python -m benchmarks.loading DIR ... --rounds 5      medians of so many rounds

Each opening is a fresh process, and the programs take turns. torch and transformers are imported beforehand. What one
program imports at its top the other imports when it loads, so the ratio is of `import and load`; `first vector` is that
and one text, which reads the weights. CPU seconds of one thread, which neighbours disturb least.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

OPEN = {
    "llm2enc": ("from llm2enc.encoding import Encoder", "Encoder.load(folder)"),
    "sentence-transformers": (
        "from sentence_transformers import SentenceTransformer",
        "SentenceTransformer(folder, device='cpu')",
    ),
}
SCRIPT = """
import json, sys, time
import torch, transformers
folder, seconds = sys.argv[1], {{}}
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
def lap(name, since):
    seconds[name] = time.process_time() - since
start = time.process_time()
{imports}
lap("import", start)
encoder = {load}
lap("import and load", start)
encoder.encode(["The river runs through the old town."])
lap("first vector", start)
print(json.dumps(seconds))
"""
STEPS = ("import", "import and load", "first vector")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="directories of encoders")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(
        "| directory | MiB | step | llm2enc | sentence-transformers | ratio |\n| --- | ---: | --- | ---: | ---: | ---: |"
    )
    for folder in arguments.folders:
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**20
        for step, (ours, theirs) in measure(folder, arguments.rounds).items():
            ratio = f"{ours / theirs:.2f}" if step != "import" else ""
            print(f"| {folder.name} | {size:.0f} | {step} | {ours:.2f} | {theirs:.2f} | {ratio} |")


def measure(folder: Path, rounds: int) -> dict[str, tuple[float, ...]]:
    """For each of STEPS the median CPU seconds of each program."""
    found = [{name: opened(name, folder) for name in OPEN} for _ in range(rounds)]
    return {step: tuple(median(row[name][step] for row in found) for name in OPEN) for step in STEPS}


def opened(name: str, folder: Path) -> dict[str, float]:
    """CPU seconds of each of STEPS in a fresh process."""
    imports, load = OPEN[name]
    command = [sys.executable, "-c", SCRIPT.format(imports=imports, load=load), str(folder.absolute())]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()

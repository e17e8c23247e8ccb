"""Python environments of the tools that cannot share ours, each built with one command.

    python -m benchmarks.environments peers -o FOLDER    LLM2Vec, GritLM and Tevatron
    python -m benchmarks.environments st -o FOLDER       sentence-transformers

pip fetches everything, from wherever it is configured to. `interpreter` finds an environment again.
"""

import argparse
import subprocess
import venv
from pathlib import Path

# First and alone: what is installed after it then keeps this build, and no GPU libraries are fetched for a second one.
TORCH = "torch==2.13.0"

# LLM2Vec allows no transformers above 4.44.2, and peft 0.12 is the release of its time.
PEERS = ("transformers==4.44.2", "peft==0.12.0", "accelerate", "datasets", "evaluate", "scikit-learn", "numpy>=2")
# Without what they ask for: GritLM's mteb and wandb serve its evaluation and training only.
PEERS_ALONE = ("llm2vec==0.2.3", "gritlm==1.0.2", "tevatron==0.1.0", "gradcache==0.0.1")
ST = ("sentence-transformers==6.2.0", "transformers>=5")

# What pip installs after torch, step by step; and the options of each step.
STEPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "peers": (PEERS, ("--no-deps", *PEERS_ALONE)),
    "st": (ST,),
}
ENVIRONMENT_OF = {"llm2vec": "peers", "gritlm": "peers", "tevatron": "peers", "sentence_transformers": "st"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", choices=STEPS)
    parser.add_argument("-o", "--out", type=Path, required=True, help="the environment becomes a folder in this one")
    arguments = parser.parse_args()
    print(build(arguments.environment, arguments.out))


def build(environment: str, folder: Path) -> Path:
    """The interpreter of a new environment folder/environment; an environment that was there is replaced."""
    target = folder.absolute() / environment
    if target.exists() and not (target / "pyvenv.cfg").is_file():
        raise ValueError(f"{target} is there and is no Python environment, so it is not replaced; give another folder")
    venv.create(target, clear=True, with_pip=True)
    for step in ((TORCH,), *STEPS[environment]):
        subprocess.run([_python(target), "-m", "pip", "install", "--quiet", *step], check=True)
    _receipt(target).write_text(_contents(environment), encoding="utf-8")
    return _python(target)


def interpreter(tool: str, folder: Path) -> Path | None:
    """The interpreter that runs a tool, or None where its environment was not built, or not with today's versions."""
    if tool not in ENVIRONMENT_OF:
        raise ValueError(f"no tool {tool!r} has an environment of its own; give one of {', '.join(ENVIRONMENT_OF)}")
    environment = ENVIRONMENT_OF[tool]
    target = folder.absolute() / environment
    receipt = _receipt(target)
    # An interpreter alone proves nothing: pip may have been interrupted after it was there.
    if not receipt.is_file() or receipt.read_text(encoding="utf-8") != _contents(environment):
        return None
    return _python(target)


def _python(target: Path) -> Path:
    return target / "bin" / "python"


def _receipt(target: Path) -> Path:
    return target / "installed.txt"


def _contents(environment: str) -> str:
    return "\n".join(" ".join(step) for step in ((TORCH,), *STEPS[environment])) + "\n"


if __name__ == "__main__":
    main()

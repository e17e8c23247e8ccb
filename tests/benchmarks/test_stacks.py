"""The harness that opens a directory in other releases: a wrong direction is seen, and nothing foreign is overwritten."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.environments import TORCH
from benchmarks.stacks import Outcome, Stack, build, look, share_torch, table
from tests.support.builders import make_encoder

HERE = Stack("what runs these tests", ())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    make_encoder(pooling="last").save(folder)
    return folder


def opened(directory: Path, program: str) -> Outcome:
    return look(HERE, program, Path(sys.executable), directory)


@pytest.mark.parametrize("program", ["sentence_transformers", pytest.param("transformers", marks=pytest.mark.full)])
def test_the_releases_of_today_give_the_golden_vectors(directory: Path, program: str) -> None:
    outcome = opened(directory, program)
    assert outcome.verdict == "same vectors", outcome
    assert outcome.versions["transformers"] and outcome.error == ""


def test_a_model_that_runs_as_causal_is_seen(directory: Path, tmp_path: Path) -> None:
    """As old releases open it: without the key that they ignore."""
    copy = shutil.copytree(directory, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    del config["is_causal"]
    (copy / "config.json").write_text(json.dumps(config))
    outcome = opened(copy, "transformers")
    assert outcome.verdict == "OTHER VECTORS, SILENTLY" and outcome.alone < 0.999


def test_a_program_that_stops_is_quoted(directory: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(directory, tmp_path / "copy")
    (copy / "config.json").write_text('{"model_type": "none of them"}')
    outcome = opened(copy, "transformers")
    assert outcome.verdict == "stops" and outcome.error.startswith("ValueError: ") and "none of them" in outcome.error


def test_a_folder_that_is_no_environment_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "mine+too"
    target.mkdir()
    (target / "work").touch()
    with pytest.raises(ValueError, match="no Python environment"):
        build(Stack("mine, too", ()), tmp_path)
    assert (target / "work").exists()


def test_torch_is_shared_with_all_it_needs(tmp_path: Path) -> None:
    if torch.__version__.partition("+")[0] != TORCH.partition("==")[2]:
        assert share_torch(tmp_path / "shared") is None
        return
    shared = share_torch(tmp_path / "shared")
    assert shared is not None and all(link.resolve().exists() for link in shared.iterdir())
    assert {"torch", "sympy", "filelock", "jinja2"} <= {link.name for link in shared.iterdir()}
    assert (shared / "numpy").exists() is False  # torch doesn't ask for it, and old stacks want an older one
    assert share_torch(tmp_path / "shared") == shared  # again, onto the links that are there


def test_the_table_shows_errors_and_cosines() -> None:
    rows = table(
        [
            Outcome(
                "a", "sentence_transformers", {"sentence_transformers": "3.4.1", "transformers": "4.48.3"}, "E: a|b"
            ),
            Outcome("a", "transformers", {"transformers": "4.48.3"}, alone=0.5, batch=0.25),
            Outcome("a", "transformers", {"transformers": "5.0"}, alone=0.5, batch=0.25, warnings=("it is causal",)),
            Outcome("a", "transformers", {"transformers": "5.4"}, alone=1.0, batch=0.99995),
            Outcome("a", "transformers", {"transformers": "5.5"}, alone=1.0, batch=0.9998),
        ]
    ).splitlines()[2:]
    assert rows[0] == "| sentence-transformers 3.4.1 | transformers 4.48.3 | stops |  |  | `E: a/b` |"
    assert rows[1] == "| transformers 4.48.3 (AutoModel) |  | OTHER VECTORS, SILENTLY | 0.5000 | 0.2500 |  |"
    assert "other vectors, with a warning" in rows[2] and "`it is causal`" in rows[2]
    assert "same vectors" in rows[3] and "SILENTLY" in rows[4]  # the worse of the two counts

"""The command line: exit codes, messages and files, as a user meets them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_recipes_run import make_model, shrink, tiny_data  # noqa: F401  (a fixture)

from llm2enc import Encoder, cli
from llm2enc.conversion import Result
from llm2enc.verify import Parity

RUN = [sys.executable, "-m", "llm2enc"]


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [*RUN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)


def sets(changes: list[str]) -> list[str]:
    return [argument for change in changes for argument in ("--set", change)]


def test_a_wrong_recipe_is_refused_without_torch() -> None:
    code = "import sys; sys.argv = ['llm2enc', 'convert', 'pocket', '--set', 'seed=x']\nfrom llm2enc.cli import main\n"
    code += "try:\n    main()\nexcept SystemExit as stop:\n    print(stop.code, 'torch' in sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["2", "False"]
    assert "seed: Input should be a valid integer" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['llm2enc', '--help']\nfrom llm2enc.cli import main\n"
    code += "try:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert done.returncode == 0 and "Usage: llm2enc" in done.stdout and "typer" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "pydantic", "yaml", "rich"}


def test_every_public_name_is_found_on_first_use() -> None:
    code = "from llm2enc import *\nimport llm2enc\n"  # the star takes every name of __all__
    code += "print(*(f'{name}={globals()[name].__name__}' for name in llm2enc.__all__ if name in dir(llm2enc)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    expected = "CannotConvert Encoder Recipe RecipeError convert inspect load_recipe recipe_names".split()
    assert done.stdout.split() == [f"{name}={name}" for name in expected], done.stderr


def test_recipes_lists_and_shows() -> None:
    listed = run("recipes")
    assert listed.returncode == 0 and "echo-mistral-7b" in listed.stdout
    shown = run("recipes", "pocket", "--set", "seed=7")
    assert shown.returncode == 0 and "seed: 7" in shown.stdout


def test_unknown_names_give_two(tmp_path: Path) -> None:
    unknown = run("convert", "no-such-recipe", cwd=tmp_path)
    assert unknown.returncode == 2 and "no recipe 'no-such-recipe'" in unknown.stderr
    assert not list(tmp_path.iterdir())


def test_inspect_says_what_converts(tmp_path: Path) -> None:
    good = run("inspect", "pocket", "--json")
    found = json.loads(good.stdout)
    assert good.returncode == 0 and (found["model_type"], found["verdict"]) == ("llama", "convertible")
    assert len(found["layers"]) == 4
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2})
    )
    refused = run("inspect", tmp_path / "config.json", "--json")
    assert refused.returncode == 3 and json.loads(refused.stdout)["verdict"] == "refused"
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert run("inspect", broken).returncode == 2


def test_a_one_sided_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    make_model("llama", tmp_path / "base", has_bos=True)
    config = {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 320, "state_size": 8}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    (tmp_path / "base" / "model.safetensors").unlink()
    done = run("convert", tmp_path / "base", "--training-free", "-o", tmp_path / "run")
    assert done.returncode == 3, done.stderr
    assert "Echo" in done.stderr and not (tmp_path / "run").exists()


def test_training_free_encode_and_parity(tmp_path: Path) -> None:
    make_model("qwen3", tmp_path / "base", has_bos=False)
    done = run("convert", tmp_path / "base", "--training-free", "-o", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert {row["engine"] for row in answer["parity"]} == {"llm2enc", "sentence-transformers"}
    assert all(row["cosine"] > 0.9999 for row in answer["parity"])

    (tmp_path / "texts.txt").write_text("one text\nanother text\n")
    encoded = run("encode", tmp_path / "run" / "model", tmp_path / "texts.txt", "-o", tmp_path / "vectors.npy")
    assert encoded.returncode == 0, encoded.stderr
    expected = Encoder.load(tmp_path / "run" / "model").encode(["one text", "another text"])
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), expected, atol=1e-6)
    again = run("encode", tmp_path / "run" / "model", tmp_path / "texts.txt", "-o", tmp_path / "vectors.npy")
    assert again.returncode == 2 and "exists already" in again.stderr


def test_vectors_are_written_as_they_come(tmp_path: Path) -> None:
    blocks = [np.arange(6, dtype=np.float32).reshape(2, 3), np.full((1, 3), -1.5, dtype=np.float32)]
    assert cli._save(iter(blocks), 3, tmp_path / "out.npy") == 3
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), [[0, 1, 2], [3, 4, 5], [-1.5, -1.5, -1.5]])
    assert cli._save(iter([]), 3, tmp_path / "none.npy") == 0 and np.load(tmp_path / "none.npy").shape == (0, 3)

    def broken():
        yield blocks[0]
        assert (tmp_path / "broken.partial.npy").exists()
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        cli._save(broken(), 3, tmp_path / "broken.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none.npy", "out.npy"]


def test_ctrl_c_saves_and_says_how_to_go_on(tiny_data: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    make_model("llama", tmp_path / "base", has_bos=True)
    last = {"stages.contrastive.steps": "400", "stages.contrastive.schedule_steps": "400"}
    changes = [*shrink("pocket", tmp_path / "base", tiny_data), *(f"{key}={value}" for key, value in last.items())]
    command = [*RUN, "convert", "pocket", "-o", str(tmp_path / "run"), *sets(changes)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    started = tmp_path / "run" / "2-contrastive" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not started.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "--resume" in errors and (tmp_path / "run" / "2-contrastive" / "checkpoint" / "step.json").is_file()

    finished = run("convert", "pocket", "-o", tmp_path / "run", *sets(changes), "--resume")
    assert finished.returncode == 0, finished.stderr
    steps = [json.loads(line)["step"] for line in started.read_text().splitlines()]
    assert steps == list(range(1, 401))  # every step once, none lost
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_the_table_says_what_each_stage_gained(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """Two metrics over a start and two stages; the gains are differences of neighbours, worked out by hand."""
    monkeypatch.setenv("COLUMNS", "200")
    scores = [("bidirectional-mean", 0.1, 0.5), ("after mntp", 0.25, 0.4), ("after contrastive", 0.75, 0.65)]
    history = [{"stage": name, "scores": {"a": a, "b": b}, "seconds": 7.0} for name, a, b in scores]
    result = Result(
        Path("runs/x"), None, history, [Parity("llm2enc", 1.0), Parity("other", None, "not here")], {"a": 0.3}
    )
    cli._print_result(result)
    lines = [line.strip("│ ").split() for line in capsys.readouterr().out.splitlines()]
    cells = {
        " ".join(w for w in words if w.isalpha() or ("-" in w and w[0].isalpha())): words for words in lines if words
    }
    assert [w for w in cells["gain after mntp"] if w[0] in "+-"] == ["+0.150", "-0.100"]
    assert [w for w in cells["gain after contrastive"] if w[0] in "+-"] == ["+0.500", "+0.250"]
    assert "0.300" in cells["TF-IDF"]
    assert any("runs/x/model" in word for words in lines for word in words)


@pytest.mark.parametrize("command", ["convert", "encode", "inspect", "recipes"])
def test_every_command_has_help(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0 and command in done.stdout

"""The command line: exit codes, messages and files, as a user meets them."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from llm2enc import Encoder, cli, load_recipe, recipe_names
from llm2enc.cli import convert as convert_command
from llm2enc.conversion.run import Result
from llm2enc.errors import Interrupted
from llm2enc.verification import Parity
from llm2enc.verification import subprocesses as running
from tests.conversion.test_recipes_run import make_model, shrink, tiny_data  # noqa: F401  (a fixture)
from tests.evaluation.test_evaluation import few_docstrings  # noqa: F401  (a fixture)
from tests.support import jobs
from tests.support.builders import make_encoder, run_here, sentences


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str | Path, cwd: Path | None = None) -> Done:
    """A command in a process of its own, which has imported everything before."""
    with TemporaryDirectory() as place:
        streams = Path(place) / "stdout", Path(place) / "stderr"
        process = jobs.start(command, list(map(str, arguments)), cwd, *streams)
        process.join(300)
        return Done(process.exitcode, *(stream.read_text() for stream in streams))


def command(arguments: list[str], cwd: Path | None, *streams: Path) -> None:
    """It in this process; without streams, what it prints goes where it went."""
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
        setattr(sys, stream.name, os.fdopen(number, "w"))
    os.environ["COLUMNS"] = "200"
    os.chdir(cwd or ".")
    sys.argv = ["llm2enc", *arguments]
    running._run = run_here
    cli.main()


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
    assert not loaded & {"torch", "transformers", "numpy", "pydantic", "ruamel", "rich"}


def test_every_public_name_is_found_on_first_use() -> None:
    code = "from llm2enc import *\nimport llm2enc\n"  # the star takes every name of __all__
    code += "print(*(f'{name}={globals()[name].__name__}' for name in llm2enc.__all__ if name in dir(llm2enc)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    expected = "CannotConvert Encoder Recipe RecipeError compare convert inspect load_recipe mine recipe_names".split()
    assert done.stdout.split() == [f"{name}={name}" for name in expected], done.stderr


def test_recipes_lists_and_shows() -> None:
    real = [sys.executable, "-m", "llm2enc", "recipes"]  # as users and torchrun start it: the others are forked
    wide = {**os.environ, "COLUMNS": "100"}
    listed = subprocess.run(real, capture_output=True, text=True, timeout=300, env=wide)
    recipes = [load_recipe(name) for name in recipe_names()]
    lines = [line.split() for line in listed.stdout.splitlines() if line.strip()]
    assert listed.returncode == 0 and len(lines) == 2 + len(recipes) + len({recipe.family for recipe in recipes})
    for recipe in recipes:  # one line each, below the heading of its family
        (place,) = [number for number, words in enumerate(lines) if words[0] == recipe.name and len(words) > 1]
        scores = [f"{name} {score:.2f}" for name, score in recipe.published.items()][:1]
        assert lines[place] == " ".join([recipe.name, *scores, recipe.description]).split()
        families = [words for words in lines[:place] if words in [one.family.split() for one in recipes]]
        assert families[-1] == recipe.family.split()
    shown = run("recipes", "pocket", "--set", "seed=7")
    assert shown.returncode == 0 and "seed: 7" in shown.stdout


def test_a_quantised_base_is_refused_by_every_command_before_anything_runs(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    make_model("llama", base, has_bos=True)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (base / "config.json").write_text(json.dumps(config))
    (base / "model.safetensors").unlink()
    for arguments in (
        ["inspect", base],
        ["plan", "llm2vec", "--model", base],
        ["convert", "llm2vec", "--model", base, "-o", out],
        ["convert", base, "--training-free", "-o", out],
        ["compare", base, "-o", out],
    ):
        done = run(*arguments, cwd=tmp_path)
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == 3 and "quantised (bitsandbytes, nf4)" in said, (arguments, said)
        assert not out.exists()


def test_unknown_names_give_two(tmp_path: Path) -> None:
    unknown = run("convert", "no-such-recipe", cwd=tmp_path)
    assert unknown.returncode == 2 and "no recipe 'no-such-recipe'" in unknown.stderr
    model = run("convert", "Qwen/Qwen3-0.6B", cwd=tmp_path)
    assert model.returncode == 2 and "convert llm2vec --model Qwen/Qwen3-0.6B -o" in model.stderr
    twice = run("convert", "Qwen/Qwen3-0.6B", "--training-free", "--model", "pocket", cwd=tmp_path)
    assert twice.returncode == 2 and "--model and --data go with a recipe" in twice.stderr
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


def test_a_causal_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
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
    answer = json.loads(done.stdout)
    assert {row["engine"] for row in answer["parity"]} == {"llm2enc", "sentence-transformers", "transformers"}
    assert all(row["cosine"] > 0.9999 for row in answer["parity"])

    (tmp_path / "texts.txt").write_text("one text\nanother text\n")
    encoded = run("encode", tmp_path / "run" / "model", tmp_path / "texts.txt", "-o", tmp_path / "vectors.npy")
    assert encoded.returncode == 0, encoded.stderr
    expected = Encoder.load(tmp_path / "run" / "model").encode(["one text", "another text"])
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), expected, atol=1e-6)
    again = run("encode", tmp_path / "run" / "model", tmp_path / "texts.txt", "-o", tmp_path / "vectors.npy")
    assert again.returncode == 2 and "exists already" in again.stderr


def test_ctrl_c_saves_and_says_how_to_go_on(tiny_data: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    make_model("llama", tmp_path / "base", has_bos=True)
    last = {"stages.contrastive.steps": "40", "stages.contrastive.schedule_steps": "40"}
    changes = [*shrink("pocket", tmp_path / "base", tiny_data), *(f"{key}={value}" for key, value in last.items())]
    given = ["convert", "pocket", "-o", str(tmp_path / "run"), *sets(changes)]
    job = jobs.Job(partial(command, given, None), tmp_path / "log")
    started = tmp_path / "run" / "2-contrastive" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not started.exists() and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.01)
    job.send(signal.SIGINT)
    assert job.wait() == 130, job.said()
    assert "--resume" in job.said() and (tmp_path / "run" / "2-contrastive" / "checkpoint" / "step.json").is_file()

    finished = run("convert", "pocket", "-o", tmp_path / "run", *sets(changes), "--resume")
    assert finished.returncode == 0, finished.stderr
    steps = [json.loads(line)["step"] for line in started.read_text().splitlines()]
    assert steps == list(range(1, 41))  # every step once, none lost
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_the_command_that_goes_on_can_be_copied(tmp_path: Path, monkeypatch, capsys) -> None:
    quick(monkeypatch, tmp_path)
    asked: list[tuple] = []

    def stopped(recipe, folder: Path, **options: bool) -> None:
        asked.append((recipe, folder))
        raise Interrupted("0-mntp: checkpoint after step 1 of 9")

    monkeypatch.setattr("llm2enc.conversion.convert", stopped)
    monkeypatch.setattr(convert_command, "check_push", lambda repo: None)
    changes = ["stages.mntp.data=[{kind: docstrings, view: paragraphs}]", "seed=7"]
    given = ["--model", "pocket", "--data", "my pairs.jsonl", *sets(changes)]
    code, _, said = call(capsys, "convert", "pocket", "-o", "a folder", "--push", "me/mine", *given)
    assert code == 130 and "0-mntp: checkpoint after step 1 of 9. Go on with:" in said
    again = shlex.split(said.splitlines()[-1])
    assert again[0] == "llm2enc" and again[-3:] == ["--push", "me/mine", "--resume"]
    assert call(capsys, *again[1:])[0] == 130 and asked[1] == asked[0]


def test_the_table_says_what_each_stage_gained(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """Two metrics over a start and two stages; the gains are differences of neighbours, worked out by hand."""
    monkeypatch.setenv("COLUMNS", "200")
    scores = [("bidirectional-mean", 0.1, 0.5), ("after mntp", 0.25, 0.4), ("after contrastive", 0.75, 0.65)]
    history: list[dict] = [{"stage": name, "scores": {"a": a, "b": b}, "seconds": 7.0} for name, a, b in scores]
    history[1]["best"] = {"score_name": "a", "score": 0.25, "step": 40, "last": 60}
    result = Result(
        Path("runs/x"), None, history, [Parity("llm2enc", 1.0), Parity("other", None, "not here")], {"a": 0.3}
    )
    convert_command._print_result(result)
    lines = [line.strip("│ ").split() for line in capsys.readouterr().out.splitlines()]
    assert "after mntp: the weights of step 40 of 60, the best by a 0.250".split() in lines
    cells = {
        " ".join(w for w in words if w.isalpha() or ("-" in w and w[0].isalpha())): words for words in lines if words
    }
    assert [w for w in cells["gain after mntp"] if w[0] in "+-"] == ["+0.150", "-0.100"]
    assert [w for w in cells["gain after contrastive"] if w[0] in "+-"] == ["+0.500", "+0.250"]
    assert "0.300" in cells["TF-IDF"]
    assert any("runs/x/model" in word for words in lines for word in words)


def test_the_table_fits_a_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    scores = {f"docstrings/{name}": 0.5 for name in ("ndcg@10", "accuracy@1", "similarity")}
    history = [
        {"stage": name, "scores": scores, "seconds": 7.0} for name in ("bidirectional-mean", "after contrastive")
    ]
    convert_command._print_result(Result(Path("runs/x"), None, history, [], scores))
    shown = capsys.readouterr().out
    names = ("docstrings/", "ndcg@10", "accuracy@1", "similarity", "gain after contrastive", "seconds")
    assert all(name in shown for name in names) and "…" not in shown, shown


@pytest.mark.parametrize("command", ["compare", "convert", "encode", "evaluate", "inspect", "plan", "recipes"])
def test_every_command_has_help(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0 and command in done.stdout


# ------------------------------------------------------------------------------------------------ evaluate and compare


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "mine"
    make_encoder().save(folder)
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.csv"
    path.write_text("one,two\n" + "".join(f'"{text}","{text[::-1]}"\n' for text in sentences(8)))
    return path


def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands run in this process, in a folder of their own, with a cache of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM2ENC_CACHE", str(tmp_path / "cache"))


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, output and messages of a command."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["llm2enc", *map(str, arguments)])
        patch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    return int(stopped.value.code or 0), *capsys.readouterr()


def test_evaluate_prints_a_table_and_goes_on_where_it_was(
    encoder_folder: Path, pairs: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    quick(monkeypatch, tmp_path)
    code, shown, said = call(capsys, "evaluate", encoder_folder, "--tasks", pairs)
    assert code == 0 and "1 tasks, 16 texts: about" in said and "mean over tasks" in shown and "recall@10" in shown
    found = json.loads((tmp_path / "runs/evaluate/mine/results.json").read_text())
    assert found["tasks"][0]["task"] == "pairs" and found["instructions"] == "own"
    assert f"{100 * found['means']['over tasks']:.1f}" in shown and "stored" not in shown
    assert len(list((tmp_path / "cache" / "vectors").iterdir())) == 1
    _, shown, _ = call(capsys, "evaluate", encoder_folder, "--tasks", pairs)
    assert "stored" in shown
    code, answer, _ = call(capsys, "evaluate", encoder_folder, "--tasks", pairs, "--json", "-o", tmp_path / "other")
    assert code == 0 and json.loads(answer)["means"] == found["means"]


@pytest.mark.usefixtures("few_docstrings")
def test_evaluate_says_what_each_rung_would_cost(
    encoder_folder: Path, pairs: Path, tmp_path, monkeypatch, capsys
) -> None:
    pytest.importorskip("mteb")
    quick(monkeypatch, tmp_path)
    code, answer, _ = call(capsys, "evaluate", encoder_folder, "--tasks", pairs, "--plan", "--json")
    rows = {row["name"]: row for row in json.loads(answer)}
    assert code == 0 and list(rows) == ["smoke", "local", "nanobeir", "mteb"]
    assert rows["local"]["texts"] == 16 and rows["local"]["seconds"] < rows["nanobeir"]["seconds"]
    assert not (tmp_path / "runs").exists() and not (tmp_path / "cache").exists()


def test_evaluate_refuses_what_it_can_not_measure(
    encoder_folder: Path, pairs: Path, tmp_path, monkeypatch, capsys
) -> None:
    quick(monkeypatch, tmp_path)
    for arguments, message in (
        ((encoder_folder, "--tasks", tmp_path / "none"), "no such file or folder"),
        ((encoder_folder, "--tasks", "STSBenchmrk"), "mteb has no task or benchmark 'STSBenchmrk'; similar names:"),
        ((encoder_folder, "--tasks", pairs, "--instructions", "some"), "expected one of own, task, none"),
        ((tmp_path, "--tasks", pairs), "holds no encoder"),
    ):
        code, _, said = call(capsys, "evaluate", *arguments)
        assert code == 2 and message in said
    assert not (tmp_path / "runs").exists()


def test_a_task_of_mteb_without_its_data_is_reported_and_the_others_go_on(
    encoder_folder: Path, pairs: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    pytest.importorskip("mteb")
    quick(monkeypatch, tmp_path)

    def unreachable(task, **_):
        raise ConnectionError("no network")

    monkeypatch.setattr("mteb.abstasks.abstask.AbsTask.load_data", unreachable)
    code, shown, said = call(capsys, "evaluate", encoder_folder, "--tasks", "STSBenchmark", "--tasks", pairs)
    assert code == 1 and "STSBenchmark: not run" in said and "cannot be loaded (no network)" in shown
    assert json.loads((tmp_path / "runs/evaluate/mine/results.json").read_text())["tasks"][0]["task"] == "pairs"


def test_local_tasks_by_mteb_have_our_scores_and_its_files(
    encoder_folder: Path, pairs: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    pytest.importorskip("mteb")
    quick(monkeypatch, tmp_path)
    scores = []
    for more in ((), ("--by-mteb",)):
        code, answer, _ = call(capsys, "evaluate", encoder_folder, "--tasks", pairs, "--json", "-o", "out", *more)
        scores.append(json.loads(answer)["tasks"][0]["score"])
        assert code == 0
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)  # mteb rounds to five digits
    (found,) = (tmp_path / "out" / "mteb" / "results").rglob("pairs.json")
    assert json.loads(found.read_text())["scores"]["test"][0]["main_score"] == pytest.approx(scores[1])


def test_ctrl_c_while_measuring_keeps_what_is_finished(encoder_folder, pairs, tmp_path, monkeypatch, capsys) -> None:
    quick(monkeypatch, tmp_path)

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("llm2enc.evaluation.suite.score", stop)
    code, _, said = call(capsys, "evaluate", encoder_folder, "--tasks", pairs)
    assert code == 130 and "the same command goes on from here" in said


def test_compare_leaves_a_report(encoder_folder: Path, pairs: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    quick(monkeypatch, tmp_path)
    code, shown, _ = call(capsys, "compare", encoder_folder, "--data", pairs)
    folder = tmp_path / "runs/compare/mine"
    assert code == 0 and "as saved" in shown and "report: runs/compare/mine/report.html" in shown
    assert "<h1>" in (folder / "report.html").read_text()
    _, answer, said = call(capsys, "compare", encoder_folder, "--data", pairs, "--json", "--minutes", "0")
    assert json.loads(answer) == json.loads((folder / "compare.json").read_text())
    assert "this takes about" in said and "--minutes" not in json.loads(answer)["facts"]["command"]
    for arguments, message in (
        ((tmp_path / "nothing",), "no such directory"),
        (("pocket", "--variants", "sideways"), "no variant 'sideways'"),
        (("pocket", "--readings", "sideways"), "warning: --readings is called --variants now"),
        (("pocket", "--readings", "sideways"), "no variant 'sideways'"),
        (("pocket", "--dtype", "int8"), "expected one of auto, float32"),
    ):
        code, _, said = call(capsys, "compare", *arguments)
        assert code == 2 and message in said

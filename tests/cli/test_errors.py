"""The tree of errors: exit codes, what keeps its traceback, and errors that cross a process."""

import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from llm2enc import cli, errors
from llm2enc.errors import InputError, Llm2encError, explained
from tests.cli.test_cli import call, quick
from tests.conversion.test_recipes_run import make_model
from tests.support.builders import make_encoder

CODES = {
    "Llm2encError": 1, "InputError": 2, "RecipeError": 2, "DataError": 2, "Locked": 2, "CannotConvert": 3,
    "CannotExport": 3, "NoGGUF": 3, "TrainingError": 1, "NotFinite": 1, "NothingLearnt": 1, "Unreachable": 1,
    "Interrupted": 130,
}  # fmt: skip
CLASSES = {
    name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__
}


def test_every_class_has_its_exit_code_and_stands_in_the_docstring() -> None:
    assert {name: kind.exit_code for name, kind in CLASSES.items()} == CODES
    drawn = dict(line.strip("│├└─ ").split()[:2] for line in errors.__doc__.split("\n\n")[1].splitlines())
    assert {name: int(code) for name, code in drawn.items()} == CODES


@pytest.mark.parametrize("name", CODES)
def test_an_error_of_the_tree_is_one_line_and_its_exit_code(name: str, tmp_path, monkeypatch, capsys) -> None:
    quick(monkeypatch, tmp_path)

    def refuse(*_, **__):
        raise CLASSES[name]("what, and what to do")

    monkeypatch.setattr("llm2enc.model.inspect", refuse)
    assert call(capsys, "inspect", "pocket") == (CODES[name], "", "error: what, and what to do\n")


@pytest.mark.parametrize("kind", [TypeError, ValueError, KeyError, RuntimeError])
def test_a_fault_of_ours_or_of_a_library_is_no_message(kind: type[Exception], monkeypatch, capsys) -> None:
    def fail(*_, **__):
        raise kind("a bug")

    monkeypatch.setattr("llm2enc.model.inspect", fail)
    monkeypatch.setattr(sys, "argv", ["llm2enc", "inspect", "pocket"])
    with pytest.raises(kind, match="a bug"):
        cli.main()
    assert capsys.readouterr().err == ""


def test_a_planted_bug_ends_the_program_with_a_traceback_and_1() -> None:
    code = "import sys, llm2enc.recipe; sys.argv = ['llm2enc', 'recipes', 'pocket']\n"
    code += "llm2enc.recipe.load_recipe = lambda *_: len(3)\nfrom llm2enc.cli import main\nmain()\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("Traceback") and "\nTypeError: " in done.stderr


@pytest.mark.parametrize("name", CODES)
def test_an_error_crosses_a_process_whole(name: str) -> None:
    sent = pickle.loads(pickle.dumps(CLASSES[name]("words")))
    assert type(sent) is CLASSES[name] and str(sent) == "words"


def test_input_errors_are_value_errors_and_training_errors_runtime_errors() -> None:
    for kind in CLASSES.values():
        assert issubclass(kind, ValueError) == issubclass(kind, InputError)
        assert issubclass(kind, RuntimeError) == issubclass(kind, errors.TrainingError)


def test_a_library_is_explained_by_what_it_was_given() -> None:
    with pytest.raises(InputError) as caught, explained("x.json", "look at it"):
        raise ValueError("two\nlines")
    assert str(caught.value) == "x.json cannot be used (ValueError: two lines); look at it"
    assert isinstance(caught.value.__cause__, ValueError)
    for other in (TypeError("a bug"), OSError("gone"), Llm2encError("ours"), InputError("ours")):
        with pytest.raises(type(other)) as caught, explained("x.json", "look at it"):
            raise other
        assert caught.value is other


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("model.safetensors", lambda data: data[:1000], "model.safetensors is not the file that was written"),
        (
            "config.json",
            lambda data: data.replace(b'"hidden_size": ', b'"hidden_size": "many", "former": '),
            "mine cannot be used (",
        ),
        (
            "llm2enc.json",
            lambda data: data.replace(b'"max_tokens": ', b'"max_tokens": "many", "former": '),
            "llm2enc.json is damaged: input.max_tokens: ",
        ),
    ],
)
def test_a_damaged_encoder_is_named_with_what_to_do(file, damage, said, tmp_path: Path, monkeypatch, capsys) -> None:
    quick(monkeypatch, tmp_path)
    make_encoder().save(tmp_path / "mine")
    path = tmp_path / "mine" / file
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    (tmp_path / "texts.txt").write_text("one\n")
    code, _, told = call(capsys, "encode", "mine", "texts.txt", "-o", "out.npy")
    assert code == 2 and said in told.splitlines()[-1] and "Traceback" not in told, told


def test_a_model_that_is_no_causal_one_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    quick(monkeypatch, tmp_path)
    make_model("llama", tmp_path / "base", has_bos=True)
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "clip_text_model"}))
    code, _, told = call(capsys, "convert", "base", "--training-free", "-o", "run")
    assert code == 2 and "give a causal language model" in told and not (tmp_path / "run").exists()

"""Imports point one way: a package knows only those below it, by their faces, and each dependency has its owners."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "llm2enc"
# From the ground floor up: a package imports only from those before it.
ORDER = {
    "storage": "files that are whole or absent, locks, secrets",
    "terminal": "tables and progress bars",
    "recipe": "one YAML file that says everything a run does",
    "distributed": "several processes, one batch",
    "text": "tokens and templates",
    "data": "sources, rows, batches",
    "losses": "pure functions of tensors",
    "model": "the decoder as a backbone, and its proof",
    "artifact": "the saved directory",
    "encoding": "the encoder",
    "training": "one loop for every objective",
    "export": "other formats of a directory",
    "evaluation": "tasks, metrics, intervals",
    "audit": "what is wrong with the data",
    "planning": "memory, time and disk beforehand",
    "merging": "several encoders become one",
    "verification": "do other programs agree",
    "comparison": "variants of models on the same texts",
    "conversion": "the whole run",
    "cli": "one command, one file",
}
OWNERS = {  # who may import what
    "torch.distributed": {"distributed"},
    "transformers": {"text", "model", "artifact", "export", "verification"},
    "peft": {"model"},
}
LIGHT = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy")
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path.parent != ROOT]


def package(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) that a file imports, at its top or inside functions; no name for `import module`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full, `from llm2enc.x import y`"
            yield from ((node.module or "", alias.name) for alias in node.names)


def names(path: Path, top: str) -> list[str]:
    """Dotted names from `top` that a file imports: `from a import b` is `a.b`."""
    dotted = [f"{module}.{name}".rstrip(".") for module, name in imports(path)]
    return [name for name in dotted if f"{name}.".startswith(f"{top}.")]


def test_every_package_has_its_place_and_no_module_is_loose() -> None:
    found = {path.name for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"} - {"__pycache__"}
    assert found == {"__init__.py", "__main__.py", "errors.py", "pocket", *ORDER}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_imports_only_from_those_below_it(path: Path) -> None:
    below = list(ORDER)[: list(ORDER).index(package(path))]
    for name in names(path, "llm2enc"):
        there = name.split(".")[1]
        assert there in (package(path), "errors", *below) or there[0].isupper(), f"{path}: imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_are_entered_by_their_face(path: Path) -> None:
    for module, name in imports(path):
        parts = module.split(".")
        if parts[0] == "llm2enc" and len(parts) > 1 and parts[1] != package(path):
            assert len(parts) == 2, f"{path}: `from {module} import {name}` passes the face of {parts[1]}"
            assert parts[1] == "errors" or name in face(parts[1]), f"{path}: {module} does not promise {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_taken_of_a_package_is_in_its_face(path: Path) -> None:
    """`from llm2enc import data` and then `data.examine`, which fails only when that line runs."""
    taken = {name for module, name in imports(path) if module == "llm2enc" and name in ORDER}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in taken:
            assert node.attr in face(node.value.id), f"{path}: {ast.unparse(node)}"


def face(name: str) -> list[str]:
    tree = ast.parse((ROOT / name / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{name} does not say what it promises"
    (found,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return ast.literal_eval(found)


@pytest.mark.parametrize("name", [name for name in ORDER if (ROOT / name).is_dir()])
def test_a_face_promises_what_it_imports(name: str) -> None:
    promised = face(name)
    imported = {name for module, name in imports(ROOT / name / "__init__.py") if module.startswith("llm2enc")}
    assert len(set(promised)) == len(promised)
    assert imported == set(promised)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_dependency_has_its_owners(path: Path) -> None:
    for dependency, owners in OWNERS.items():
        assert package(path) in owners or not names(path, dependency), f"{path}: {dependency} belongs to {owners}"


BY_NAME = re.compile(  # what `OBJECTIVES` and `Batch` answer
    r"stage\.objective\s*(in\b|not in\b|==|!=)|isinstance\([^()]*Stage\b[^()]*\)|(has|get)attr\((batch|stage)\b"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_objectives_and_recipes_ask_for_the_name_of_an_objective(path: Path) -> None:
    if "objectives" not in path.parts[len(ROOT.parts) :] and package(path) != "recipe":
        found = BY_NAME.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path}: {found[0]}: ask its record in `OBJECTIVES`, or the batch's `describe()`"


@pytest.mark.parametrize(
    "path",
    [path for path in [*FILES, ROOT / "errors.py"] if package(path) in ("errors.py", "recipe", "terminal", "cli")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_help_and_recipes_answer_without_torch(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(module.split(".")[0] in LIGHT for module in imported), ast.unparse(node)
            ours = [module for module in imported if module.startswith("llm2enc")]
            light = ("llm2enc.errors", "llm2enc.recipe", "llm2enc.storage", "llm2enc.terminal", "llm2enc.cli")
            assert all(module.startswith(light) for module in ours), ast.unparse(node)


RAISED = re.compile(r"raise (ValueError|TypeError)\(")
BARE = {  # files whose bare errors have a reason
    **{
        f"recipe/{name}.py": "pydantic collects them in validators"
        for name in "base data input loss model pair_scores recipe stages teacher terms".split()
    },
    "text/template.py": "a text that is no str, which only a caller in Python can give",
    "verification/engines/reference.py": "runs without llm2enc",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_raised_on_purpose_is_in_the_tree(path: Path) -> None:
    raised = bool(RAISED.search(path.read_text(encoding="utf-8")))
    assert raised == (path.relative_to(ROOT).as_posix() in BARE)


def test_errors_import_nothing_of_the_house() -> None:
    assert not names(ROOT / "errors.py", "llm2enc")


def test_no_error_is_known_by_its_name() -> None:
    for path in FILES:
        assert not re.search(
            r"__name__ (==|!=|in|not in)\b|__name__ for .*__mro__", path.read_text(encoding="utf-8")
        ), path

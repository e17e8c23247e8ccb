"""Imports point one way: a module of llm2enc knows only those above it, and each dependency has one owner."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "llm2enc"
ORDER = (
    "secrets recipe files locking hub distributed guards tokens splitting attention pooling quantization "
    "losses layers positions backbone miniature proof inspection encoder data bulk gradcache objectives "
    "checkpoint export trainer evaluation doctor planning verify merging comparison folder conversion cli"
).split()
EXCEPTIONS = {("encoder", "export")}  # Encoder.load and Encoder.save, imported inside the functions
TRANSFORMERS = set("layers backbone miniature export proof inspection attention tokens verify pocket".split())
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]  # the face may import anything


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Dotted names that a file imports, at its top or inside functions: `from a import b` is `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full, `from llm2enc.x import y`"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def names(path: Path, package: str) -> list[str]:
    return [name for name, _ in imports(path) if f"{name}.".startswith(f"{package}.")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_rooms_above(path: Path) -> None:
    here = room(path)
    assert here in {*ORDER, "pocket", "__main__"}, f"{here} has no place yet: write it into ORDER"
    below = len(ORDER) if here not in ORDER else ORDER.index(here)  # the other two stand at the end
    for name in names(path, "llm2enc"):
        there = name.split(".")[1]
        assert there == here or there in ORDER[:below] or (here, there) in EXCEPTIONS, f"{here} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_dependency_has_one_owner(path: Path) -> None:
    assert room(path) == "distributed" or not names(path, "torch.distributed")
    assert room(path) in TRANSFORMERS or not names(path, "transformers")
    assert room(path) == "backbone" or not names(path, "peft")
    assert path.name == "build.py" or room(path) != "pocket" or not names(path, "transformers")


def test_tokens_name_transformers_for_type_checkers_only() -> None:
    tree = ast.parse((ROOT / "tokens.py").read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    named = [node for name, node in imports(ROOT / "tokens.py") if name.startswith("transformers.")]
    assert len(blocks) == 1 and named
    # One parse per call: compare places in the file, not objects.
    lines = {inner.lineno for block in blocks for inner in block.body}
    assert {node.lineno for node in named} <= lines


@pytest.mark.parametrize("path", [ROOT / "recipe.py", *sorted((ROOT / "cli").glob("*.py"))], ids=lambda path: path.stem)
def test_help_and_recipes_answer_without_torch(path: Path) -> None:
    top = {node for node in ast.parse(path.read_text(encoding="utf-8")).body}
    heavy = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy")
    for node in top:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(module.split(".")[0] in heavy for module in imported), ast.unparse(node)
            ours = [module for module in imported if module.startswith("llm2enc")]
            light = ("llm2enc.recipe", "llm2enc.secrets", "llm2enc.cli.")
            assert all(module.startswith(light) for module in ours)

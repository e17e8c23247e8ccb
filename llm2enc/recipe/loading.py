"""Recipes: one YAML file says everything a run does, and is refused before torch is imported if it is wrong.

A recipe is strict (no unknown keys, no silent conversions), frozen (nothing writes to it) and discriminated: a stage
has the fields of its own objective only, a data source those of its own kind. `load_recipe` reads a shipped name, a path
or a dict, puts the sources of named data collections in their place, applies dotted overrides through the same
validation, and reports every fault at once with its path.

The package never imports torch: `llm2enc recipes` and `--help` must answer at once.
"""

import json
import logging
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llm2enc.errors import RecipeError
from llm2enc.recipe.recipe import Recipe
from llm2enc.recipe.replacing import replaced
from llm2enc.recipe.yaml_dialect import from_yaml
from llm2enc.storage import redacted

_log = logging.getLogger(__name__)

# Fields of a stage under the names of release 0.1, and their dotted paths today.
RENAMED = {
    "mini_batch_tokens": "micro_batch_tokens",
    "graph_tokens": "activation_tokens",
    "shards": "rng_shards",
    "temperature": "loss.temperature",
    "mask_duplicates": "loss.masks.duplicates",
}
_MAX_NODES = 100_000  # a recipe has hundreds; more is an alias that multiplies itself
_MAX_CHARACTERS = 250_000  # a recipe has thousands; a minute of reading would only say that a file is none


def _parse(text: str, what: str) -> Any:
    """The plain data of a YAML text. RecipeError for anything that is not."""
    if len(text) > _MAX_CHARACTERS:
        raise RecipeError(f"{what} has more than {_MAX_CHARACTERS:,} characters; that is no recipe")
    try:
        data = from_yaml(text)
        _count(data, {})
    except RecipeError:
        raise
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{what} is not valid YAML: {str(error)[:300]}") from None
    return data


def _count(node: Any, known: dict[int, int]) -> int:
    """Nodes of the data with every alias written out, found without writing them out."""
    if id(node) not in known:
        children = [*node.keys(), *node.values()] if isinstance(node, dict) else node if isinstance(node, list) else []
        known[id(node)] = 1 + sum(_count(child, known) for child in children)
        if known[id(node)] > _MAX_NODES:
            raise RecipeError(f"the YAML stands for more than {_MAX_NODES:,} values; that is no recipe")
    return known[id(node)]


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return _names(_recipe_dir())


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    model: str | None = None,
    data: str | None = None,
) -> Recipe:
    """The validated recipe of a shipped name, a YAML path or a dict, with the sources of its data collections.

    model      instead of the recipe's: hub id, directory or `pocket`
    data       instead of that of all stages: a file or glob, a folder, a hub id (`llm2enc.recipe.replacing`)
    overrides  on top of these, `dotted.path=value` strings; the value is YAML, a list index is a number and a stage may
               be named by its objective: `stages.0.steps=10`, `stages.mntp.lr=1e-4`, `model.name=./my-model`.
    raises     RecipeError, with every fault and its path, and no secret.
    """
    try:
        return _load(source, overrides, model, data)
    except RecipeError as error:
        raise RecipeError(redacted(str(error))) from None


def _load(
    source: str | Path | Mapping[str, Any], overrides: Iterable[str], model: str | None, data: str | None
) -> Recipe:
    fields = dict(source) if isinstance(source, Mapping) else _read_recipe(str(source))
    fields = json.loads(_to_json(fields))  # a deep copy, so that overrides never reach the caller's dict
    _resolve(fields)
    try:
        if model is not None or data is not None:
            fields = replaced(_validated(fields), model, data)
        for override in overrides:
            _apply(fields, override)
            _resolve(fields)
        return _validated(fields)
    except ValidationError as error:
        raise RecipeError(_report(error)) from None


def _validated(fields: dict[str, Any]) -> Recipe:
    # The JSON route is pydantic's strict mode for data that came from text: lists become tuples, 1 may be a float, but
    # "1" is not a number and 1 is not a bool.
    return Recipe.model_validate_json(json.dumps(fields))


def _recipe_dir() -> Path:
    package = Path(__file__).parent.parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def _read_recipe(source: str) -> dict[str, Any]:
    data, path = _read("recipe", source, _recipe_dir())
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds {type(data).__name__}, a recipe is a mapping with model, input, pooling, ...")
    return data


def _resolve(data: dict[str, Any]) -> None:
    """Give renamed fields of stages their new names, and put the sources of every `{collection: NAME}` in its place."""
    stages = data.get("stages")
    for number, stage in enumerate(stages if isinstance(stages, list) else []):
        if not isinstance(stage, dict):
            continue
        for old, new in RENAMED.items():
            if old in stage:
                _log.warning("stages.%d.%s is called %s now; the old name goes with release 0.2", number, old, new)
                _put(stage, new, stage.pop(old))
        if isinstance(stage.get("data"), list):
            stage["data"] = [source for given in stage["data"] for source in _sources(given)]


def _sources(given: Any) -> list[Any]:
    """The sources of a collection, or the source itself."""
    if not isinstance(given, dict) or "collection" not in given:
        return [given]
    name = given["collection"]
    if len(given) > 1 or not isinstance(name, str):
        raise RecipeError(
            f"a data collection is `{{collection: NAME}}` and nothing besides (given: {given!r:.200}); to change one of its "
            "sources copy its file, or set the field by its place: stages.0.data.3.weight=2"
        )
    data, path = _read("data collection", name, _recipe_dir() / "data")
    sources = data.get("data") if isinstance(data, dict) and len(data) == 1 else None
    if not isinstance(sources, list) or any(isinstance(source, dict) and "collection" in source for source in sources):
        raise RecipeError(f"{path} is no data collection: it must hold `data:`, a list of sources, and nothing besides")
    return json.loads(_to_json(sources))


def _read(what: str, source: str, shipped: Path) -> tuple[Any, Path]:
    """The plain data of a .yaml file or of a shipped name, and where it stands."""
    path = Path(source)
    if path.suffix not in {".yaml", ".yml"}:
        path = shipped / f"{source}.yaml"
    if not _is(Path.is_file, path):
        raise RecipeError(_unknown(what, source, shipped))
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as UTF-8 text: {error}") from None
    return _parse(text, str(path)), path


def _unknown(what: str, source: str, shipped: Path) -> str:
    said = f"no {what} {source[:200]!r}: "
    is_model = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) or _is(Path.is_dir, Path(source))
    if what != "recipe" or not is_model:
        return f"{said}give a .yaml file or one of the shipped names: {', '.join(_names(shipped))}"
    model, out = shlex.quote(source), shlex.quote(f"runs/{Path(source).resolve().name}")
    return (
        f"{said}if it is a model, one of these is meant:\n"
        f"  llm2enc convert llm2vec --model {model} -o {out}   # train it by LLM2Vec's method, or another recipe\n"
        f"  llm2enc convert {model} --training-free -o {out}   # convert and export it without training"
    )


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    try:
        return kind(path)
    except (OSError, ValueError):  # a name too long for the file system, or with a NUL in it
        return False


def _to_json(data: Any) -> str:
    try:
        return json.dumps(data, allow_nan=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"the recipe holds a value that is not plain data: {error}") from None


def _apply(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"override {override!r} is not of the form dotted.path=value")
    _put(data, path, json.loads(_to_json(_parse(text, f"the value of override {override[:200]!r}"))))


def _put(data: dict[str, Any], path: str, value: Any) -> None:
    """Set the field of a dotted path."""
    node: Any = data
    *parents, last = path.split(".")
    if len(parents) > 20:
        raise RecipeError(f"override {path[:200]!r}: no recipe is {len(parents)} levels deep")
    for depth, key in enumerate(parents):
        here = ".".join(parents[: depth + 1])
        if isinstance(node, list):
            node = node[_index(node, key, here)]
        elif isinstance(node, dict):
            node = node.setdefault(key, {})
        else:
            raise RecipeError(f"override {here}: {node!r} is a value, it has no fields")
    if isinstance(node, list):
        node[_index(node, last, path)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise RecipeError(f"override {path[:200]!r}: {'.'.join(parents)} is a value, it has no fields")


def _index(items: list[Any], key: str, path: str) -> int:
    named = [i for i, item in enumerate(items) if isinstance(item, dict) and item.get("objective") == key]
    if len(named) == 1:
        return named[0]
    if key.isdecimal() and len(key) <= len(str(len(items))) and int(key) < len(items):
        return int(key)
    reason = "several entries have that objective; use a number" if named else f"the list has {len(items)} entries"
    raise RecipeError(f"override {path[:200]}: no entry {key[:50]!r}: {reason}")


def _report(error: ValidationError) -> str:
    faults = error.errors()
    paths = [_path(fault["loc"]) for fault in faults]
    lines = []
    for fault, path in zip(faults, paths, strict=True):
        # A list whose only entry is wrong also counts as too short to pydantic; the entry's own fault says it all.
        if fault["type"] == "too_short" and any(other.startswith(f"{path}.") for other in paths):
            continue
        given = "" if fault["type"] in {"missing", "value_error"} else f" (given: {fault['input']!r:.80})"
        lines.append(f"  {path or 'recipe'}: {fault['msg'].removeprefix('Value error, ')}{given}")
    return "\n".join([f"the recipe has {len(lines)} fault(s):", *lines])


def _path(location: tuple[int | str, ...]) -> str:
    """The dotted path an override would use: pydantic also names the kind of a stage or source, behind its number, and
    which of its two forms `lora` has."""
    kept = [
        str(part)
        for place, part in enumerate(location)
        if not (place >= 2 and location[place - 2] in {"stages", "data", "evaluation"} and isinstance(part, str)
                and isinstance(location[place - 1], int))
        and not (place and location[place - 1] == "lora" and part in {"shape", "continue"})
        and not (place and location[place - 1] == "temperature" and part in {"fixed", "learned"})
    ]  # fmt: skip
    return ".".join(kept)

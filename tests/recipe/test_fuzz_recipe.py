"""Fuzzed recipes and overrides: what is accepted means what was written, all else is a RecipeError, and soon."""

import copy
import json
import time
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example
from hypothesis import strategies as st

from llm2enc.errors import RecipeError
from llm2enc.recipe import Recipe, load_recipe
from tests.recipe.test_recipe import small
from tests.support.fuzzing import SCALARS, STRINGS, TREES, fuzz, recipes

SECONDS = 10  # of computing, for what no recipe is; a shipped one takes 0.05


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "fuzzed.yaml"


def outcome(source: Any, overrides: tuple[str, ...] = ()) -> Recipe | str:
    """The recipe, or the message with which it is refused. Any other exception is a fault."""
    start = time.process_time()
    try:
        return load_recipe(source, overrides)
    except RecipeError as error:
        assert str(error)
        return str(error)
    finally:
        assert time.process_time() - start < SECONDS


def holds(read: Any, given: Any) -> bool:
    """Whether everything that was given stands in what was read, with its value and, but for 1 and 1.0, its type."""
    if isinstance(given, dict):
        return isinstance(read, dict) and all(key in read and holds(read[key], value) for key, value in given.items())
    if isinstance(given, list):
        return isinstance(read, list) and len(read) == len(given) and all(map(holds, read, given))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (read, given))
    return read == given and (numbers or type(read) is type(given))


# ------------------------------------------------------------------------------------------------------------- recipes


@example(data={**small(), "model": {"name": "1e5"}})  # no quotation marks from PyYAML, and a number in YAML 1.2
@example(data={**small(), "model": {"name": "08"}})
@example(data={**small(), "description": "a\x85b"})  # a line break to PyYAML, which writes it as it stands
@fuzz(20, data=recipes())
def test_a_valid_recipe_survives_its_yaml(path: Path, data: dict) -> None:
    recipe = load_recipe(data)
    assert holds(recipe.model_dump(mode="json"), data)
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(str(path)) == recipe


def places(node: Any, path: tuple = ()) -> list[tuple]:
    """Where something stands in plain data."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


def changed(data: dict, place: tuple, how: str, value: Any) -> dict:
    """The data with one change."""
    data = copy.deepcopy(data)
    node = data
    for key in place[:-1]:
        node = node[key]
    if how == "delete":
        del node[place[-1]]
    elif how == "rename" and isinstance(node, dict):
        node[f"{place[-1]}_"] = node.pop(place[-1])
    else:
        node[place[-1]] = value
    return data


MUTANTS = st.sampled_from(
    [-1, 0, 2**31, 2**63, 10**400, -(10**30), 1e308, "", "x" * 10_000, [], {}, [[]], True, "true", "1"]
)


@st.composite
def mutated(draw: st.DrawFn) -> dict:
    data = draw(recipes())
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places(data)[1:]))
        data = changed(data, place, draw(st.sampled_from(["delete", "rename", "set"])), draw(MUTANTS | TREES))
    return data


@fuzz(20, data=mutated())
def test_a_changed_recipe_is_read_as_it_stands_or_refused(data: dict) -> None:
    found = outcome(data)
    if isinstance(found, Recipe):
        assert holds(found.model_dump(mode="json"), data)
    else:
        assert "fault(s)" in found


# ---------------------------------------------------------------------------------------------------------------- yaml

TOKENS = [
    "\t",
    "\n",
    ": ",
    "- ",
    "#",
    "'",
    '"',
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "!!python/object:os.system ",
    "!!str ",
    "!!int ",
]
TOKENS += [
    "<<: *a",
    "? ",
    "|",
    ">",
    "---\n",
    "...\n",
    "%YAML 1.1\n",
    "\0",
    "\x07",
    "\x85",
    "\ufeff",
    "\r\n",
    "\r",
    "  ",
    "no",
    "1e5",
]
TOKENS += [
    "seed: 3\n",
    "pooling: last\n",
    "\n  steps: 7",
    "!!binary ",
    "!!timestamp ",
    "!!omap ",
    "!!set ",
    "~",
    "0x1F",
    "1_0",
    "007",
]


@st.composite
def broken_yaml(draw: st.DrawFn) -> bytes:
    text = yaml.safe_dump(draw(st.just(small()) | recipes()), sort_keys=draw(st.booleans()), allow_unicode=True)
    raw = text.replace("\n", draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))).encode()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(raw)))
        new = draw(st.sampled_from(TOKENS).map(str.encode) | st.binary(max_size=2))
        raw = raw[:at] + new + raw[at + draw(st.integers(0, 3)) :]
    return raw


def pairs_of(node: yaml.Node) -> Any:
    """What a YAML node says, all scalars as they are written; mappings as lists of pairs, so that none is lost."""
    if isinstance(node, yaml.MappingNode):
        return {"pairs": [(pairs_of(key), pairs_of(value)) for key, value in node.value]}
    if isinstance(node, yaml.SequenceNode):
        return [pairs_of(value) for value in node.value]
    return node


def meant(read: Any, said: Any) -> bool:
    """Whether a part of a recipe is what the text says, by the rules of YAML 1.2 worked out once more."""
    if isinstance(said, dict):
        keys = [key.value for key, _ in said["pairs"]]
        return len(set(keys)) == len(keys) and all(
            key in read and meant(read[key], v) for key, v in zip(keys, dict_values(said), strict=True)
        )
    if isinstance(said, list):
        return len(read) == len(said) and all(map(meant, read, said))
    text = said.value
    if isinstance(read, str):
        return read == text
    if isinstance(read, bool):
        return text.lower() == str(read).lower() and said.style is None
    if read is None:
        return text.lower() in {"", "~", "null"}
    try:
        return said.style is None and Decimal(repr(read)) == Decimal(repr(float(text)) if "." in repr(read) else text)
    except InvalidOperation:
        return False


def dict_values(said: dict) -> list:
    return [value for _, value in said["pairs"]]


@example(raw=yaml.safe_dump(small()).encode() + b"seed: 1\nseed: 2\n")  # the last one was taken without a word
@example(raw=yaml.safe_dump({k: v for k, v in small().items()}).replace("pooling", "seed: 1\nseed").encode())
@example(raw=b"\xef\xbb\xbf" + yaml.safe_dump(small()).encode())
@fuzz(40, raw=broken_yaml())
def test_broken_yaml_is_refused_or_means_what_is_written(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    found = outcome(str(path))
    if isinstance(found, Recipe):
        node = yaml.compose(raw.decode("utf-8"), yaml.BaseLoader)
        assert meant(found.model_dump(mode="json"), pairs_of(node))


@pytest.mark.parametrize("key", ["1e5", "010", "~", "true", "1.0", "null"])
def test_a_key_is_text_as_it_is_written(path: Path, key: str) -> None:
    data = small()
    data["input"]["prompts"] = {"KEY": "Find it"}
    path.write_text(yaml.safe_dump(data).replace("KEY", key), encoding="utf-8")
    assert list(load_recipe(str(path)).input.prompts) == [key]


def _laughs(depth: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, depth)]
    return "\n".join(lines)


MONSTERS = {
    "aliases": _laughs(12),
    "aliases as keys": "a: &a {x: 1}\n? *a\n: 1\n",
    "an alias in itself": "a: &a [*a]\n",
    "a mapping in itself": "seed: &a {b: *a}\n",
    "lists in lists": "seed: " + "[" * 10_000,
    "mappings in mappings": "seed: " + "{a: " * 10_000,
    "indents": "\n".join(" " * n + "a:" for n in range(2_000)),
    "dashes": "- " * 10_000,
    "a million digits": "seed: " + "1" * 10**6,
    "a long key": "x" * 10**6 + ": 1",
    "a long text": "name: " + "x" * 10**7,
    "many keys": "\n".join(f"k{n}: 1" for n in range(200_000)),
    "many quotation marks": "seed: " + "'" * 10**6,
    "many colons": ": " * 10**5,
    "questions": "? " * 5_000,
    "anchors": "&a " * 10_000,
    "tags": "seed: !!python/object/apply:os.system ['echo harm']",
    "NUL": "seed: 1\0",
    "float beyond": "seed: 1e999999999",
}


@pytest.mark.parametrize("name", MONSTERS)
def test_monsters_are_refused_soon(path: Path, name: str) -> None:
    path.write_text(MONSTERS[name], encoding="utf-8")
    assert isinstance(outcome(str(path)), str)


# ----------------------------------------------------------------------------------------------------------- overrides


def dotted(place: tuple) -> str:
    return ".".join(map(str, place))


@st.composite
def overridden(draw: st.DrawFn) -> tuple[dict, tuple, Any]:
    data = draw(st.just(small()) | recipes())
    usable = [p for p in places(data)[1:] if all(str(key) and "." not in str(key) and "=" not in str(key) for key in p)]
    place = draw(st.sampled_from(usable))
    return data, place, draw(SCALARS | STRINGS | TREES | MUTANTS)


@fuzz(25, case=overridden())
def test_an_override_is_the_same_as_an_edit(case: tuple) -> None:
    data, place, value = case
    text = json.dumps(value)  # every JSON text is YAML
    assert outcome(data, (f"{dotted(place)}={text}",)) == outcome(changed(data, place, "set", value))


KEYS = st.sampled_from(
    ["seed", "model", "name", "stages", "0", "1", "-1", "+1", "01", "9", "1" * 5000, "٣", "²", "", " ", "mntp"]
)


@example(keys=["stages", "1" * 5000], value="1")
@fuzz(80, keys=st.lists(KEYS | st.text(max_size=4), max_size=5), value=STRINGS | st.text(max_size=5))
def test_any_path_and_value_is_an_override_or_a_recipe_error(keys: list[str], value: str) -> None:
    data = small()
    found = outcome(data, (f"{'.'.join(keys)}={value}",))
    if isinstance(found, Recipe):
        assert found.to_yaml()
        assert holds(found.model_dump(mode="json"), {k: v for k, v in data.items() if k != keys[0]})


@pytest.mark.parametrize("path", ["a=b,c", "x=y=z", "a:b", "./a/*.jsonl", "C:\\a", "[a", "a b", "é", "1e5x"])
def test_a_path_is_taken_as_it_is_written(path: str) -> None:
    data = small()
    data["stages"][0]["data"] = [{"kind": "files", "path": "x"}]
    found = outcome(data, (f"stages.0.data.0.path={path}",))
    assert "not valid YAML" in found if path == "[a" else found.stages[0].data[0].path == path


@pytest.mark.parametrize("place", ["-1", "-0", "2", "99999999999999999999", "1" * 5000, "0x0", "1.0", "²"])
def test_an_entry_that_is_not_there_is_named(place: str) -> None:
    found = outcome(small(), (f"stages.{place}.steps=3",))
    assert isinstance(found, str) and f"stages.{place.split('.')[0]}"[:100] in found

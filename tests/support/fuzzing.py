"""What the fuzz tests share: how many cases a target gets, and strategies for texts, recipes and plain data.

    pytest tests/test_fuzz_*.py                                            the small set, the same cases every time
    LLM2ENC_FUZZ=50 pytest --hypothesis-show-statistics tests/test_fuzz_*  fifty times as many, others every time

benchmarks/fuzz.md has the counts of a long run and the faults it found.
"""

import json
import os
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Union

from annotated_types import Ge, Gt, Le, Lt
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from llm2enc.recipe import InputSpec, ModelSpec, Part, Recipe

TIMES = int(os.environ.get("LLM2ENC_FUZZ", "1"))


def fuzz(cases: int, *positional: st.SearchStrategy, **named: st.SearchStrategy) -> Callable:
    """`given`, with so many cases in the small set."""
    profile = settings(
        max_examples=cases * TIMES,
        derandomize=TIMES == 1,
        database=None,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if TIMES > 1 else [])],  # shrinking may take minutes
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: profile(given(*positional, **named)(test))


# --------------------------------------------------------------------------------------------------------------- texts

UNICODE = st.characters(exclude_categories=["Cs"])
SPECIAL = ["</s>", "<s>", "[INST]", "<|endoftext|>", "[CLS]", "<unk>", "<pad>", "<mask>", "<0x41>", "▁", "\ue000"]
STRANGE = [
    *[
        "😀",
        "👩‍👩‍👧",
        "🇩🇪",
        "中文",
        "日本語",
        "שלום",
        "مرحبا",
        "\u202eabc\u202c",
        "e\u0301",
        "\u0301",
        "ﷺ",
        "한국",
        "İ",
        "ß",
        "ﬁ",
    ],
    *[
        "\0",
        "\x1b[0m",
        "\x85",
        "\u2028",
        "\u00a0",
        "\u200b",
        "\ufeff",
        "\ufffd",
        "\U0010ffff",
        "\r\n",
        "\t\n",
        " ",
        "   ",
    ],
]
WORDS = ["fly ", " birds", "air", "the sea", "Query again:", ". Again: ", "; ", ": "]
_PIECES = st.sampled_from(WORDS) | st.sampled_from(STRANGE) | st.sampled_from(SPECIAL) | st.text(UNICODE, max_size=4)
TEXTS = st.lists(_PIECES, max_size=6).map("".join)
LONG_TEXTS = st.builds(lambda text, times: text * times, TEXTS, st.integers(1, 200))

# ---------------------------------------------------------------------------------------------------------- plain data

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
TREES = st.recursive(SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3))

# ------------------------------------------------------------------------------------------------------------- recipes

LOSSES = {f"llm2enc.recipe.{name}" for name in ("loss", "pair_scores", "teacher", "terms")}  # rules upon rules
_MEANT = [
    "no",
    "on",
    "1e5",
    "08",
    "1e-5",
    "0o7",
    "010",
    "1:30",
    "~",
    "null",
    "=",
    "<<",
    "a: b",
    "a #b",
    "- x",
    "{",
    "%",
    "'",
]
STRINGS = st.sampled_from(_MEANT) | TEXTS | st.text(UNICODE, max_size=6)


def plain(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Plain data of a recipe model, by its schema alone: optional fields come and go."""
    required, optional = {}, {}
    for name, field in model.model_fields.items():
        (required if field.is_required() else optional)[name] = _of(field.annotation, tuple(field.metadata))
    return st.fixed_dictionaries(required, optional=optional).map(lambda data: _consistent(model, data))


def _of(kind: Any, limits: tuple = ()) -> st.SearchStrategy:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _of(arguments[0], limits + tuple(part for a in arguments[1:] for part in getattr(a, "metadata", [a])))
    if origin in (Union, types.UnionType):
        return st.one_of([_of(argument, limits) for argument in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        if arguments[-1] is not Ellipsis:
            return st.tuples(*map(_of, arguments)).map(list)
        return st.lists(_of(arguments[0]), min_size=1, max_size=3)
    if origin is dict:
        return st.dictionaries(_of(arguments[0]), _of(arguments[1]), max_size=3)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return plain(kind)
    return _SCALAR[kind](limits)


def _number(limits: tuple, default: float) -> dict[str, Any]:
    low = next((limit.gt for limit in limits if isinstance(limit, Gt)), None)
    least = next((limit.ge for limit in limits if isinstance(limit, Ge)), low)
    high = next((limit.lt for limit in limits if isinstance(limit, Lt)), None)
    most = next((limit.le for limit in limits if isinstance(limit, Le)), high)
    return {
        "min_value": -default if least is None else least,
        "max_value": default if most is None else most,
        "exclude_min": low is not None,
        "exclude_max": high is not None,
    }


def _integers(limits: tuple) -> st.SearchStrategy[int]:
    range_ = _number(limits, 10**12)
    return st.integers(range_["min_value"] + range_["exclude_min"], range_["max_value"] - range_["exclude_max"])


_SCALAR: dict[Any, Callable[[tuple], st.SearchStrategy]] = {
    type(None): lambda limits: st.none(),
    bool: lambda limits: st.booleans(),
    str: lambda limits: STRINGS,
    int: _integers,
    float: lambda limits: st.floats(**_number(limits, 1e12)),
}


def _consistent(model: type[BaseModel], data: dict[str, Any]) -> dict[str, Any]:
    """The data with what no schema says put right: rules between fields."""
    data = dict(data)
    if model is Part:
        kinds = ("literal", "slot", "special", "token")
        kept = next((kind for kind in kinds if data.get(kind)), "slot")
        data = {key: value for key, value in data.items() if key not in kinds or key == kept}
        data[kept] = data.get(kept) or "text"
        if data.get("when") == "tokenizer" and data.get("special") not in ("bos", "eos"):
            data["when"] = None
        if data.get("slot") == "text" and data.get("when") == "title":
            data["when"] = None
        if data.get("slot") != "title" or data.get("when") is not None or data.get("empty") is None:
            data.pop("empty", None)
    if model is InputSpec:
        data |= _templates(data)
        if data.get("example") is None:
            data.pop("example", None)
    if data.get("unique_ids") and "in_batch_negatives" in data:
        data["in_batch_negatives"] = True
    if model.__module__ in LOSSES:
        return _valid(model, data)
    if "hard_negatives" in data and "objective" in data and "loss" in data:
        data["hard_negatives"] += 1
    if "steps" in data and "objective" in data:
        if data.get("schedule_steps") is not None:
            data["schedule_steps"] += data["steps"]
        data["warmup_steps"] = min(data.get("warmup_steps", 0), data["steps"])
        if data.get("trainable") == "full":
            data["lora"] = None
        for source in data["data"] if data["objective"] != "contrastive" else ():
            source.pop("unique_ids", None)
    if model is ModelSpec:
        data["name"] = data.get("name") or "m"
        if data.get("gguf") is not None:
            data["gguf"] += ".gguf"
    if model is Recipe:
        data["name"] = "r" + "".join(c for c in data["name"] if c.isascii() and c.isalnum())
        for stage in data.get("stages", []):
            if stage["objective"] == "mntp":
                data["model"]["attention"] = "bidirectional"
            if data["input"].get("example") is None and "in_context_examples" in stage:
                stage["in_context_examples"] = 0
        for before, stage in zip(
            [{"trainable": "full"}, *data.get("stages", [])], data.get("stages", []), strict=False
        ):
            if stage.get("lora") == "continue" and before.get("trainable") == "full":
                stage["lora"] = None
        if all(stage["objective"] in ("clm", "mntp") for stage in data.get("stages", [])):
            data.pop("head", None)
    return data


def _templates(data: dict[str, Any]) -> dict[str, Any]:
    """Templates whose slots are where they belong."""
    text = {"slot": "text", "pool": True}
    query = [part for part in data["query"] if part.get("slot") not in ("title", "examples")]
    document = [part for part in data["document"] if part.get("slot") not in ("instruction", "examples", "title")]
    title = [part for part in data["document"] if part.get("slot") == "title" and part.get("when") != "title"][:1]
    example, most = data.get("example"), data.get("max_tokens", 512)
    if example is not None:
        query = [part for part in query if part.get("slot") != "text" and not part.get("token")]
        query.append({"slot": "examples"})
        most = max(most, example.get("reserve", 512) + 1)
    for part in query + ([] if title else document):
        if part.get("when") == "title":
            part["when"] = None
    return {"query": [*query, text], "document": [*title, *document, text], "max_tokens": most}


def _valid(model: type[BaseModel], data: dict[str, Any]) -> dict[str, Any]:
    """The data without the fields, from the first on, that keep it from being valid."""
    if data.get("pair_scores"):
        data["pair_scores"] = data["pair_scores"][:1]
    for name in [*(name for name, field in model.model_fields.items() if not field.is_required() and name in data), ""]:
        try:
            model.model_validate_json(json.dumps(data))
            break
        except ValidationError:
            data.pop(name, None)
    return data


def recipes() -> st.SearchStrategy[dict[str, Any]]:
    """Plain data of valid recipes."""
    return plain(Recipe)

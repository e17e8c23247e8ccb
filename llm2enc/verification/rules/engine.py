"""What an engine's table holds, and the comparison of a directory with it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from llm2enc.verification.rules.model_files import ENCODERS, ModelFiles

Verdict = Literal["agrees", "differs", "unsupported", "unknown"]
_ELSE = "serve it by sentence-transformers"


@dataclass(frozen=True)
class RuleResult:
    """One point in which an engine was compared with the directory."""

    engine: str
    version: str
    """The release whose sources the rule was read from."""
    verdict: Verdict
    message: str
    remedy: str = ""
    """A flag of the engine or an option of the export; empty where nothing is to be done or nothing helps."""


class Rule(NamedTuple):
    """A point of its own, for some model types or all: where `found` gives something, `{}` of the message holds it."""

    verdict: Verdict
    message: str
    found: Callable[[ModelFiles], object]
    families: tuple[str, ...] = ()
    remedy: str = ""


@dataclass(frozen=True)
class EngineRules:
    """What an engine reads of a directory, and what it does then. The key "" of a table is for all others."""

    name: str
    version: str
    family: Callable[[ModelFiles], str]
    """By what it finds the code of a model: its model type or its architecture."""
    direction: dict[str, str | tuple[str, bool]]
    """By family: causal, unknown, unsupported, or the key of config.json, and its value, that makes it bidirectional."""
    pooling: dict[str, str] | None
    """By pooling in the files: what it pools; without "" it stops. None: all as sentence-transformers, prompts too."""
    remedies: dict[str, str]
    """By pooling, `direction`, `normalize` (formats), `prompt` and `limit`: how the engine is told."""
    rules: tuple[Rule, ...]
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By model type, and under "": keys of config.json that must be there in that type."""
    graphs: tuple[str, ...] = ()
    """Files with a graph, by which it runs any family."""
    pooling_modules: tuple[str, ...] = ()
    """Class paths in modules.json by which it finds the pooling; without them by 1_Pooling/config.json."""
    always_normalizes: bool = True
    """Whatever modules.json says."""


def apply(engine: EngineRules, files: ModelFiles) -> list[RuleResult]:
    """What the engine would do alike or otherwise, one result per point."""
    points = (_direction, _pooling, _normalize, _texts, _rules)
    return [RuleResult(engine.name, engine.version, *said) for point in points for said in point(engine, files)]


_Said = Iterator[tuple[Any, ...]]  # verdict, message and, where there is one, remedy


def _direction(engine: EngineRules, files: ModelFiles) -> _Said:
    family = engine.family(files)
    runs = "bidirectional" if files.model_type in ENCODERS else engine.direction.get(family, engine.direction[""])
    remedy = _ELSE
    if not isinstance(runs, str):
        key, value = runs
        remedy = engine.remedies["direction"].format(f'"{key}": {json.dumps(value)}')
        runs = "bidirectional" if files.config.get(key) is value else "causal"
    if runs in ("unknown", "unsupported") and any(map(files.has, engine.graphs)):
        yield "agrees", "images for CPUs run the ONNX file, in whose graph the attention is fixed"
    elif runs == "unknown":
        yield "unknown", f"nothing is known here of {family}", "compare with golden vectors"
    elif runs == "unsupported":
        yield "unsupported", f"{family} is not built in", f"add {engine.graphs[-1]}, which its CPU images run"
    elif runs == files.attention:
        yield "agrees", f"{family} runs with {runs} attention"
    else:
        message = f"{family} would run with {runs} attention, and no error; {files.attention} is meant"
        yield "differs", message, remedy if runs == "causal" else ""


def _pooling(engine: EngineRules, files: ModelFiles) -> _Said:
    if engine.pooling is None:
        return
    types = {*(files.modules or [])} & {*engine.pooling_modules}
    found = types if engine.pooling_modules else files.has("1_Pooling/config.json")
    default = engine.pooling.get("")
    if files.model_type in ENCODERS and (default or not found):
        default = "first"
    pooled = engine.pooling.get(files.stated_pooling, default) if found else default
    remedy = engine.remedies.get(files.pooling, _ELSE)
    if pooled is None:
        what = f"the pooling {files.stated_pooling}" if found else "a directory without 1_Pooling/config.json"
        yield "unsupported", f"it stops at {what}", remedy
    elif pooled != files.pooling:
        yield "differs", f"pools {pooled}; {files.pooling} is meant", remedy
    else:
        yield "agrees", f"pools {pooled}"


def _normalize(engine: EngineRules, files: ModelFiles) -> _Said:
    normalizes = engine.always_normalizes or files.modules is None or files.normalizes
    if normalizes != files.normalize:
        length = "at length 1" if normalizes else "as they are"
        yield (
            "differs",
            f"vectors come {length}, which is not meant; directions are right",
            engine.remedies.get("normalize", "").format(str(files.normalize).lower()),
        )


def _texts(engine: EngineRules, files: ModelFiles) -> _Said:
    """Prompts and the limit."""
    excluded = files.pooling_config and not files.pooling_config.get("include_prompt", True)
    if engine.pooling and excluded and files.pooling == "mean" and files.prompts:
        yield "differs", "the prompt's tokens are pooled, which is not meant", _ELSE
    if files.default_prompt:
        said = f"no prompt is put before a text; sentence-transformers puts {files.default_prompt!r} by default"
        yield "differs", said, engine.remedies["prompt"]
    if "limit" in engine.remedies:
        yield "agrees", f"takes texts of up to {files.limit} tokens, and refuses longer ones", engine.remedies["limit"]


def _rules(engine: EngineRules, files: ModelFiles) -> _Said:
    wanted = engine.fields.get("", {}) | engine.fields.get(files.model_type, {})
    if bad := [key for key, kind in wanted.items() if not isinstance(files.config.get(key), kind)]:
        yield "unsupported", f"it does not start: config.json has no {', '.join(bad)} of the type it reads"
    for rule in engine.rules:
        if (not rule.families or files.model_type in rule.families) and (found := rule.found(files)):
            yield rule.verdict, rule.message.format(found), rule.remedy
    if files.reason:  # every engine reads what sentence-transformers reads, so none can do better
        yield "differs", files.reason, "serve it by llm2enc"

"""compare.json: a comparison as plain data and back, at full precision and with the items behind every score."""

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from llm2enc.comparison.results import Candidate, Comparison, Difference, Layers, PrefixTest, Similarities
from llm2enc.evaluation import Interval, Outcome

FORMAT = 1


def to_json(comparison: Comparison) -> dict[str, Any]:
    """What `json.dump` takes. An array is its dtype and its values."""
    return {"format": FORMAT, **_plain(comparison)}


def from_json(data: dict[str, Any]) -> Comparison:
    """The comparison that `to_json` was given. ValueError if the data is of another format."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise ValueError(
            f"a compare.json of format {FORMAT} is expected, this one has {found!r}; measure again with "
            "`llm2enc compare`"
        )
    given = {name: value for name, value in data.items() if name != "format"}
    baseline = given["baseline"]
    return Comparison(
        **given
        | {
            "candidates": [_candidate(one) for one in given["candidates"]],
            "differences": [
                Difference(**one | {"interval": Interval(**one["interval"])}) for one in given["differences"]
            ],
            "layers": [_layers(one) for one in given["layers"]],
            "baseline": _candidate(baseline) if baseline else None,
        }
    )


def _plain(value: Any) -> Any:
    """Dataclasses, arrays and numpy's numbers as what JSON knows."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "values": value.tolist()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _candidate(data: dict[str, Any]) -> Candidate:
    prefix = data["prefix"]
    return Candidate(
        **data
        | {
            "outcomes": [Outcome(**one | {"items": _array(one["items"])}) for one in data["outcomes"]],
            "intervals": [Interval(**one) for one in data["intervals"]],
            "mean": Interval(**data["mean"]),
            "similarities": Similarities(**{name: _array(one) for name, one in data["similarities"].items()}),
            "prefix": PrefixTest(Interval(**prefix["accuracy"]), prefix["moved"]) if prefix else None,
        }
    )


def _layers(data: dict[str, Any]) -> Layers:
    return Layers(**data | {"gain": Interval(**data["gain"]) if data["gain"] else None})


def _array(data: dict[str, Any]) -> np.ndarray:
    return np.array(data["values"], dtype=data["dtype"])

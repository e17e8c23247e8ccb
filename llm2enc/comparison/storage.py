"""compare.json: a comparison as plain data, at full precision and with the items behind every score."""

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from llm2enc.comparison.results import Comparison

FORMAT = 2  # 1 called the systems candidates


def to_json(comparison: Comparison) -> dict[str, Any]:
    """What `json.dump` takes. An array is its dtype and its values."""
    return {"format": FORMAT, **_plain(comparison)}


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

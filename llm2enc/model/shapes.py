"""Published configurations of well-known models, for plans where their config.json cannot be reached.

shapes.json has the numbers of each repository's config.json that sizes depend on, by hub id. The tests compare the
parameters that they give with the published ones.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2enc.model.families import with_common_direction
from llm2enc.model.layers import cut
from llm2enc.recipe import ModelSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@lru_cache
def shapes() -> dict[str, dict[str, Any]]:
    """The numbers of each config.json, by hub id."""
    return json.loads((Path(__file__).parent / "shapes.json").read_text(encoding="utf-8"))


def published_config(spec: ModelSpec) -> "PretrainedConfig | None":
    """The configuration of the layers that a spec keeps, from the published numbers; None if none are known here."""
    from transformers import AutoConfig

    if spec.name not in shapes():
        return None
    return cut(with_common_direction(AutoConfig.for_model(**shapes()[spec.name])), spec.layers, False)

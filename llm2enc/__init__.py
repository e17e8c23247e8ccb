"""llm2enc: turn a decoder-only language model into a proven text encoder.

from llm2enc import Encoder, convert, load_recipe

result = convert(load_recipe("pocket"), "runs/pocket")
Encoder.load("runs/pocket/model").encode(["a text"])        # (1, D) float32
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llm2enc.recipe import Recipe, RecipeError, load_recipe, recipe_names

if TYPE_CHECKING:
    from llm2enc.backbone import CannotConvert
    from llm2enc.conversion import convert
    from llm2enc.encoder import Encoder
    from llm2enc.inspection import inspect

__version__ = "0.1.0"
__all__ = ["CannotConvert", "Encoder", "Recipe", "RecipeError", "convert", "inspect", "load_recipe", "recipe_names"]

# Loaded on first use: these import torch, which takes seconds that reading a recipe does not need.
_LAZY = {
    "CannotConvert": "llm2enc.backbone",
    "Encoder": "llm2enc.encoder",
    "convert": "llm2enc.conversion",
    "inspect": "llm2enc.inspection",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)

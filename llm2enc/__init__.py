"""llm2enc: turn a decoder-only language model into a proven text encoder.

from llm2enc import Encoder, convert, load_recipe

result = convert(load_recipe("pocket"), "runs/pocket")
Encoder.load("runs/pocket/model").encode(["a text"])        # (1, D) float32
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm2enc.comparison import compare
    from llm2enc.conversion import convert
    from llm2enc.encoding import Encoder
    from llm2enc.engine import mine
    from llm2enc.errors import CannotConvert, RecipeError
    from llm2enc.model import inspect
    from llm2enc.recipe import Recipe, load_recipe, recipe_names

__version__ = "0.1.0"
__all__ = [
    "CannotConvert", "Encoder", "Recipe", "RecipeError", "compare", "convert", "inspect", "load_recipe", "mine",
    "recipe_names",
]  # fmt: skip

# Loaded on first use: torch takes seconds and pydantic a fifth of one, which `llm2enc --help` does not need.
_HOMES = {
    "CannotConvert": "llm2enc.errors",
    "Encoder": "llm2enc.encoding",
    "Recipe": "llm2enc.recipe",
    "RecipeError": "llm2enc.errors",
    "compare": "llm2enc.comparison",
    "convert": "llm2enc.conversion",
    "inspect": "llm2enc.model",
    "load_recipe": "llm2enc.recipe",
    "mine": "llm2enc.engine",
    "recipe_names": "llm2enc.recipe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

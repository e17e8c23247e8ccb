"""Planning: memory, time and disk of a recipe on given devices, before anything is loaded."""

from llm2enc.planning.devices import here, parse
from llm2enc.planning.report import show
from llm2enc.planning.run import SHARE, plan

__all__ = [
    "SHARE",
    "here",
    "parse",
    "plan",
    "show",
]

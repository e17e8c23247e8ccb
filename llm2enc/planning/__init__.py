"""Planning: memory, time and disk of a recipe on given devices, before anything is loaded."""

from llm2enc.planning import report
from llm2enc.planning.devices import here, parse
from llm2enc.planning.run import SHARE, Plan, plan

__all__ = [
    "SHARE",
    "Plan",
    "here",
    "parse",
    "plan",
    "report",
]

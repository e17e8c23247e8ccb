"""Comparison: attention, template, pooling and layer variants of models on the same texts, with paired intervals."""

from llm2enc.comparison import plots
from llm2enc.comparison.run import compare, save
from llm2enc.comparison.systems import systems_of
from llm2enc.comparison.table import table

__all__ = [
    "compare",
    "plots",
    "save",
    "systems_of",
    "table",
]

"""Merging: several encoders of one base become one."""

from llm2enc.merging.checks import wrong_arguments
from llm2enc.merging.measuring import check_sources, scores
from llm2enc.merging.run import check_alike, merge

__all__ = [
    "check_alike",
    "check_sources",
    "merge",
    "scores",
    "wrong_arguments",
]

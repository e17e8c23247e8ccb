"""Merging: several encoders of one base become one."""

from llm2enc.merging.measuring import check_sources, scores
from llm2enc.merging.run import merge

__all__ = [
    "check_sources",
    "merge",
    "scores",
]

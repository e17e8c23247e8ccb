"""Data audit: what a data source holds, as the model will see it, and what is wrong with it."""

from llm2enc.audit.printing import print_report
from llm2enc.audit.run import examine

__all__ = [
    "examine",
    "print_report",
]

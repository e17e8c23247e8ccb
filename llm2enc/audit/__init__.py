"""Data audit: what a data source holds, as the model will see it, and what is wrong with it."""

from llm2enc.audit.checks.quality import plural
from llm2enc.audit.report import Finding, Report, SourceReport
from llm2enc.audit.run import examine
from llm2enc.audit.show import marked

__all__ = [
    "Finding",
    "Report",
    "SourceReport",
    "examine",
    "marked",
    "plural",
]

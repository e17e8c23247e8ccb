"""Data audit: what a data source holds, as the model will see it, and what is wrong with it."""

from llm2enc.audit.checks.contamination import Shingles, shingles
from llm2enc.audit.checks.quality import plural
from llm2enc.audit.chunks import keys_of
from llm2enc.audit.report import Finding, Report, SourceReport
from llm2enc.audit.run import examine
from llm2enc.audit.show import marked

__all__ = [
    "Finding",
    "Report",
    "Shingles",
    "SourceReport",
    "examine",
    "keys_of",
    "marked",
    "plural",
    "shingles",
]

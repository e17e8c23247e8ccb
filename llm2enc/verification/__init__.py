"""Verification: whether other programs return the vectors of a saved directory."""

from llm2enc.verification.report import Parity, Report, write_card
from llm2enc.verification.run import AT_THE_END_OF_A_CONVERSION, verify
from llm2enc.verification.third_party import ForeignReport, verify_foreign

__all__ = [
    "AT_THE_END_OF_A_CONVERSION",
    "ForeignReport",
    "Parity",
    "Report",
    "verify",
    "verify_foreign",
    "write_card",
]

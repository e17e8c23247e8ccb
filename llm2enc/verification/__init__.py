"""Verification: whether other programs return the vectors of a saved directory."""

from llm2enc.verification.report import Parity, Report, write_card
from llm2enc.verification.run import AT_THE_END_OF_A_CONVERSION, verify
from llm2enc.verification.third_party import ThirdPartyReport, verify_third_party

__all__ = [
    "AT_THE_END_OF_A_CONVERSION",
    "Parity",
    "Report",
    "ThirdPartyReport",
    "verify",
    "verify_third_party",
    "write_card",
]

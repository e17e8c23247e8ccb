"""Does an encoder's directory mean the same everywhere? `verify` asks it of ours, `verify_foreign` of any other.

report = verify("runs/pocket/model")
report.agrees, report.to_json(); table.show(report); write_card(folder, report)
"""

from llm2enc.verify.directory import AT_THE_END_OF_A_CONVERSION, ENGINES, verify
from llm2enc.verify.foreign import Check, ForeignReport, verify_foreign
from llm2enc.verify.report import Parity, Report, write_card

__all__ = [
    "AT_THE_END_OF_A_CONVERSION", "ENGINES", "Check", "ForeignReport", "Parity", "Report", "verify", "verify_foreign",
    "write_card",
]  # fmt: skip

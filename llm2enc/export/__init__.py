"""Other formats of a saved directory: ONNX, OpenVINO, GGUF, a PEFT adapter, mteb's metadata, and the hub."""

from llm2enc.export.hub import check_login, check_repo, push
from llm2enc.export.run import DIRECTORY, FORMATS, Source, export, summaries, why_not

__all__ = [
    "DIRECTORY",
    "FORMATS",
    "Source",
    "check_login",
    "check_repo",
    "export",
    "push",
    "summaries",
    "why_not",
]

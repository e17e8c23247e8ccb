"""The saved directory: sentence-transformers' layout, metadata and model card, written and read back as parts."""

from llm2enc.artifact import card, config, files, head_files
from llm2enc.artifact.card import base_model, with_engines
from llm2enc.artifact.directory import DTYPES, REQUIREMENTS, read, write
from llm2enc.artifact.files import (
    METADATA_FILE,
    check_target,
    write_json,
)
from llm2enc.artifact.generator import write_generator
from llm2enc.artifact.integrity import digests
from llm2enc.artifact.metadata import (
    HistoryRow,
    MergeRecord,
    Metadata,
    Parent,
    ProofRecord,
    read_metadata,
    write_metadata,
)
from llm2enc.artifact.parts import Parts
from llm2enc.artifact.tokenizer import Layout, asked, layout

__all__ = [
    "DTYPES",
    "METADATA_FILE",
    "REQUIREMENTS",
    "HistoryRow",
    "Layout",
    "MergeRecord",
    "Metadata",
    "Parent",
    "Parts",
    "ProofRecord",
    "asked",
    "base_model",
    "card",
    "check_target",
    "config",
    "digests",
    "files",
    "head_files",
    "layout",
    "read",
    "read_metadata",
    "with_engines",
    "write",
    "write_generator",
    "write_json",
    "write_metadata",
]

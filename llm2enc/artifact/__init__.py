"""The saved directory: sentence-transformers' layout, metadata and model card, written and read back as parts."""

from llm2enc.artifact import card, config, dense, files
from llm2enc.artifact.card import base_model, with_engines
from llm2enc.artifact.directory import DTYPES, REQUIREMENTS, read, write
from llm2enc.artifact.files import (
    FACTS,
    check_target,
    read_facts,
    recipes_of,
    write_json,
)
from llm2enc.artifact.parts import Parts
from llm2enc.artifact.tokenizer import Layout, asked, layout

__all__ = [
    "DTYPES",
    "FACTS",
    "REQUIREMENTS",
    "Layout",
    "Parts",
    "asked",
    "base_model",
    "card",
    "check_target",
    "config",
    "dense",
    "files",
    "layout",
    "read",
    "read_facts",
    "recipes_of",
    "with_engines",
    "write",
    "write_json",
]

"""Docstrings of the installed packages: prose that every machine has, without a download."""

from llm2enc.data.docstrings.corpus import (
    DEFAULT_PACKAGES,
    Docstring,
    pair_view,
    paragraph_view,
    read_docstrings,
    sentence_view,
)

__all__ = ["DEFAULT_PACKAGES", "Docstring", "pair_view", "paragraph_view", "read_docstrings", "sentence_view"]

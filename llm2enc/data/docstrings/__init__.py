"""Docstrings of the installed packages: prose that every machine has, without a download."""

from llm2enc.data.docstrings.corpus import (
    DEFAULT_PACKAGES,
    Docstring,
    docstrings,
    pair_view,
    paragraph_view,
    sentence_view,
)

__all__ = ["DEFAULT_PACKAGES", "Docstring", "docstrings", "pair_view", "paragraph_view", "sentence_view"]

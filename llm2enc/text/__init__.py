"""Texts as tokens: packed rows of several texts, and the templates that make them."""

from llm2enc.text.template import InputFormat, surrounding
from llm2enc.text.tokens import Tokens, concatenate, mini_batches

__all__ = [
    "InputFormat",
    "Tokens",
    "concatenate",
    "mini_batches",
    "surrounding",
]

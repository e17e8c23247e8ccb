"""Texts as tokens: packed rows of several texts, and the templates that make them."""

from llm2enc.text.tokens import InputFormat, Tokens, concatenate, mini_batches, surrounding

__all__ = [
    "InputFormat",
    "Tokens",
    "concatenate",
    "mini_batches",
    "surrounding",
]

"""Texts as tokens: packed rows of several texts, and the templates that make them."""

from llm2enc.text.own_tokens import for_tokenizer, plain_marks, surrounding
from llm2enc.text.template import InputFormat
from llm2enc.text.tokens import Tokens, concatenate, mini_batches

__all__ = [
    "InputFormat",
    "Tokens",
    "concatenate",
    "for_tokenizer",
    "mini_batches",
    "plain_marks",
    "surrounding",
]

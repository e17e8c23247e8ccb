"""Texts as tokens: packed rows of several texts, and the templates that make them."""

from llm2enc.text.own_tokens import for_tokenizer, plain_marks, surrounding
from llm2enc.text.passage import Example, Passage
from llm2enc.text.probes import PROBES
from llm2enc.text.template import InputFormat
from llm2enc.text.tokens import Tokens, concatenate, micro_batches

__all__ = [
    "PROBES",
    "Example",
    "InputFormat",
    "Passage",
    "Tokens",
    "concatenate",
    "for_tokenizer",
    "micro_batches",
    "plain_marks",
    "surrounding",
]

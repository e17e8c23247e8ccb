"""Conversion: the whole run, from a causal language model to an exported and verified encoder."""

from llm2enc.conversion.run import convert, gains, training_free

__all__ = [
    "convert",
    "gains",
    "training_free",
]

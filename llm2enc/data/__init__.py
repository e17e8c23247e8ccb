"""Data: from the sources of a recipe to an endless, resumable sequence of batches."""

from llm2enc.data.batches import RowBatch, block_batches, pair_batches, text_batches
from llm2enc.data.formats import Recognised, recognise
from llm2enc.data.rows import Pair
from llm2enc.data.sources import examine, read_pairs, read_texts

__all__ = [
    "Pair",
    "Recognised",
    "RowBatch",
    "block_batches",
    "examine",
    "pair_batches",
    "read_pairs",
    "read_texts",
    "recognise",
    "text_batches",
]

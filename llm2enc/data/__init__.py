"""Training data: from the sources of a recipe to an endless, resumable sequence of batches."""

from llm2enc.data.batches import RowBatch, block_batches, row_batches
from llm2enc.data.cells import titled
from llm2enc.data.docstrings.corpus import docstrings, pair_view
from llm2enc.data.rows import Pair, RowKind, Rows, ScoredPair, Stream
from llm2enc.data.sources import examine, read_texts, schema_of, source_name
from llm2enc.data.tables import open_table

__all__ = [
    "Pair",
    "RowBatch",
    "RowKind",
    "Rows",
    "ScoredPair",
    "Stream",
    "block_batches",
    "docstrings",
    "examine",
    "open_table",
    "pair_view",
    "read_texts",
    "row_batches",
    "schema_of",
    "source_name",
    "titled",
]

"""Training data: from the sources of a recipe to an endless, resumable sequence of batches."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llm2enc.data.content import check_texts, grades
from llm2enc.data.files import is_pipe
from llm2enc.data.rows import Dialogue, Pair, RowKind, Rows, ScoredPair, Stream
from llm2enc.data.spool import Spool
from llm2enc.data.text_files import TextRows, read_text_files

if TYPE_CHECKING:
    from llm2enc.data import beir, lines
    from llm2enc.data.batches import RowBatch, block_batches, row_batches
    from llm2enc.data.cells import titled
    from llm2enc.data.docstrings.corpus import pair_view, read_docstrings
    from llm2enc.data.identity import content_digest
    from llm2enc.data.sources import examine, head, read_dialogues, read_texts, schema_of, source_name
    from llm2enc.data.tables import open_table

__all__ = [
    "Dialogue",
    "Pair",
    "RowBatch",
    "RowKind",
    "Rows",
    "ScoredPair",
    "Spool",
    "Stream",
    "TextRows",
    "beir",
    "block_batches",
    "check_texts",
    "content_digest",
    "examine",
    "grades",
    "head",
    "is_pipe",
    "lines",
    "open_table",
    "pair_view",
    "read_dialogues",
    "read_docstrings",
    "read_text_files",
    "read_texts",
    "row_batches",
    "schema_of",
    "source_name",
    "titled",
]

# Loaded on first use: tables need datasets and pyarrow, which reading plain files of texts does not.
_HOMES = {
    "RowBatch": "llm2enc.data.batches",
    "block_batches": "llm2enc.data.batches",
    "content_digest": "llm2enc.data.identity",
    "read_docstrings": "llm2enc.data.docstrings.corpus",
    "examine": "llm2enc.data.sources",
    "head": "llm2enc.data.sources",
    "open_table": "llm2enc.data.tables",
    "pair_view": "llm2enc.data.docstrings.corpus",
    "read_dialogues": "llm2enc.data.sources",
    "read_texts": "llm2enc.data.sources",
    "row_batches": "llm2enc.data.batches",
    "schema_of": "llm2enc.data.sources",
    "source_name": "llm2enc.data.sources",
    "titled": "llm2enc.data.cells",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

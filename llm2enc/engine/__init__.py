"""The data engine: rows in, rows out, in steps that can be interrupted anywhere and say what became of every row."""

from llm2enc.engine.exact_search import search
from llm2enc.engine.journal import Block, Counts, Journal
from llm2enc.engine.mining import mine
from llm2enc.engine.selection import Selection

__all__ = ["Block", "Counts", "Journal", "Selection", "mine", "search"]

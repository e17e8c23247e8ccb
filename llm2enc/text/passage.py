"""What a caller can give besides plain texts: documents with a title, and in-context examples."""

from typing import NamedTuple


class Passage(str):
    """A document with a title: title, space and body as one str, for all that reads texts; a template with a title slot
    reads the two apart."""

    parts: tuple[str, str]
    """Title and body."""

    def __new__(cls, title: str, body: str) -> "Passage":
        passage = super().__new__(cls, f"{title} {body}".strip())
        passage.parts = (title, body)
        return passage

    def __getnewargs__(self) -> tuple[str, str]:
        return self.parts


class Example(NamedTuple):
    """A query and a document that answers it, shown to the model before another query."""

    instruction: str
    query: str
    document: str

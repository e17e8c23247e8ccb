"""What is measured before, between and after the stages."""

from typing import Annotated, Literal

from pydantic import Field

from llm2enc.recipe.base import PositiveInt, Strict


class DocstringEval(Strict):
    """Retrieval and graded similarity on held-out docstrings."""

    kind: Literal["docstrings"]
    documents: PositiveInt = 1000


class FolderEval(Strict):
    """Task folders of the eight MTEB types, and BEIR data sets (evaluation/folders.py)."""

    kind: Literal["folder"]
    path: str
    tasks: tuple[str, ...] | None = None
    """Folder names; all tasks by default."""


EvalSpec = Annotated[DocstringEval | FolderEval, Field(discriminator="kind")]

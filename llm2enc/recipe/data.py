"""Where rows come from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llm2enc.recipe.base import PositiveInt, Strict

DataFormat = Literal[
    "auto", "columns", "sentence-transformers", "flagembedding", "gritlm", "tevatron", "ms-swift", "beir"
]
ColumnRole = Literal[
    "text",
    "query",
    "positive",
    "negatives",
    "instruction",
    "score",
    "scores",
    "positive_scores",
    "negative_scores",
    "messages",
    "prompt",
    "response",
]


class BaseData(Strict):
    name: str | None = None
    """Label in logs and tables; the path or hub id by default."""
    columns: dict[ColumnRole, str] = Field(default_factory=dict)
    """Which column of the source plays which role; a role not named here is looked up under its own name."""
    instruction: str = ""
    """Instruction of the queries, for rows that carry none of their own."""
    symmetric: bool = False
    """Both sides are of the same kind (paraphrases): documents carry the instruction too."""
    in_batch_negatives: bool = True
    """False for class labels, where another row's positive may be right too: only own hard negatives count."""
    unique_ids: bool = False
    """For class labels, beside in-batch negatives (Gecko, arXiv 2403.20327): in training a number that no other row has
    stands behind the query, its positive and its negatives, so that another row's document, though of the same label, is
    the wrong one."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of this source: rows per epoch are size x weight."""
    limit: PositiveInt | None = None
    """Use the first so many rows only."""

    @model_validator(mode="after")
    def _ids(self) -> "BaseData":
        if self.unique_ids and not self.in_batch_negatives:
            raise ValueError(
                "`unique_ids` tells the rows of a batch apart, and with `in_batch_negatives: false` they do not meet; "
                "give one of the two"
            )
        return self


class FilesData(BaseData):
    """Local .jsonl, .json, .csv, .tsv, .txt (each also .gz, .bz2 or .zst) or .parquet files, or a BEIR folder."""

    kind: Literal["files"]
    path: str | tuple[str, ...]
    """File, glob or list of them, or one BEIR folder; a relative path is taken from the working directory."""
    format: DataFormat = "auto"
    """Which columns of a table of pairs are what (data/formats.py); `auto` goes by their names and types, `columns`
    goes before it."""
    view: Literal["texts"] | None = None
    """`texts`, for a stage that reads texts: if the table has no column of texts but pairs, the query and the positive of
    each pair."""
    split: str | None = None
    """Judgements of a BEIR folder to train on, a file of its qrels/; by default `train`, or qrels.tsv."""
    streaming: bool = False
    """Read on the fly instead of writing an Arrow copy first; rows then come in the order of the files, shuffled in a
    window of 10,000. A .json file that is one array is read whole all the same."""


class HubData(BaseData):
    """A parquet-backed data set of the Hugging Face hub."""

    kind: Literal["hub"]
    path: str
    """Repository id, e.g. `Salesforce/wikitext`."""
    format: DataFormat = "auto"
    """As for files."""
    view: Literal["texts"] | None = None
    """As for files."""
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: str | tuple[str, ...] | None = None
    """Files of the repository, for repositories that hold more than one table."""
    streaming: bool = False
    """Read on the fly instead of downloading first; rows then come in the order of the source, shuffled in a window."""


class DocstringsData(BaseData):
    """Docstrings of the installed packages: prose that every machine has."""

    kind: Literal["docstrings"]
    view: Literal["paragraphs", "sentences", "pairs"] = "paragraphs"
    """`pairs`: the first sentence is the query, the rest of the docstring the document."""
    split: Literal["train", "heldout"] = "train"
    """Held-out modules are chosen by a hash of the module's top two names and never trained on."""
    packages: tuple[str, ...] | None = None
    """Import names; by default the standard library and what llm2enc depends on."""


DataSpec = Annotated[FilesData | HubData | DocstringsData, Field(discriminator="kind")]

"""llm2enc.json: what `read` needs, how the model was made, and where other programs read it differently.

Format 1. A key that this release does not know is kept when the file is rewritten; only `input` refuses one, because it
would change what the model reads. Another format is refused.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_serializer

from llm2enc.artifact.files import METADATA_FILE, write_json
from llm2enc.errors import InputError
from llm2enc.recipe import HeadSpec, InputSpec, LatentAttentionSpec, Pooling
from llm2enc.storage import recover

FORMAT = 1

RecipeJson = dict[str, Any]
"""A recipe as the release that trained wrote it: opening a model must not depend on today's rules for recipes."""


class _Record(BaseModel):
    """A JSON object; keys that it does not name are kept."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class Difference(_Record):
    """One input that a program which opens the directory reads differently."""

    prompt: str
    probe: str
    kind: Literal["prompt", "ids", "pool"]
    """`prompt`: it cannot be said as a prefix; `ids`: other tokens; `pool`: other tokens enter the vector."""


class TokenizerChange(_Record):
    """What the saved tokenizer names otherwise than the model's own (see `prompt_masking.restore`)."""

    special: str | None
    """A token of the suffix that was made special."""
    plain: dict[str, str]
    """Attribute to token (bos_token, <s>) of those that are not named as special."""


class ProofRecord(_Record):
    """What `llm2enc.model.prove` measured when the directory was written."""

    layers: int
    leak: float
    difference: float
    route: str
    notes: tuple[str, ...]
    fingerprint: str | None = None
    versions: dict[str, str] | None = None
    """Releases that it rests on; None in directories of releases that did not record them."""


class Golden(_Record):
    """Texts and their vectors, for whoever opens the directory with another program."""

    texts: list[str]
    vectors: list[list[float]]
    """(N, D), six decimals."""


class Parent(_Record):
    """One of the encoders that were merged."""

    name: str | None = None
    """What a recipe's merge stage calls it."""
    fingerprint: str
    weight: float
    recipes: list[RecipeJson | None]


class MergeRecord(_Record):
    """How a merged encoder was made; see `llm2enc.merging.merge`."""

    method: Literal["average", "slerp"]
    parents: list[Parent]
    base: str | None
    """Fingerprint of the base's decoder; None without one."""
    base_weight: float = Field(validation_alias=AliasChoices("base_weight", "towards"))
    """Share of the base in the result, 0 to 1; called `towards` by release 0.1."""


class Measured(_Record):
    """Scores within a stage."""

    step: int
    """Steps that were done."""
    scores: dict[str, float]


class Best(_Record):
    """The weights that a stage ended with, the best by one of its measurements."""

    score_name: str
    score: float
    step: int
    """Steps after which they were measured."""
    last: int
    """Steps that were done in all."""


class HistoryRow(_Record):
    """Scores before training or after a stage."""

    key: str = ""
    stage: str
    scores: dict[str, float]
    """By metric."""
    seconds: float
    """Of the stage's training."""
    parent: str | None = None
    """Fingerprint of the weights that the stage started from."""
    result: str | None = None
    """Fingerprint of the weights that it made."""
    adapter: str | None = None
    """What the stage's adapter was on, where it left matrices of the layers out."""
    measurements: list[Measured] | None = None
    """Within the stage."""
    best: Best | None = None
    merge: MergeRecord | None = None
    """Of a merge stage: what went into the weights."""
    weights: str | None = None
    """Of a row before training: fingerprint of the weights that were measured."""


class Metadata(_Record):
    """The content of llm2enc.json, in the order of its keys."""

    format: Literal[1] = FORMAT
    attention: Literal["bidirectional", "causal"]
    pooling: Pooling
    normalize: bool
    input: InputSpec
    native: bool
    """Whether sentence-transformers gives the same vectors for every input."""
    reason: str
    """Why not; empty if it does."""
    prompts: dict[str, str]
    """What sentence-transformers puts before a text, by prompt name."""
    prefixes: dict[str, str] | None = None
    """The same written out, for programs with a tokenizer of their own; early releases did not write it."""
    tokenizer: TokenizerChange | None = None
    differences: list[Difference]
    notes: list[str]
    model_type: str
    dimensions: int
    head: HeadSpec | None = None
    proof: ProofRecord
    versions: dict[str, str]
    """Package to release, of those that wrote the directory."""
    history: list[HistoryRow]
    recipe: RecipeJson | None = None
    merge: MergeRecord | None = None
    files: dict[str, str] | None = None
    """SHA-256 of the files that the encoder is read from, as `integrity.digest` takes it."""
    fingerprint: str
    """SHA-256 of the weights as stored."""
    golden: Golden
    verification: dict[str, Any] | None = None
    """The last report of `llm2enc verify`, as it prints it."""

    @field_serializer("input", "head")
    def _in_full(self, value: InputSpec | HeadSpec | None) -> dict[str, Any] | None:
        return value and value.model_dump(mode="json")

    @property
    def needs_code(self) -> bool:
        """Whether sentence-transformers runs a file of the directory, which it asks leave for."""
        return isinstance(self.head, LatentAttentionSpec)

    @property
    def recipes(self) -> list[RecipeJson | None]:
        """The recipe that made the encoder, or those of all that were merged into it; None for one that is not known."""
        if self.merge is None:
            return [self.recipe]
        return [recipe for parent in self.merge.parents for recipe in parent.recipes]

    @property
    def written_prompts(self) -> dict[str, str]:
        """What stands before a text by prompt name, written out."""
        return self.prompts if self.prefixes is None else self.prefixes


def read_metadata(folder: Path) -> Metadata:
    """The metadata of a saved directory. ValueError if `folder` is none, or one that this release cannot read."""
    path = folder / METADATA_FILE
    if not folder.exists():
        recover(folder)
    if not path.is_file():
        raise InputError(
            f"{folder} is not a directory written by llm2enc: it has no {METADATA_FILE}. Convert a model first: "
            "llm2enc convert NAME -o DIR"
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except ValueError:
        raise InputError(f"{path} is damaged: it is not valid JSON. Export the directory again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it is not a JSON object. Export the directory again")
    if content.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {content.get('format')!r}, this llm2enc reads format {FORMAT}; install the release that "
            f"wrote it ({(content.get('versions') or {}).get('llm2enc', 'unknown')}), or a newer one"
        )
    try:
        return Metadata.model_validate_json(text)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise InputError(f"{path} is damaged: {faults}. Export the directory again") from None


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Write llm2enc.json, with the optional keys that were given; the file is replaced whole."""
    write_json(folder / METADATA_FILE, metadata.model_dump(exclude_unset=True))

"""Frozen models that a stage asks, and what it learns from them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llm2enc.recipe.base import Strict

Positive = Annotated[float, Field(gt=0)]


class TeacherSpec(Strict):
    """A frozen model that reads the raw texts of a batch, without the recipe's templates.

    Its answers, 4 bytes a number, are kept for the whole stage: in memory by every process, and in the stage's folder.
    """

    model: str
    """A directory that `llm2enc` or sentence-transformers wrote, the folder of a run, or a hub id."""
    kind: Literal["encoder", "cross_encoder"] = "encoder"
    """`encoder`: a vector a text. `cross_encoder`: a score a pair, raw (before any sigmoid)."""
    query_prompt: str = "query"
    """Which of the teacher's own prompts its queries take, by name."""
    document_prompt: str = "document"
    """Which one its documents take."""

    @model_validator(mode="after")
    def _prompts_are_of_encoders(self) -> "TeacherSpec":
        prompts = sorted(self.model_fields_set & {"query_prompt", "document_prompt"})
        if self.kind == "cross_encoder" and prompts:
            raise ValueError(f"{prompts[0]} is given, but a cross-encoder reads the pair alone; remove it")
        return self


class SoftLabelsSpec(Strict):
    """Scores of a query's own positive and hard negatives as labels."""

    kind: Literal["kl", "soft_ce", "m3", "margin_mse"]
    """Against softmax(teacher / teacher_temperature) over the row's documents. `kl`: KL(teacher || student), E5.
    `soft_ce`: the same plus the teacher's entropy, FlagEmbedding's `kl_div`. `m3`: each document in turn is the target among
    all that stand in the denominator, weighted by the teacher (bge-m3). `margin_mse`: squared error of the margins
    positive - negative instead (arXiv 2010.02666)."""
    teacher: TeacherSpec | None = None
    """Who scores; None: the rows do, in the columns that play `positive_scores` and `negative_scores`, or `scores`. An
    encoder's score is the cosine."""
    teacher_temperature: Positive = 1.0
    """What the teacher's scores are divided by; 1: raw, as E5 and FlagEmbedding take those of a cross-encoder."""
    student_temperature: Positive | None = None
    """What the student's similarities are divided by; None: `temperature` of the loss."""
    weight: Positive = 1.0


class EmbeddingMatchSpec(Strict):
    """Vectors like the teacher's (EmbedDistill, arXiv 2301.12005; EmbeddingGemma), the sum over `on` of mean distances."""

    teacher: TeacherSpec
    distance: Literal["mse", "l2", "cosine"]
    """Squared per coordinate, Euclidean, or 1 - cosine, of the vector that `encode` returns."""
    on: Annotated[tuple[Literal["query", "positive", "negative"], ...], Field(min_length=1)] = (
        "query",
        "positive",
        "negative",
    )
    """Which texts."""
    projection: bool = False
    """Compare the teacher's vectors with a linear layer over ours, which trains along and is thrown away afterwards. Without
    it both must have the same width."""
    weight: Positive = 1.0

    @model_validator(mode="after")
    def _has_vectors(self) -> "EmbeddingMatchSpec":
        if self.teacher.kind == "cross_encoder":
            raise ValueError("a cross-encoder has no vectors of texts to match; take an encoder, or `soft_labels`")
        if len(set(self.on)) < len(self.on):
            raise ValueError(f"`on` names a kind of text twice: {', '.join(self.on)}")
        return self


class SpreadOutSpec(Strict):
    """Vectors of different texts as orthogonal as they can be: of the queries, plus of the positives."""

    centre: Literal[0, "1/d"]
    """What the mean squared cosine is compared with. 0: nothing, EmbeddingGemma. `1/d`: that of random directions, below
    which there is no loss (arXiv 1708.06320, sentence-transformers)."""
    mean_weight: Annotated[float, Field(ge=0)] = 0.0
    """Of the squared mean cosine, besides; sentence-transformers has 1, EmbeddingGemma none."""
    weight: Positive = 1.0

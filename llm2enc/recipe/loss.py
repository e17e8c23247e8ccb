"""The loss of a stage that compares vectors."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from llm2enc.recipe.base import PositiveInt, Strict
from llm2enc.recipe.layers import LayersSpec
from llm2enc.recipe.teacher import TeacherSpec
from llm2enc.recipe.terms import TermsSpec

Positive = Annotated[float, Field(gt=0)]


class LearnedTemperature(Strict):
    """A temperature that trains beside the weights, at their learning rate, and is thrown away with the stage: similarities
    are multiplied by exp(t) (cpt-text, arXiv 2201.10005; CLIP). Decay, if it is of all weights, draws it towards 1."""

    start: Positive
    bounds: tuple[Positive, Positive] | None = None
    """The lowest and highest that it may become; CLIP's lowest is 0.01."""

    @model_validator(mode="after")
    def _starts_within(self) -> "LearnedTemperature":
        low, high = self.bounds or (self.start / 2, self.start * 2)
        if not low < high or not low <= self.start <= high:
            raise ValueError(
                f"`bounds` [{low:g}, {high:g}] must be the lower, then the higher, around start {self.start:g}"
            )
        return self


def _temperature_tag(value: Any) -> str:
    return "learned" if isinstance(value, dict | LearnedTemperature) else "fixed"


Temperature = Annotated[
    Annotated[Positive, Tag("fixed")] | Annotated[LearnedTemperature, Tag("learned")], Discriminator(_temperature_tag)
]


class GuideSpec(Strict):
    """A frozen model that finds what may be a right answer too (GISTEmbed, arXiv 2402.16829)."""

    teacher: TeacherSpec
    margin: Annotated[float, Field(ge=0)] = 0.0
    """How far below the positive's cosine a negative must be, by the guide's vectors. 0: GISTEmbed."""
    kind: Literal["absolute", "relative"] = "absolute"
    """`relative`: the margin is a share of the positive's cosine."""

    @model_validator(mode="after")
    def _has_vectors(self) -> "GuideSpec":
        if self.teacher.kind == "cross_encoder":
            raise ValueError("a cross-encoder has no vectors to compare all texts of a batch by; take an encoder")
        return self


class OwnSimilaritySpec(Strict):
    """The trained model's own similarities as a guide (Qwen3-Embedding, arXiv 2506.05176, section 3.1)."""

    margin: Annotated[float, Field(ge=0)] = 0.1
    """A negative may be nearer than the positive by this much."""
    on: Annotated[tuple[Literal["qd", "qq", "dd", "dd_by_qd"], ...], Field(min_length=1)]
    """Which negatives are looked at. `qd`: documents, by their similarity to the query. `qq`: queries. `dd`: those of
    `documents_as_negatives`, by their similarity to the positive; or `dd_by_qd`: by theirs to the query."""


class MaskSpec(Strict):
    """Which texts are left out of a denominator although they stand where negatives do. The positive never is."""

    duplicates: bool = False
    """Texts that are right answers to the query, or the query itself, wherever they stand in the batch: its positive in
    another row, the positive of another row with the same query."""
    guide: GuideSpec | None = None
    own_similarity: OwnSimilaritySpec | None = None


class HardnessSpec(Strict):
    """Negatives count the more the nearer they are: exp(alpha x similarity) times, without a gradient through it."""

    on: Literal["own_hard", "in_batch", "all"]
    """`own_hard`: a query's own hard negatives (EmbeddingGemma). `in_batch`: documents of other rows (arXiv 2503.04812)."""
    alpha: Positive


class MatryoshkaSpec(Strict):
    """InfoNCE of the first coordinates of the vectors, so that they can be cut (Matryoshka, arXiv 2205.13147)."""

    dims: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """How many coordinates; name the full width too, if it is to count."""
    weights: tuple[Positive, ...] | None = None
    """Of each of `dims`; all 1 by default."""
    reduce: Literal["sum", "mean"] = "sum"
    dims_per_step: PositiveInt | None = None
    """How many of `dims` a step takes, drawn by the recipe's seed; all by default."""

    @model_validator(mode="after")
    def _fits(self) -> "MatryoshkaSpec":
        count = len(self.dims)
        if len(set(self.dims)) < count:
            raise ValueError(f"`dims` names a width twice: {', '.join(map(str, self.dims))}; give it one weight")
        if self.weights is not None and len(self.weights) != count:
            raise ValueError(f"`weights` has {len(self.weights)} numbers for {count} `dims`; give each its weight")
        if (self.dims_per_step or 0) > count:
            raise ValueError(f"`dims_per_step` is {self.dims_per_step}, and there are {count} `dims`")
        return self


class LossSpec(TermsSpec):
    """InfoNCE (arXiv 1807.03748): -log of the positive's share of a denominator, mean over the queries.

    The fields say what else stands in the denominator, and how it counts.
    """

    similarity: Literal["cosine", "dot"] = "cosine"
    temperature: Temperature = 0.02
    """What similarities are divided by: a number, or `{start, bounds}` of one that trains."""
    in_batch: bool = True
    """Take texts of other rows; a source with `in_batch_negatives: false` turns that off for its batches."""
    hard_negatives: Literal["none", "own", "all"] = "all"
    """Whose hard negatives: nobody's, those of the query's own row, those of every row."""
    queries_as_negatives: bool = False
    """A query against the other queries."""
    documents_as_negatives: Literal["none", "positives", "all"] = "none"
    """A query's positive against the positives of other rows, or against every other document."""
    reverse_rows: Literal["none", "joint", "mean", "sum"] = "none"
    """A query's positive against other queries: in the query's own denominator (`joint`), or in a denominator of its own,
    whose loss is averaged with the query's (`mean`: cpt-text, CLIP) or added to it (`sum`: jina v3)."""
    count_positive_in_reverse: bool = False
    """The positive stands in a joint denominator twice, so that no loss is below ln 2 (GTE); else once (E5's code)."""
    masks: MaskSpec = MaskSpec()
    hardness: HardnessSpec | None = None
    hard_negative_bias: float = 0.0
    """Added to the logits of a query's own hard negatives: SimCSE's `hard_negative_weight`."""
    focal_gamma: Annotated[float, Field(ge=0)] = 0.0
    """Weights a row's loss (1 - share of its positive)^gamma (KaLM-Embedding-V2, arXiv 2506.20923: 0.5)."""
    matryoshka: MatryoshkaSpec | None = None
    layers: LayersSpec | None = None
    """Prior layers' vectors learn too, so that the model can be cut (2DMSE, ESE)."""

    @field_validator("temperature")
    @classmethod
    def _is_no_scale(cls, value: float | LearnedTemperature, info: ValidationInfo) -> float | LearnedTemperature:
        """Above 1 no loss of cosines comes far below ln(batch): they differ by 2 at most."""
        number = value.start if isinstance(value, LearnedTemperature) else value
        if info.data.get("similarity") == "cosine" and number > 1:
            raise ValueError(
                f"cosines are divided by the temperature, and {number:g} makes all of them alike. If it is a scale, which "
                f"they are multiplied by, write its inverse, `temperature: {1 / number:g}`"
            )
        return value

    @property
    def needs_own_hard(self) -> str:
        """Which field is about a row's own hard negatives and nothing else; empty if none is."""
        if self.hard_negative_bias:
            return "hard_negative_bias"
        return "hardness" if self.hardness is not None and self.hardness.on == "own_hard" else ""

    @model_validator(mode="after")
    def _is_a_denominator(self) -> "LossSpec":
        dd, own = self.documents_as_negatives, self.masks.own_similarity
        others = [
            *(name for name in ("queries_as_negatives", "count_positive_in_reverse") if getattr(self, name)),
            *(name for name in ("documents_as_negatives", "reverse_rows") if getattr(self, name) != "none"),
        ]
        faults = {
            "`in_batch: false` and `hard_negatives: none` leave a query no negative; allow one of them":
                not self.in_batch and self.hard_negatives == "none",
            f"`{(others or [''])[0]}` is about texts of other rows, which `in_batch: false` leaves out":
                not self.in_batch and bool(others),
            "`hardness` on: in_batch is about documents of other rows, which `in_batch: false` leaves out":
                not self.in_batch and self.hardness is not None and self.hardness.on == "in_batch",
            f"`{self.needs_own_hard}` is about hard negatives, which `hard_negatives: none` leaves out":
                self.hard_negatives == "none" and bool(self.needs_own_hard),
            "`documents_as_negatives: all` takes hard negatives, which `hard_negatives: none` leaves out; take positives":
                dd == "all" and self.hard_negatives == "none",
            "`count_positive_in_reverse` is about a joint denominator; set `reverse_rows: joint`":
                self.count_positive_in_reverse and self.reverse_rows != "joint",
            "`masks.own_similarity` on qq looks at queries, which `queries_as_negatives: false` leaves out":
                own is not None and "qq" in own.on and not self.queries_as_negatives,
            "`masks.own_similarity` on dd looks at what `documents_as_negatives: none` leaves out":
                own is not None and bool({"dd", "dd_by_qd"} & set(own.on)) and dd == "none",
            "`layers.compression` takes a part of the vectors, which `embedding_match` and `matryoshka` need whole":
                self.layers is not None and self.layers.compression is not None
                and (self.embedding_match is not None or self.matryoshka is not None),
        }  # fmt: skip
        for fault, found in faults.items():
            if found:
                raise ValueError(fault)
        return self


class SimcseMaskSpec(MaskSpec):
    duplicates: bool = True


class SimcseLossSpec(LossSpec):
    """The loss of SimCSE, whose rows bring two views of a text and no hard negatives."""

    temperature: Temperature = 0.05
    masks: SimcseMaskSpec = SimcseMaskSpec()

    @model_validator(mode="after")
    def _has_no_hard_negatives(self) -> "SimcseLossSpec":
        given = [
            *(["hard_negatives"] if self.hard_negatives != "all" else []),
            *(["in_batch"] if not self.in_batch else []),
            *([self.needs_own_hard] if self.needs_own_hard else []),
            *(["documents_as_negatives: all"] if self.documents_as_negatives == "all" else []),
        ]
        if given:
            raise ValueError(
                f"`{given[0]}` has no meaning in a simcse stage, whose rows have no hard negatives; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _has_no_labels(self) -> "SimcseLossSpec":
        for name, found in (("masks.guide", self.masks.guide), *((name, getattr(self, name)) for name in _LABELLED)):
            if found:
                raise ValueError(
                    f"`{name}` has no meaning in a simcse stage, whose rows are single texts; leave it out"
                )
        return self


_LABELLED = ("pair_scores", "soft_labels", "embedding_match")

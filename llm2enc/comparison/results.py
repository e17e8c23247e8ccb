"""What a comparison found, as plain data: the report, the table, the advice and compare.json are all made from it."""

from dataclasses import dataclass, field

import numpy as np

from llm2enc.comparison.sampling import Sample
from llm2enc.evaluation import Interval, TaskResult


@dataclass(frozen=True)
class Similarities:
    """Cosines of vectors that belong together and of vectors that do not."""

    random: np.ndarray
    """(P,) of pairs of different texts drawn at random."""
    related: np.ndarray
    """(R,) of a query and its document, or of two sentences that people call alike; empty if the data has none."""

    @property
    def anisotropy(self) -> float:
        """Mean cosine of random pairs (Ethayarajh 2019, arXiv 1909.00512): 0 if every direction is used, 1 if only one."""
        return float(self.random.mean())

    @property
    def spread(self) -> float:
        """Standard deviation of the cosines of random pairs."""
        return float(self.random.std())


@dataclass(frozen=True)
class PrefixTest:
    """Does the vector of a shared beginning know how the sentence ends (LLM2Vec, arXiv 2404.05961, section 4)?"""

    accuracy: Interval
    """How often the beginning is nearer to itself before an ending of the same meaning than before another one; 0.5 for
    vectors that are the same before all three."""
    moved: float
    """Mean of 1 - cosine between the vectors of one beginning before different endings: 0 for a causal model."""


@dataclass(frozen=True)
class SystemResult:
    """One way of turning texts into vectors, measured."""

    name: str
    """E.g. `bidirectional-mean`; with several models `MODEL bidirectional-mean`."""
    description: str
    """One sentence: attention, what is read, what is pooled."""
    outcomes: list[TaskResult]
    intervals: list[Interval]
    """Of each outcome."""
    mean: Interval
    """Of the mean score over the tasks."""
    tokens: float
    """Tokens that the model reads per text, on average: what a vector costs."""
    seconds: float
    """To encode 1,000 texts, by the speed of its forward pass on a sample, on the machine that made the report."""
    similarities: Similarities
    prefix: PrefixTest | None = None
    """None for an encoder whose single token states cannot be read, and for a variant that pools no text."""


@dataclass(frozen=True)
class Layers:
    """The mean score over the tasks by the layer that the vector is read from."""

    name: str
    """The system whose other layers these are."""
    scores: list[float]
    """Layer 0 is the embeddings, the last one is what the model itself returns."""
    gain: Interval | None = None
    """How far the best layer lies above the last; None if the last is the best."""


@dataclass(frozen=True)
class Difference:
    """How much the mean score of one system lies above that of another, by paired bootstrap."""

    better: str
    worse: str
    interval: Interval


@dataclass(frozen=True)
class Comparison:
    """Everything that was measured, best system first."""

    title: str
    models: list[str]
    data: str
    """One sentence: which texts, how many."""
    systems: list[SystemResult]
    differences: list[Difference]
    """Of the best system against every other."""
    advice: list[str]
    """Sentences that follow from the numbers, the most important first."""
    layers: list[Layers] = field(default_factory=list)
    baseline: SystemResult | None = None
    """TF-IDF on the same texts: what words alone score."""
    sample: list[Sample] = field(default_factory=list)
    """What was kept of each task."""
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""
    facts: dict[str, str] = field(default_factory=dict)
    """Command, versions, machine, date: what it takes to repeat this."""

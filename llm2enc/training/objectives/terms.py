"""Terms of a loss beside InfoNCE, from the vectors of the global batch and what a recipe says of each.

Legend: Q queries, N documents or pairs, G documents of the largest row, D width.
"""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from llm2enc import losses
from llm2enc.encoding import Encoder
from llm2enc.losses import Layout
from llm2enc.model import orthogonal
from llm2enc.recipe import EmbeddingMatchSpec, PairScores, SoftLabelsSpec, SpreadOutSpec
from llm2enc.training.objectives.denominator import Term, temperature_of, widths

if TYPE_CHECKING:
    from llm2enc.training.objectives.contrastive import ContrastiveBatch

# Names among what a loss trains besides the encoder: SBERT's classification layer, the one before a teacher's vectors.
SOFTMAX, PROJECTION = "softmax", "projection"


def terms(encoder: Encoder, batch: "ContrastiveBatch") -> dict[str, Term]:
    """What a contrastive stage adds to InfoNCE, by the names under which it is logged."""
    loss, found = batch.loss, {}
    if loss.soft_labels is not None:
        found["soft_labels"] = _soft_labels(encoder, batch, loss.soft_labels)
    if loss.embedding_match is not None:
        found["embedding_match"] = _embedding_match(encoder, batch, loss.embedding_match)
    if loss.spread_out is not None:
        found["spread_out"] = _spread_out(batch, loss.spread_out)
    return found | {spec.kind: _pair_scores(encoder, batch, spec) for spec in loss.pair_scores}


def pair_score(encoder: Encoder, spec: PairScores, first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """A loss of labelled pairs, unweighted.

    first, second  (N, D) the two texts of each pair
    labels         (N,) float, on the scale of the data
    """
    if spec.kind == "cosent":
        return losses.cosent(first, second, labels, spec.scale)
    if spec.kind == "angle":
        return losses.angle(first, second, labels, spec.scale)
    if spec.kind == "in_batch":
        return losses.in_batch_pairs(first, second, labels == 1, spec.scale)
    if spec.kind == "cosine_mse":
        low, high = spec.labels
        return losses.cosine_mse(first, second, (labels - low) / (high - low))
    if spec.kind == "contrastive":
        return losses.margin_contrastive(first, second, labels, spec.margin)
    assert spec.kind == "softmax", "triples are no pairs"
    weight, bias = encoder.auxiliary[SOFTMAX].parameters()
    first, second = _returned(encoder, first), _returned(encoder, second)
    return losses.softmax_classes(first, second, labels.long(), weight, bias)


def linear(inputs: int, outputs: int, seed: int, device: torch.device) -> nn.Linear:
    """A float32 layer that has not been trained, the same for a seed on every machine: orthogonal, without bias yet."""
    layer = cast(nn.Linear, nn.utils.skip_init(nn.Linear, inputs, outputs, device=device, dtype=torch.float32))
    with torch.no_grad():
        layer.weight.copy_(orthogonal(outputs, inputs, seed))
        layer.bias.zero_()
    return layer


def _returned(encoder: Encoder, vectors: Tensor) -> Tensor:
    """Pooled vectors as `encode` returns them: of unit length if the encoder normalises."""
    return normalize(vectors, dim=-1) if encoder.normalize else vectors


def _groups(layout: Layout) -> tuple[Tensor, Tensor]:
    """(Q, G) the documents of each row, the positive first, and whether a place has one; the others name the positive."""
    sizes = layout.owners.bincount(minlength=len(layout.positives))
    places = torch.arange(int(sizes.max()), device=sizes.device)
    present = places < sizes[:, None]
    return layout.positives[:, None] + places * present, present


def _soft_labels(encoder: Encoder, batch: "ContrastiveBatch", spec: SoftLabelsSpec) -> Term:
    layout, loss = batch.layout.to(encoder.device), batch.loss
    scores = batch.scores if spec.teacher is None else batch.lessons[spec.teacher].scores
    assert scores is not None  # `collate` has seen to it
    group, present = _groups(layout)
    teacher = scores.to(encoder.device)[group] / spec.teacher_temperature
    temperature = spec.student_temperature or temperature_of(encoder, loss)

    def term(queries: Tensor, documents: Tensor) -> Tensor:
        if loss.similarity == "cosine":
            queries, documents = losses.unit(queries), losses.unit(documents)
        if spec.kind == "m3":
            allowed = losses.negatives(layout, batch.in_batch, loss.hard_negatives)
            student = queries @ documents.T / temperature
            return spec.weight * losses.successive_cross_entropy(student, group, teacher, present, allowed)
        student = torch.einsum("qd,qgd->qg", queries, documents[group]) / temperature
        function = {
            "kl": losses.distillation_kl,
            "soft_ce": losses.soft_cross_entropy,
            "margin_mse": losses.margin_mse,
        }[spec.kind]
        return spec.weight * function(student, teacher, present)

    return term


def _embedding_match(encoder: Encoder, batch: "ContrastiveBatch", spec: EmbeddingMatchSpec) -> Term:
    teacher = batch.lessons[spec.teacher].vectors
    assert teacher is not None  # the recipe allows no cross-encoder here
    layout = batch.layout.to(encoder.device)
    is_positive = torch.zeros_like(layout.owners, dtype=torch.bool).index_fill_(0, layout.positives, True)
    wanted, documents_wanted = (teacher[rows.to(teacher.device)] for rows in (batch.queries, batch.documents))

    def term(queries: Tensor, documents: Tensor) -> Tensor:
        queries, documents = _returned(encoder, queries), _returned(encoder, documents)
        sides = {
            "query": (queries, wanted),
            "positive": (documents[is_positive], documents_wanted[is_positive]),
            "negative": (documents[~is_positive], documents_wanted[~is_positive]),
        }
        total = queries.new_zeros(())
        for name in spec.on:
            ours, theirs = sides[name]
            if len(ours):  # a batch may have no hard negatives
                projected = encoder.auxiliary[PROJECTION](ours) if spec.projection else ours
                total = total + losses.embedding_match(projected, theirs, spec.distance)
        return spec.weight * total

    return term


def _spread_out(batch: "ContrastiveBatch", spec: SpreadOutSpec) -> Term:
    nested, partition = batch.loss.matryoshka, batch.partition

    def term(queries: Tensor, documents: Tensor) -> Tensor:
        centre = 1 / queries.size(-1) if spec.centre == "1/d" else 0.0
        positives = documents[batch.layout.positives.to(documents.device)]
        one, other = (losses.spread_out(side, centre, spec.mean_weight) for side in (queries, positives))
        return spec.weight * (one + other)

    if nested is None:
        return term
    chosen = widths(
        nested, partition.seed, partition.step
    )  # EmbeddingGemma nests this term too, and not its distillation
    return lambda queries, documents: losses.matryoshka(term, queries, documents, chosen, nested.reduce)


def _pair_scores(encoder: Encoder, batch: "ContrastiveBatch", spec: PairScores) -> Term:
    layout = batch.layout.to(encoder.device)
    labels = torch.zeros_like(layout.owners).index_fill_(0, layout.positives, 1)

    def term(queries: Tensor, documents: Tensor) -> Tensor:
        if spec.kind == "in_batch":
            return spec.weight * losses.info_nce(
                queries, documents, layout, 1 / spec.scale, in_batch=batch.in_batch, hard_negatives="none"
            )
        if spec.kind == "triplet":
            queries, documents = _returned(encoder, queries), _returned(encoder, documents)
            negative = labels == 0
            owners = layout.owners[negative]
            sides = queries[owners], documents[layout.positives[owners]], documents[negative]
            return spec.weight * losses.triplet(*sides, spec.margin)
        return spec.weight * pair_score(encoder, spec, queries[layout.owners], documents, labels.to(queries.dtype))

    return term

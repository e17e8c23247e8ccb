"""Objectives: layouts and masks by hand, losses against the models' own code, gradients for every way of splitting."""

import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm2enc.data import Pair, RowBatch, ScoredPair
from llm2enc.encoding import Encoder
from llm2enc.losses import negatives
from llm2enc.recipe import (
    ClmStage,
    ContrastiveStage,
    FilesData,
    LoraSpec,
    LossSpec,
    MaskSpec,
    MntpStage,
    PairScoresLossSpec,
    PairScoresStage,
    SimcseLossSpec,
    SimcseStage,
)
from llm2enc.recipe.pair_scores import CosentSpec
from llm2enc.training import OBJECTIVES, head_gradient, prepare_backbone
from llm2enc.training.objectives import clm, contrastive, mntp, simcse
from tests.support.builders import assert_same, gradients, make_encoder, make_tokenizer, sentences

DATA = (FilesData(kind="files", path="unused.txt"),)
COMMON = {"data": DATA, "steps": 1, "batch_size": 3, "lr": 1e-3, "precision": "float32"}


def pair(query: str, positive: str, *negatives: str, instruction: str = "", symmetric: bool = False) -> Pair:
    return Pair(query, positive, negatives, instruction, instruction if symmetric else "")


def rows(items: list, step: int = 0, in_batch: bool = True) -> RowBatch:
    return RowBatch(step, items, "here", in_batch)


DUPLICATES = MaskSpec(duplicates=True)
PAIRS = [pair("q0", "p0", "n00"), pair("q1", "p1", "n10", "n11"), pair("q2", "p2")]


def contrastive_batch(items: list[Pair], step: int = 0, in_batch: bool = True, seed: int = 0, **fields):
    stage = ContrastiveStage(objective="contrastive", **(COMMON | {"hard_negatives": 9} | fields))
    return contrastive.collate(rows(items, step, in_batch), stage, make_encoder().input_format, seed)


def texts_of(batch) -> list[str]:
    """What is pooled of every text of a batch."""
    tokenizer, tokens = make_tokenizer(), batch.tokens
    lengths = tokens.lengths.tolist()
    parts = zip(tokens.ids.split(lengths), tokens.pool.split(lengths), strict=True)
    return [tokenizer.decode(ids[pool]) for ids, pool in parts]


# -------------------------------------------------------------------------------------------------------------- records

LONG_BLOCKS = list(np.random.default_rng(1).integers(10, 250, (40, 50)).astype(np.int32))
EXAMPLES = {  # each row of contrastive has as many negatives as the stage takes
    "clm": (ClmStage(objective="clm", block_tokens=50, **COMMON), LONG_BLOCKS),
    "mntp": (MntpStage(objective="mntp", mask_rate=0.3, mask_policy="all", **COMMON), LONG_BLOCKS),
    "simcse": (SimcseStage(objective="simcse", **COMMON), sentences(7)),
    "contrastive": (
        ContrastiveStage(objective="contrastive", **COMMON),
        [pair("q0", "p0", "n0"), pair("q1", "p1", "n1")],
    ),
    "pair_scores": (
        PairScoresStage(
            objective="pair_scores", loss=PairScoresLossSpec(pair_scores=(CosentSpec(kind="cosent"),)), **COMMON
        ),
        [ScoredPair("a", "b", 1.0, "", ""), ScoredPair("c", "d", 0.0, "", "")],
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_record_says_what_the_objective_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, (stage, items), encoder = OBJECTIVES[name], EXAMPLES[name], make_encoder()
    backbone = encoder.backbone
    prepare_backbone(backbone, stage, seed=0)
    batch = objective.collate(rows(items), stage, encoder.input_format, 0)
    seen: list[bool | None] = []
    heads: list[int] = []
    hidden, logits = backbone.hidden, backbone.logits

    def spied(tokens, causal=None, queries=None):
        seen.append(causal)
        return hidden(tokens, causal, queries)

    monkeypatch.setattr(backbone, "hidden", spied)
    monkeypatch.setattr(backbone, "logits", lambda states: heads.append(len(states)) or logits(states))
    objective.backward(encoder, batch, stage)
    assert set(seen) == {objective.causal} and bool(heads) == objective.predicts_tokens
    assert isinstance(
        items[0], {"block": np.ndarray, "text": str, "pair": Pair, "scored pair": ScoredPair}[objective.row]
    )
    if objective.predicts_tokens:
        assert batch.num_targets / batch.num_tokens == pytest.approx(objective.predicted_share(stage), abs=0.03)
        assert batch.describe() == {"predicted tokens per batch": f"{batch.num_targets:,}"}
    else:
        assert batch.partition.total == len(items) * objective.vectors_per_row(stage)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_record_says_whether_full_training_includes_the_head(name: str) -> None:
    stage = EXAMPLES[name][0].model_copy(update={"trainable": "full"})
    backbone = make_encoder(tie_word_embeddings=False).backbone
    prepare_backbone(backbone, stage, seed=0)
    assert any("lm_head" in parameter for parameter in backbone.trained()) == OBJECTIVES[name].trains_head
    assert OBJECTIVES[name].trains_head == (name == "clm")


# ---------------------------------------------------------------------------------------------------------- contrastive


def test_layout_of_a_batch() -> None:
    batch = contrastive_batch(PAIRS)
    assert texts_of(batch) == ["q0", "p0", "n00", "q1", "p1", "n10", "n11", "q2", "p2"] and batch.partition.total == 9
    assert batch.queries.tolist() == [0, 3, 7]
    assert batch.documents.tolist() == [1, 2, 4, 5, 6, 8]
    assert batch.layout.positives.tolist() == [0, 2, 5]  # columns of p0, p1, p2
    assert batch.layout.owners.tolist() == [0, 0, 1, 1, 1, 2] and batch.layout.excluded is None


def counted(batch) -> list[list[int]]:
    """Which documents are negatives of which query."""
    return negatives(batch.layout, batch.in_batch, batch.loss.hard_negatives).int().tolist()


def test_own_negatives_only() -> None:
    batch = contrastive_batch(PAIRS, in_batch=False)
    assert counted(batch) == [[0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]
    assert batch.describe() == {"negatives per query": "1"}
    with pytest.raises(ValueError, match="without a single hard negative"):
        contrastive_batch(PAIRS, in_batch=False, hard_negatives=0)


@pytest.mark.parametrize(
    ("hard", "expected"),
    [
        ("none", [[0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 1], [1, 0, 1, 0, 0, 0]]),
        ("own", [[0, 1, 1, 0, 0, 1], [1, 0, 0, 1, 1, 1], [1, 0, 1, 0, 0, 0]]),
        ("all", [[0, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0]]),
    ],
)
def test_whose_hard_negatives_count(hard: str, expected: list[list[int]]) -> None:
    """Columns: p0 n00 | p1 n10 n11 | p2."""
    assert counted(contrastive_batch(PAIRS, loss=LossSpec(hard_negatives=hard))) == expected


def test_duplicates_are_no_negatives() -> None:
    items, loss = [pair("a", "b", "x"), pair("a", "c"), pair("d", "b", "b"), pair("b", "a")], LossSpec(masks=DUPLICATES)
    # Columns: b x | c | b b | a. Whatever answers `a` anywhere (b, c), and `a` itself, is no negative of `a`.
    assert counted(contrastive_batch(items, loss=loss)) == [
        [0, 1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 1],
        [0, 1, 1, 0, 0, 0],
    ]
    assert counted(contrastive_batch(items, in_batch=False, loss=loss)) == [[0, 1, 0, 0, 0, 0], *[[0] * 6] * 3]


def test_only_documents_of_symmetric_tasks_are_instructed() -> None:
    items = [pair("q0", "p0", "n00", instruction="Same"), pair("q1", "p1", instruction="Same", symmetric=True)]
    batch = contrastive_batch([*items, pair("q2", "p2")])
    decoded = [make_tokenizer().decode(ids) for ids in batch.tokens.ids.split(batch.tokens.lengths.tolist())]
    assert decoded == [
        *("<s>Same: q0", "<s>p0", "<s>n00", "<s>Same: q1", "<s>Same: p1", "<s>q2", "<s>p2")
    ]  # a query without instruction has no dangling prefix
    assert texts_of(batch) == ["q0", "p0", "n00", "q1", "p1", "q2", "p2"]


def test_hard_negatives_depend_on_seed_and_step() -> None:
    many = [pair(f"q{i}", f"p{i}", *(f"n{i}{j}" for j in range(6))) for i in range(4)]
    chosen = {
        (seed, step): texts_of(contrastive_batch(many, step, seed=seed, hard_negatives=2))
        for seed in (0, 1)
        for step in (0, 1)
    }
    assert chosen[0, 0] == texts_of(contrastive_batch(many, 0, seed=0, hard_negatives=2))
    assert len({tuple(texts) for texts in chosen.values()}) == 4
    for texts in chosen.values():
        for i in range(4):
            query, positive, *negatives = texts[4 * i : 4 * i + 4]
            assert (query, positive) == (f"q{i}", f"p{i}") and len(set(negatives)) == 2
            assert all(negative.startswith(f"n{i}") for negative in negatives)
    assert texts_of(contrastive_batch(many[:1], hard_negatives=0)) == ["q0", "p0"]


@pytest.mark.parametrize(("in_batch", "mask"), [(True, False), (False, False), (True, True)])
def test_contrastive_loss_by_hand(in_batch: bool, mask: bool) -> None:
    items = [
        pair("the old bridge", "a bridge of stone", "wool and wine", instruction="Find it"),
        pair("market day", "the market", "a boat", "tall trees", instruction="Find it"),
        pair("the mill", "wool and wine", instruction="Find it"),
    ]
    encoder = make_encoder()
    encoder.backbone.train_everything(head=False)
    stage = ContrastiveStage(
        objective="contrastive",
        **(COMMON | {"hard_negatives": 2, "loss": LossSpec(masks=MaskSpec(duplicates=mask), temperature=0.1)}),
    )
    batch = contrastive.collate(rows(items, in_batch=in_batch), stage, encoder.input_format, 0)
    found = contrastive.backward(encoder, batch, stage)
    queries = encoder.encode([item.query for item in items], instruction="Find it")
    documents = [text for item in items for text in (item.positive, *item.negatives)]
    vectors = encoder.encode(documents)
    own, expected, cosines = [(0, 1), (2, 3, 4), (5,)], [], []
    for row, item in enumerate(items):
        scores = vectors @ queries[row]
        columns = list(range(6) if in_batch else own[row])
        if mask:  # the third query's positive is the first one's negative, under two columns
            columns = [c for c in columns if documents[c] != item.positive or c == own[row][0]]
        expected.append(-np.log(np.exp(scores[own[row][0]] / 0.1) / np.exp(scores[columns] / 0.1).sum()))
        cosines.append(scores[own[row][0]])
    assert found["loss"].item() == pytest.approx(np.mean(expected), rel=1e-4)
    assert found["positive_cosine"].item() == pytest.approx(np.mean(cosines), rel=1e-5)


# --------------------------------------------------------------------------------------------------------------- simcse


def simcse_run(encoder: Encoder, attention_dropout: float, **fields) -> dict[str, float]:
    stage = SimcseStage(objective="simcse", **(COMMON | fields))
    encoder.backbone.set_attention_dropout(attention_dropout)
    encoder.train()
    torch.manual_seed(0)
    batch = simcse.collate(rows(sentences(7)), stage, encoder.input_format, 0)
    return {name: value.item() for name, value in simcse.backward(encoder, batch, stage).items()}


def test_every_text_stands_twice() -> None:
    batch = simcse.collate(
        rows(["one", "two", "three"]), SimcseStage(objective="simcse", **COMMON), make_encoder().input_format, 0
    )
    assert texts_of(batch) == ["one", "one", "two", "two", "three", "three"] and batch.partition.total == 6
    assert (batch.queries.tolist(), batch.documents.tolist()) == ([0, 2, 4], [1, 3, 5])


def test_attention_dropout_makes_the_views() -> None:
    encoder = make_encoder()
    encoder.backbone.train_everything(head=False)
    found = simcse_run(encoder, 0.3)
    assert 0.5 < found["view_cosine"] < 0.999 and found["loss"] > 0
    assert gradients(encoder)


def test_lora_dropout_counts_although_a_fresh_adapter_is_silent() -> None:
    encoder = make_encoder()
    encoder.backbone.add_lora(LoraSpec(r=4, dropout=0.1), seed=0)
    assert simcse_run(encoder, 0.0)["view_cosine"] == pytest.approx(1, abs=1e-6)
    assert gradients(encoder)


@pytest.mark.parametrize("micro_batch_tokens", [1, 17, 1000])
def test_views_without_dropout_are_refused(micro_batch_tokens: int) -> None:
    encoder = make_encoder()
    encoder.backbone.add_lora(LoraSpec(r=4, dropout=0.0), seed=0)
    with pytest.raises(ValueError, match="no dropout is active"):
        simcse_run(encoder, 0.0, micro_batch_tokens=micro_batch_tokens)


def test_equal_texts_are_no_negatives_of_each_other() -> None:
    """Of `one` and `two` thrice each, second views 1 0 1 0 0 1: a text has three negatives, those of the other text."""
    stage, encoder = SimcseStage(objective="simcse", **COMMON), make_encoder()
    batch = simcse.collate(rows(["one", "two", "one", "two", "two", "one"]), stage, encoder.input_format, 0)
    assert counted(batch) == [
        [0, 1, 0, 1, 1, 0],
        [1, 0, 1, 0, 0, 1],
        [0, 1, 0, 1, 1, 0],
        [1, 0, 1, 0, 0, 1],
        [1, 0, 1, 0, 0, 1],
        [0, 1, 0, 1, 1, 0],
    ]
    assert batch.describe() == {"negatives per query": "3"}
    assert simcse.collate(rows(["one", "two", "three"]), stage, encoder.input_format, 0).layout.excluded is None


@pytest.mark.parametrize("micro_batch_tokens", [5, 1000])
def test_a_batch_with_repeats_has_the_loss_and_gradient_of_its_formula(micro_batch_tokens: int) -> None:
    """log(1 + sum over other texts of exp(cos(a, b) - cos(a, a'))), the mean over rows, by a loop."""
    texts, encoder = ["the old bridge", "market day", "the old bridge"], make_encoder()
    encoder.backbone.train_everything(head=False)
    encoder.backbone.set_attention_dropout(1e-9)  # draws numbers and drops nothing: both views are known
    encoder.train()
    stage = SimcseStage(
        objective="simcse",
        **(COMMON | {"loss": SimcseLossSpec(temperature=1.0), "micro_batch_tokens": micro_batch_tokens}),
    )
    batch = simcse.collate(rows(texts), stage, encoder.input_format, 0)
    value = simcse.backward(encoder, batch, stage)["loss"]
    found = gradients(encoder)
    views = F.normalize(encoder(batch.tokens), dim=-1)
    first, second = views[0::2], views[1::2]
    losses = []
    for row, text in enumerate(texts):
        own = first[row] @ second[row]
        others = [first[row] @ second[n] for n, other in enumerate(texts) if other != text]
        losses.append(torch.log(1 + sum(torch.exp(other - own) for other in others)))
    expected = sum(losses) / 3
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same(found, gradients(encoder), 1e-4)


# ---------------------------------------------------------------------------------------------------------- token tasks


BLOCKS = np.random.default_rng(0).integers(2, 320, size=(5, 12)).astype(np.int32)
BLOCKS[:, 5] = 0  # a BOS inside every block


def corrupted(policy: str, rate: float, blocks: np.ndarray | None = None):
    if blocks is None:
        blocks = np.random.default_rng(1).integers(0, 320, size=(400, 128)).astype(np.int32)
    special = np.array([0, 1, 2])
    before = blocks.copy()
    found, chosen = mntp.corrupt(blocks, special, 5, 320, rate, policy, np.random.default_rng(2))
    assert np.array_equal(blocks, before)
    assert not chosen[np.isin(blocks, special)].any() and not chosen[:, 0].any()
    assert np.array_equal(found[~chosen], blocks[~chosen])
    return blocks, found, chosen, chosen.sum() / (~np.isin(blocks[:, 1:], special)).sum()


def within(share: float, rate: float, count: int) -> bool:
    """Within three standard deviations of a binomial."""
    return abs(share - rate) < 3 * (rate * (1 - rate) / count) ** 0.5


@pytest.mark.parametrize("rate", [0.2, 0.8])
def test_bert_masking(rate: float) -> None:
    blocks, found, chosen, share = corrupted("bert", rate)
    assert within(share, rate, 400 * 127)
    before, after = blocks[chosen], found[chosen]
    count = len(before)
    # A random token may happen to be the old one, or the mask.
    assert within((after == 5).mean(), 0.8 + 0.1 / 320 + 0.1 * (before == 5).mean(), count)
    assert within(((after != 5) & (after != before)).mean(), 0.1 * (1 - 2 / 320), count)
    assert within(((after == before) & (before != 5)).mean(), 0.1 + 0.1 / 320, count)
    assert {0, 319} <= set(after.tolist())  # the whole vocabulary is drawn from


def test_masking_everything_chosen() -> None:
    _, found, chosen, share = corrupted("all", 0.3)
    assert within(share, 0.3, 400 * 127) and (found[chosen] == 5).all()


def test_a_batch_always_has_something_to_predict() -> None:
    blocks = np.array([[0, 1, 2, 9]])
    _, found, chosen, _ = corrupted("all", 1e-9, blocks)
    assert chosen.tolist() == [[False, False, False, True]] and found.tolist() == [[0, 1, 2, 5]]
    with pytest.raises(ValueError, match="nothing to mask"):
        corrupted("all", 0.5, np.array([[9, 1, 2, 0]]))


def test_mask_tokens() -> None:
    tokenizer = make_tokenizer(mask_token="<mask>")
    vocabulary = tokenizer.get_vocab()
    assert [mntp.mask_id(tokenizer, name) for name in ("blank", "eos", "mask")] == [
        vocabulary[name] for name in ("_", "</s>", "<mask>")
    ]
    with pytest.raises(ValueError, match="mask_token: mask needs a token of that role"):
        mntp.mask_id(make_tokenizer(), "mask")


def mntp_stage(**fields) -> MntpStage:
    return MntpStage(objective="mntp", **(COMMON | {"mask_rate": 0.3, "mask_policy": "bert"} | fields))


def token_run(encoder: Encoder, stage, blocks: np.ndarray = BLOCKS):
    module = OBJECTIVES[stage.objective]
    batch = module.collate(rows(list(blocks)), stage, encoder.input_format, 0)
    value = module.backward(encoder, batch, stage)["loss"]
    return batch, value, gradients(encoder)


def full_encoder(**config) -> Encoder:
    encoder = make_encoder(**config)
    encoder.backbone.train_everything(head=True)
    return encoder


def test_targets_stand_one_token_before_what_they_name() -> None:
    stage = mntp_stage(mask_policy="all", mask_rate=0.5)
    encoder = make_encoder()
    batch = mntp.collate(rows(list(BLOCKS)), stage, encoder.input_format, 0)
    inputs, targets = batch.tokens.ids.view(5, 12).numpy(), batch.targets.view(5, 12).numpy()
    mask = mntp.mask_id(encoder.input_format.tokenizer, "blank")
    assert (targets[:, -1] == -100).all() and batch.num_targets == (targets != -100).sum() > 10
    for row, column in np.ndindex(5, 11):
        masked = inputs[row, column + 1] == mask and BLOCKS[row, column + 1] != mask
        assert targets[row, column] == (BLOCKS[row, column + 1] if masked else -100)
    other = mntp.collate(rows(list(BLOCKS), step=1), stage, encoder.input_format, 0)
    again = mntp.collate(rows(list(BLOCKS)), stage, encoder.input_format, 0)
    assert torch.equal(again.tokens.ids, batch.tokens.ids) and not torch.equal(other.tokens.ids, batch.tokens.ids)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("objective", ["mntp", "clm"])
def test_loss_and_gradient_are_those_of_transformers(objective: str, tied: bool) -> None:
    """`model(labels=...)`, which shifts the labels itself, on the same blocks as a plain batch with eager attention."""
    encoder = full_encoder(tie_word_embeddings=tied)
    stage = mntp_stage() if objective == "mntp" else ClmStage(objective="clm", **COMMON)
    batch, value, found = token_run(encoder, stage)
    labels = torch.full((5, 12), -100)
    labels[:, 1:] = batch.targets.view(5, 12)[:, :-1]
    reference = full_encoder(tie_word_embeddings=tied)
    model = reference.backbone.model
    model.set_attn_implementation("eager")
    model.config.is_causal = objective == "clm"
    expected = model(input_ids=batch.tokens.ids.view(5, 12), labels=labels).loss
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same(found, gradients(reference), 2e-5)
    if objective == "clm":
        assert batch.num_targets == 5 * 11 and torch.equal(labels[:, 1:], torch.from_numpy(BLOCKS[:, 1:]).long())


def test_mntp_looks_ahead_and_clm_does_not() -> None:
    encoder = make_encoder()
    changed = BLOCKS.copy()
    changed[:, -1] = 7
    for stage, same in ((mntp_stage(mask_policy="all"), False), (ClmStage(objective="clm", **COMMON), True)):
        module = OBJECTIVES[stage.objective]
        batch = module.collate(rows(list(BLOCKS)), stage, encoder.input_format, 0)
        ids = torch.from_numpy(changed).long().flatten()
        keep = batch.targets.clone()
        keep.view(5, 12)[:, -2:] = -100  # the changed token itself is no target
        losses = []
        for tokens in (batch.tokens, replace(batch.tokens, ids=ids.where(ids == 7, batch.tokens.ids))):
            part = replace(batch, tokens=tokens, targets=keep)
            encoder.backbone.train_everything(head=True)
            losses.append(module.backward(encoder, part, stage)["loss"].item())
        assert (losses[0] == losses[1]) == same


@pytest.mark.parametrize("objective", ["mntp", "clm"])
def test_logits_at_targets_only_are_enough(objective: str) -> None:
    encoder = full_encoder()
    stage = mntp_stage() if objective == "mntp" else ClmStage(objective="clm", **COMMON)
    batch, value, found = token_run(encoder, stage)
    everywhere = encoder.backbone.logits(encoder.backbone.hidden(batch.tokens, causal=objective == "clm"))
    expected = F.cross_entropy(everywhere, batch.targets, ignore_index=-100)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same(found, gradients(encoder), 1e-5)


@pytest.mark.parametrize("objective", ["mntp", "clm"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_split_changes_the_gradient(objective: str, checkpointing: bool) -> None:
    encoder = full_encoder()
    encoder.backbone.set_gradient_checkpointing(checkpointing)
    encoder.train()
    stage = mntp_stage(mask_rate=0.1) if objective == "mntp" else ClmStage(objective="clm", **COMMON)
    batch, value, expected = token_run(encoder, stage)
    counts = [(part != -100).sum().item() for part in batch.targets.split(12)]
    assert objective == "clm" or (0 in counts and max(counts) > 1)  # a micro-batch without a target is among them
    for mini in (1, 24, 1000):
        for logit_rows in (1, 3, 1000):
            smaller = stage.model_copy(update={"micro_batch_tokens": mini, "logit_rows": logit_rows})
            _, again, found = token_run(encoder, smaller)
            assert again.item() == pytest.approx(value.item(), rel=1e-6)
            assert_same(found, expected, 1e-5)


def test_a_slice_of_logits_is_gone_before_the_next_one_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_encoder().backbone
    made: list[weakref.ref] = []
    logits = backbone.logits

    def watched(states: torch.Tensor) -> torch.Tensor:
        assert not any(one() is not None for one in made)
        found = logits(states)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(backbone, "logits", watched)
    states = torch.randn(10, backbone.width, generator=torch.Generator().manual_seed(0))
    head_gradient(backbone, states, torch.arange(10), 1.0, logit_rows=4, overwrite=True)
    assert len(made) == 3


def test_the_head_and_the_embeddings_rest_under_lora() -> None:
    encoder = make_encoder(tie_word_embeddings=False)
    encoder.backbone.add_lora(LoraSpec(r=4, dropout=0.0), seed=0)
    _, _, found = token_run(encoder, mntp_stage())
    assert found.keys() == {f"backbone.{name}" for name in encoder.backbone.trained()}
    assert all("lora_" in name for name in found)
    untied = make_encoder(tie_word_embeddings=False)
    untied.backbone.train_everything(head=False)
    _, _, found = token_run(untied, mntp_stage())
    assert not any("lm_head" in name for name in found) and any("embed_tokens" in name for name in found)


def test_blocks_open_every_text_with_bos(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a river\nthe bridge")
    data = (FilesData(kind="files", path=str(tmp_path / "t.txt")),)
    encoder = make_encoder()
    plain = encoder.input_format.plain_ids(["a river", "the bridge"])
    joined = [0, *plain[0], 0, *plain[1]]
    stage = ClmStage(objective="clm", **(COMMON | {"data": data, "block_tokens": len(joined), "batch_size": 1}))
    assert next(clm.batches(stage, encoder.input_format, 0, 0)).rows[0].tolist() == joined

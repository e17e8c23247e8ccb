"""Three processes are one: the same loss, the same gradient, dropout included, the same weights after training.

Gloo processes run every case once and write down what they found; the tests compare.
"""

import math
import os
from pathlib import Path

import pytest
import torch

from llm2enc import distributed
from llm2enc.data import Pair, RowBatch, ScoredPair
from llm2enc.encoding import Encoder
from llm2enc.model import Projection
from llm2enc.recipe import (
    ClmStage,
    ContrastiveStage,
    EmbeddingMatchSpec,
    FilesData,
    LearnedTemperature,
    LoraSpec,
    LossSpec,
    MaskSpec,
    MatryoshkaSpec,
    MntpStage,
    PairScoresLossSpec,
    PairScoresStage,
    ProjectionSpec,
    SimcseStage,
    SoftLabelsSpec,
    SpreadOutSpec,
    Stage,
    TeacherSpec,
)
from llm2enc.recipe.pair_scores import AngleSpec, CosentSpec, InBatchSpec, SoftmaxSpec, TripletSpec
from llm2enc.training import OBJECTIVES
from llm2enc.training.teachers import Teachers
from tests.support import jobs
from tests.support.builders import assert_same, gradients, make_encoder, pairs_file, sentences, texts_file
from tests.support.teachers import write_encoder

COMMON = {
    "data": (FilesData(kind="files", path="unused.txt"),),
    "steps": 3,
    "batch_size": 5,
    "lr": 1e-2,
    "precision": "float32",
    "micro_batch_tokens": 40,
    "log_every": 1,
}


SCORES = PairScoresLossSpec(
    pair_scores=(CosentSpec(kind="cosent"), InBatchSpec(kind="in_batch"), SoftmaxSpec(kind="softmax", classes=2))
)
DENOMINATOR = LossSpec(
    temperature=LearnedTemperature(start=0.3, bounds=(0.01, 1.0)),
    queries_as_negatives=True,
    documents_as_negatives="positives",
    reverse_rows="joint",
    matryoshka=MatryoshkaSpec(dims=(32, 16, 8), dims_per_step=2),
)
TERMS = LossSpec(
    soft_labels=SoftLabelsSpec(kind="m3"),
    spread_out=SpreadOutSpec(centre=0),
    pair_scores=(AngleSpec(kind="angle"), TripletSpec(kind="triplet")),
)


def cases() -> dict[str, tuple[Stage, list]]:
    """Stages and the rows of a batch: 5 of them, and 13 texts, so that two shares are never equal."""
    texts = sentences(20)
    pairs = [
        Pair(texts[i], texts[i + 5], tuple(texts[10:][:number]), "Find it", "", (), (2.0,), (0.5, 1.0)[:number])
        for i, number in enumerate((0, 2, 0, 0, 1))
    ]
    scored = [ScoredPair(texts[i], texts[i + 5], float(i % 2), "Alike?", "") for i in range(5)]
    generator = torch.Generator().manual_seed(0)
    blocks = list(torch.randint(2, 320, (5, 12), generator=generator).to(torch.int32).numpy())
    mntp = {"objective": "mntp", "mask_rate": 0.3, "mask_policy": "bert"}
    noise = {"attention_dropout": 0.3, "lora": LoraSpec(r=4, alpha=8, dropout=0.3)}
    return {
        "contrastive": (ContrastiveStage(objective="contrastive", hard_negatives=2, **COMMON), pairs),
        "contrastive-graph": (ContrastiveStage(objective="contrastive", activation_tokens=50, **COMMON), pairs),
        "contrastive-masked": (
            ContrastiveStage(objective="contrastive", loss=LossSpec(masks=MaskSpec(duplicates=True)), **COMMON),
            pairs,
        ),
        "contrastive-noise": (ContrastiveStage(objective="contrastive", hard_negatives=2, **COMMON, **noise), pairs),
        "contrastive-head": (ContrastiveStage(objective="contrastive", hard_negatives=2, **COMMON), pairs),
        "contrastive-denominator": (
            ContrastiveStage(objective="contrastive", hard_negatives=2, loss=DENOMINATOR, **COMMON),
            pairs,
        ),
        "contrastive-terms": (ContrastiveStage(objective="contrastive", hard_negatives=2, loss=TERMS, **COMMON), pairs),
        "pair-scores": (PairScoresStage(objective="pair_scores", loss=SCORES, **COMMON), scored),
        "simcse-noise": (SimcseStage(objective="simcse", **COMMON, **noise), texts[:5]),
        "mntp-noise": (MntpStage(**mntp, **COMMON, **noise), blocks),
        "clm-noise": (ClmStage(objective="clm", **COMMON, **noise), blocks),
        "mntp": (MntpStage(**mntp, **COMMON), blocks),
        "mntp-one-target": (MntpStage(**(mntp | {"mask_rate": 1e-9}), **COMMON), blocks),  # one share has none
        "clm": (ClmStage(objective="clm", **COMMON), blocks),
    }


def one_step(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Metrics and the gradient of the global batch."""
    stage, rows = cases()[name]
    objective, encoder = OBJECTIVES[stage.objective], make_encoder()
    if stage.lora is None:
        encoder.backbone.train_everything(head=stage.objective == "clm")
    else:
        encoder.backbone.add_lora(stage.lora, seed=0)
        with torch.no_grad():  # a fresh B is zero, and so would be the gradient of A
            for number, parameter in enumerate(encoder.backbone.trained().values()):
                parameter.add_(0.02 * math.cos(number))
        encoder.backbone.set_attention_dropout(stage.attention_dropout)
    if name == "contrastive-head":
        spec = ProjectionSpec(kind="projection", dimensions=12, bias=True)
        encoder.head = Projection.fresh(encoder.backbone.width, spec, seed=0)
    encoder.auxiliary = torch.nn.ModuleDict(objective.auxiliary(encoder, stage, Teachers(()), 0))
    encoder.train()
    torch.rand(distributed.rank())  # the processes' own random states differ, and play no role
    batch = objective.collate(RowBatch(0, rows, "here", True), stage, encoder.input_format, 0)
    metrics = objective.backward(encoder, batch, stage)
    distributed.sum_gradients(encoder.trained().values())
    return metrics, gradients(encoder)


def trained_weights(folder: Path, kind: str, asked: Path) -> dict[str, torch.Tensor]:
    """The weights after three steps of `train` in `folder`; `asked` is the directory of a teacher."""
    from llm2enc.training import train

    (folder / f"data-{distributed.rank()}").mkdir()
    data = (texts_file if kind == "mntp" else pairs_file)(folder / f"data-{distributed.rank()}")
    fields = COMMON | {"data": (data,), "lora": LoraSpec(r=4, alpha=8, dropout=0.1 if kind == "dropout" else 0.0)}
    if kind == "mntp":
        stage = MntpStage(objective="mntp", mask_rate=0.3, mask_policy="bert", block_tokens=16, **fields)
    else:
        rate, loss = 0.1 if kind == "dropout" else 0.0, LossSpec(temperature=0.2)
        if kind == "teacher":
            match = EmbeddingMatchSpec(teacher=TeacherSpec(model=str(asked)), distance="l2", projection=True)
            loss = LossSpec(temperature=0.2, embedding_match=match)
        stage = ContrastiveStage(objective="contrastive", loss=loss, attention_dropout=rate, **fields)
    encoder: Encoder = make_encoder()
    train(encoder, stage, folder / "run", seed=0)
    return {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}


KINDS = ("contrastive", "mntp", "dropout", "teacher")
PROCESSES = 3  # which cannot share 8 shards evenly; test_scale.py has 2 and 4


def process(rank: int, place: dict[str, str], folder: Path, asked: Path) -> None:
    """What each process does, started as torchrun would."""
    os.environ.update(place)
    distributed.start()
    found = {
        "facts": (distributed.rank(), distributed.world_size(), distributed.is_main(), list(distributed.rank_slice(5))),
        "gathered": gathered(5),
        "one": gathered(1),
    }
    for name in cases():
        found[name] = one_step(name)
    for kind in KINDS:
        (folder / kind).mkdir(exist_ok=True)
        found[f"train-{kind}"] = trained_weights(folder / kind, kind, asked)
    torch.save(found, folder / f"found-{rank}.pt")
    distributed.barrier()


def gathered(total: int) -> torch.Tensor:
    """(total, 1) the numbers below `total`, each from the process whose share it is."""
    counts = [len(distributed.rank_slice(total, process)) for process in range(distributed.world_size())]
    return distributed.gather(torch.tensor([[float(i)] for i in distributed.rank_slice(total)]).view(-1, 1), counts)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a teacher."""
    return write_encoder(tmp_path_factory.mktemp("asked"))


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory, asked: Path) -> list[dict]:
    """What each of the processes found."""
    folder = tmp_path_factory.mktemp("several")
    several = [jobs.start(process, rank, place, folder, asked) for rank, place in enumerate(jobs.places(PROCESSES))]
    for one in several:
        one.join(200)
    assert [one.exitcode for one in several] == [0] * PROCESSES
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


def test_shares_and_gathering(processes: list[dict]) -> None:
    shares = [[0, 1], [2, 3], [4]]
    assert [found["facts"] for found in processes] == [(rank, 3, rank == 0, shares[rank]) for rank in range(3)]
    for found in processes:
        assert found["gathered"].tolist() == [[0.0], [1.0], [2.0], [3.0], [4.0]] and found["one"].tolist() == [[0.0]]


def test_alone_everything_is_mine() -> None:
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.rank_slice(5) == range(5)


@pytest.mark.parametrize("name", cases())
def test_loss_and_gradient_of_the_global_batch(name: str, processes: list[dict]) -> None:
    metrics, expected = one_step(name)
    assert all(gradient.abs().sum() > 0 for gradient in expected.values())
    for found_metrics, found in (found[name] for found in processes):
        assert found_metrics.keys() == metrics.keys()
        for key, value in metrics.items():
            assert found_metrics[key].item() == pytest.approx(value.item(), rel=1e-5)
        assert_same(found, expected, 2e-5)
    for found in processes[1:]:
        assert_same(processes[0][name][1], found[name][1])


@pytest.mark.parametrize("kind", KINDS)
def test_training_keeps_all_equal(kind: str, processes: list[dict], asked: Path, tmp_path: Path) -> None:
    for other in processes[1:]:
        assert_same(processes[0][f"train-{kind}"], other[f"train-{kind}"])
    alone = trained_weights(tmp_path, kind, asked)
    base = dict(make_encoder().named_parameters())
    moved = max((alone[name] - base[name]).abs().max() for name in base)
    off = max((alone[name] - processes[0][f"train-{kind}"][name]).abs().max() for name in base)
    assert off < 1e-2 * moved  # Adam turns rounding of tiny gradients into small steps

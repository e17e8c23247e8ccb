"""Any number of processes, by any strategy, is one process: gradients, weights after training, checkpoints, commands.

The cases of benchmarks/scale.py run in 1, 2 and 4 processes, forked from one that has computed nothing (this file as a
program); the tests compare what they left.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file

from benchmarks import scale
from benchmarks.scale import STRATEGIES, cases, difference
from llm2enc import convert, distributed, load_recipe
from llm2enc.encoding import Encoder
from llm2enc.model import fresh_head
from llm2enc.recipe import ClmStage, ContrastiveStage, LoraSpec, LossSpec, ProjectionSpec, Stage
from llm2enc.training import checkpoint, trainer
from tests.support.builders import assert_same, pairs_file, texts_file
from tests.support.jobs import free_port

ROOT = Path(__file__).parents[2]

COUNTS = (2, 4)
TRAINED = ("clm-full", "contrastive-lora")
STEPS, SAVED, KILLED = 8, 3, 5
# The others are in benchmarks/scale.md; clm is in TRAINED.
OBJECTIVES = ("mntp", "simcse", "contrastive")
SHARDS = max(COUNTS)  # as few as there may be: every one is a pass of its own, and these are many small ones


# ------------------------------------------------------------------------------------------ what the processes do


def stage_of(name: str, way: str, folder: Path) -> Stage:
    """A stage whose batches have a row more than the processes can share evenly, with dropout."""
    fields = scale.COMMON | {
        "steps": STEPS,
        "save_every": SAVED,
        "batch_size": 5,
        "strategy": way,
        "lr": 3e-3,
        "rng_shards": SHARDS,
    }
    fields |= {"log_every": 100, "attention_dropout": 0.1, "evaluate_every": 2, "keep_best": "made"}
    if name == "clm-full":
        data = (texts_file(folder),)
        return ClmStage(**fields | {"objective": "clm", "data": data, "trainable": "full", "block_tokens": 16})
    own = {
        "objective": "contrastive",
        "data": (pairs_file(folder),),
        "loss": LossSpec(temperature=0.2),
        "hard_negatives": 2,
    }
    return ContrastiveStage(**fields | own | {"lora": LoraSpec(r=4, alpha=8, dropout=0.1)})


def trained(name: str, way: str, folder: Path, killed: bool = False) -> dict[str, Any]:
    """Weights and fingerprint after `train` in `folder`, which may hold a checkpoint; {} if it is killed in between.

    The third of four measurements is the best, so these are the weights after step 6.
    """
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
    distributed.barrier()
    mine = folder / f"data-{distributed.rank()}"
    mine.mkdir(exist_ok=True)
    encoder = scale.make_encoder()
    if name == "contrastive-lora":  # and a head, which stays whole in every process
        spec = ProjectionSpec(kind="projection", dimensions=12, bias=True)
        encoder.head = fresh_head(encoder.backbone.width, spec, seed=0)
    rate = trainer.learning_rate

    def until(step: int, stage: Stage) -> float:
        if killed and step == KILLED:
            raise KeyboardInterrupt
        return rate(step, stage)

    scores = iter((0.1, 0.0, 0.3, 0.2)[len(checkpoint.measured(folder / "run")) :])

    def evaluate(encoder: Encoder) -> dict[str, float]:
        encoder.encode(scale.texts(3))  # of sharded layers every process has a part
        return {"made": next(scores)}

    trainer.learning_rate = until
    try:
        trainer.train(encoder, stage_of(name, way, mine), folder / "run", seed=0, evaluate=evaluate)
    except KeyboardInterrupt:
        return {}
    finally:
        trainer.learning_rate = rate
    weights = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}
    return {"weights": weights, "fingerprint": encoder.weights_fingerprint()}


def there_and_back() -> dict[str, Any]:
    """A backbone with an adapter before it is sharded, and after it is whole again."""
    encoder = scale.make_encoder()
    backbone = encoder.backbone
    backbone.add_lora(LoraSpec(r=4, alpha=8), seed=0)
    with torch.no_grad():
        for parameter in backbone.trained().values():
            parameter.add_(0.01)
    facts = {"before": (backbone.fingerprint(adapter=True), encoder.encode(scale.texts(5)).tolist())}
    backbone.shard()
    facts["sharded"] = encoder.encode(scale.texts(5)).tolist()
    spread = [parameter for parameter in backbone.parameters() if distributed.is_sharded(parameter)]
    facts["weights"] = len(spread)
    facts["share"] = sum(distributed.to_local(part).numel() for part in spread) / sum(part.numel() for part in spread)
    backbone.unshard()
    facts["after"] = (backbone.fingerprint(adapter=True), encoder.encode(scale.texts(5)).tolist())
    backbone.merge_lora()
    facts["merged"] = backbone.fingerprint()
    return facts


def work(folder: Path, count: int) -> dict[str, Any]:
    """Everything that is compared, in one of `count` processes."""
    found: dict[str, Any] = {"steps": scale.steps(count, SHARDS, OBJECTIVES)}
    for name in TRAINED:
        for way in {1: ("ddp",), 2: STRATEGIES}.get(count, ()):
            found[f"{name} {way}"] = trained(name, way, folder / f"{count}-{name}-{way}")
    if count > 1:
        found["there and back"] = there_and_back()
    for name in TRAINED:  # 2 processes with fsdp are killed; 4 of them and one alone go on
        if count == COUNTS[0]:
            assert trained(name, "fsdp", folder / f"killed-{name}", killed=True) == {}
        if count == COUNTS[1]:
            if distributed.is_main():
                shutil.copytree(folder / f"killed-{name}" / "run", folder / f"more-{name}" / "run")
            found[f"{name} resumed"] = trained(name, "fsdp", folder / f"more-{name}")
    return found


def main(folder: Path) -> None:
    for count in (1, *COUNTS):
        scale.together(count, folder, lambda count: work(folder, count))
    (folder / "alone").mkdir()
    scale.together(1, folder / "alone", lambda count: {n: trained(n, "ddp", folder / f"killed-{n}") for n in TRAINED})


# ------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each process found, by the number of processes; 0: the one that went on alone."""
    base = tmp_path_factory.getbasetemp()
    # Of the workers of one run of the tests the first that gets here does the work for all.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "scale"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            folder.mkdir()
            find(folder)
            (folder / "done").touch()
    read = {
        count: [torch.load(folder / f"{count}-{rank}.pt", weights_only=True) for rank in range(count)]
        for count in (1, *COUNTS)
    }
    return read | {0: [torch.load(folder / "alone" / "1-0.pt", weights_only=True)]}


def find(folder: Path) -> None:
    """Run this file as a program, which starts the processes."""
    own = {"PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(folder / "datasets"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, str(folder)], check=True, env=os.environ | own, cwd=ROOT)


@pytest.mark.parametrize("way", STRATEGIES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", cases(SHARDS, OBJECTIVES))
def test_a_step_of_several_processes_is_that_of_one(name: str, count: int, way: str, found) -> None:
    loss, gradient = alone = found[1][0]["steps"][f"{name} ddp"]
    assert all(tensor.abs().sum() > 0 for tensor in gradient.values())
    for process in found[count]:
        one = process["steps"][f"{name} {way}"]
        assert one[0] == pytest.approx(loss, rel=1e-6) and one[1].keys() == gradient.keys()
        assert difference(one, alone) < 5e-6
        assert_same(one[1], found[count][0]["steps"][f"{name} {way}"][1])


@pytest.mark.parametrize("name", TRAINED)
def test_training_leaves_the_same_weights_everywhere(name: str, found) -> None:
    alone = found[1][0][f"{name} ddp"]["weights"]
    start = dict(scale.make_encoder().named_parameters())
    moved = max((alone[key] - start[key]).abs().max() for key in start)
    for count, key in ((2, f"{name} ddp"), (2, f"{name} fsdp"), (4, f"{name} resumed")):
        assert len({process[key]["fingerprint"] for process in found[count]}) == 1
        weights = found[count][0][key]["weights"]
        off = max((alone[name] - weights[name]).abs().max() for name in start)
        assert off < 1e-2 * moved  # Adam turns rounding of tiny gradients into small steps


@pytest.mark.parametrize("name", TRAINED)
def test_a_checkpoint_of_two_sharing_processes_goes_on_in_one(name: str, found) -> None:
    expected, weights = found[2][0][f"{name} fsdp"]["weights"], found[0][0][name]["weights"]
    start = dict(scale.make_encoder().named_parameters())
    moved = max((expected[key] - start[key]).abs().max() for key in start)
    assert max((expected[key] - weights[key]).abs().max() for key in start) < 1e-2 * moved


@pytest.mark.parametrize("count", COUNTS)
def test_a_sharded_model_is_whole_again_bit_for_bit(count: int, found) -> None:
    for process in found[count]:
        facts = process["there and back"]
        assert facts["before"] == facts["after"] and facts["sharded"] == facts["before"][1]
        assert facts["merged"] == found[count][0]["there and back"]["merged"]
        assert facts["weights"] == 3 * 9 and facts["share"] == pytest.approx(1 / count, abs=0.05)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_USE_MEGATRON_LM", "true", "strategy: fsdp"),
        ("FSDP_OFFLOAD_PARAMS", "true", "without offloading"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "gradient_checkpointing: true"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "--mixed_precision no"),
    ],
)
def test_what_a_launcher_asks_for_in_vain_is_refused(name: str, value: str, message: str, monkeypatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        distributed.start()
    monkeypatch.setenv(name, "false" if value == "true" else "bf16")
    distributed.start()


def test_one_process_where_several_were_asked_for_is_refused(monkeypatch) -> None:
    """What `accelerate launch --cpu --num_processes 2` sets, which starts one."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    distributed.start()
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ValueError, match="started one"):
        distributed.start()


def test_a_launcher_may_ask_for_fsdp(monkeypatch) -> None:
    assert not distributed.wants_fsdp()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert distributed.wants_fsdp()


# ---------------------------------------------------------------------------------------------------- the commands


def recipe_file(folder: Path) -> Path:
    """Two stages on the packaged model: an adapter, and full training with sharded layers."""
    common = {"steps": 3, "batch_size": 5, "lr": 1e-3, "precision": "float32", "rng_shards": 4, "log_every": 1}
    common |= {
        "adam_eps": 1e-5
    }  # far above the rounding of a gradient, which the first steps would turn into full ones
    texts, pairs = texts_file(folder).model_dump(mode="json"), pairs_file(folder).model_dump(mode="json")
    lora = {"r": 4, "dropout": 0.2}
    stages = [
        {"objective": "simcse", "data": [texts], **common, "attention_dropout": 0.2, "lora": lora},
        {"objective": "contrastive", "data": [pairs], **common, "trainable": "full", "strategy": "fsdp"},
    ]
    template = [{"slot": "text", "pool": True}]
    recipe = {
        "name": "tiny",
        "model": {"name": "pocket", "dtype": "float32"},
        "input": {"query": template, "document": template, "max_tokens": 32},
        "pooling": "mean",
        "stages": stages,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def launched(launcher: list[str], recipe: Path, out: Path) -> dict[str, torch.Tensor]:
    """The weights that `llm2enc convert` exports under a launcher."""
    port = free_port()
    option = f"--{'main_process' if 'accelerate' in launcher[0] else 'master'}_port={port}"
    ours = ["-m", "llm2enc", "convert", str(recipe), "-o", str(out), "--json"]
    place = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *launcher, option, *ours]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | place, cwd=recipe.parent)
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.search(rf"processes\W+{launcher[-1][-1]}\b", done.stderr)  # the table before each stage says how many
    assert done.stdout.count('"folder"') == 1  # the main process's answer, and nobody else's
    return load_file(out / "model" / "model.safetensors")


ACCELERATE = ["accelerate.commands.launch", "--use_fsdp", "--fsdp_version=2", "--num_processes=2"]
TORCHRUN = ["torch.distributed.run", "--nproc-per-node=4"]


@pytest.mark.full  # torchrun's agents start in test_failures.py too
@pytest.mark.parametrize("launcher", [ACCELERATE, TORCHRUN], ids=lambda parts: parts[0])
def test_a_launched_conversion_is_that_of_one_process(launcher: list[str], tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path)
    alone = convert(load_recipe(str(recipe)), tmp_path / "alone").encoder.backbone
    weights = launched(launcher, recipe, tmp_path / "several")
    expected = load_file(tmp_path / "alone" / "model" / "model.safetensors")
    start = load_file(ROOT / "llm2enc" / "pocket" / "model.safetensors")
    moved = max((expected[name] - start[f"model.{name}"]).abs().max() for name in expected)
    assert weights.keys() == expected.keys() and moved > 1e-3
    assert max((weights[name] - expected[name]).abs().max() for name in expected) < 1e-2 * moved
    first, second = ((tmp_path / kind / "history.json").read_text() for kind in ("alone", "several"))
    chain = [[(row["stage"], row.get("parent")) for row in json.loads(text)][:3] for text in (first, second)]
    assert chain[0] == chain[1]  # both started from the same weights; rounding comes with the first step
    assert json.loads(first)[-1]["result"] == alone.fingerprint()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

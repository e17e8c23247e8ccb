"""ZeRO by DeepSpeed: what it is told, what is refused, and that its steps are those of one process.

`accelerate launch` starts this file as a program in 2 processes; the tests compare what they left.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import scale
from llm2enc import distributed
from llm2enc.distributed import launch as launching
from llm2enc.distributed import zero
from llm2enc.errors import NothingLearnt
from llm2enc.training.checks import Guard
from tests.distributed.test_scale import TRAINED, trained
from tests.support.jobs import free_port

ROOT = Path(__file__).parents[2]
CONFIG = {  # of the kind that examples for transformers and accelerate have
    "train_batch_size": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": False, "loss_scale": 0},
    "optimizer": "auto",
    "steps_per_print": 1000,
    "zero_optimization": {
        "stage": 1,
        "overlap_comm": False,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "offload_optimizer": {"device": "none"},
    },
}


def config_file(folder: Path, **changed: Any) -> str:
    path = folder / "zero.json"
    path.write_text(json.dumps(CONFIG | changed))
    return str(path)


# ------------------------------------------------------------------------------------------ what the processes do


def small(passes: int) -> dict[str, Any]:
    """Two steps of Zero, and of AdamW over the sum: this process has so many passes over tensors of odd sizes."""
    counts = distributed.gather(torch.tensor([passes]), [1] * distributed.world_size()).tolist()
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((5, 3), (7,), (2, 2, 2), (1,))]
    gradients = [[torch.randn(3, *t.shape, generator=generator) for t in start] for _ in range(2)]
    ours = [torch.nn.Parameter(tensor.clone()) for tensor in start]
    theirs = [torch.nn.Parameter(tensor.clone()) for tensor in start]

    def adamw(parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
        groups = [{"params": parameters[0::2], "weight_decay": 0.2}, {"params": parameters[1::2], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.1)

    whole, expected = adamw(theirs), []
    optimizer = distributed.Zero(ours, adamw(ours), largest=1.0)
    norms = []
    for step in range(2):
        for parameter, gradient in zip(theirs, gradients[step], strict=True):
            every = [gradient[n] * (rank + 1) for rank, count in enumerate(counts) for n in range(count)]
            parameter.grad = torch.stack(every).sum(0)
        expected.append(float(torch.nn.utils.clip_grad_norm_(theirs, 1.0)))
        whole.step()
        for n in range(passes):
            for parameter, gradient in zip(ours, gradients[step], strict=True):
                (parameter * 1).backward(gradient[n] * (distributed.rank() + 1))
        norms.append(float(distributed.reduce_gradients(optimizer, ours, 1.0)))
        optimizer.step()
        optimizer.zero_grad()
    kept = {f"{n} {name}": t for n, p in enumerate(ours) for name, t in distributed.moments(optimizer, p)}
    wanted = {f"{n} {name}": t for n, p in enumerate(theirs) for name, t in distributed.moments(whole, p)}
    ours[0].grad = torch.full_like(ours[0], torch.nan)
    bad = float(optimizer.reduce())
    held = sum(state["exp_avg"].numel() for state in optimizer._states()) / sum(p.numel() for p in ours)
    optimizer.close()
    return {
        "norms": (norms, expected),
        "bad": bad,
        "off": max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True)),
        "moments": max(float((kept[name] - wanted[name]).abs().max()) for name in wanted),
        "names": list(kept) == list(wanted),
        "file_lock": held,
        "own": all(p.untyped_storage().nbytes() == p.nbytes for p in ours) and not any(vars(p) for p in ours),
    }


def work(folder: Path) -> dict[str, Any]:
    """Everything that is compared, in one of two processes."""
    engines, build = [], zero._engine

    def noted(*given: Any) -> Any:
        engines.append(build(*given))
        return engines[-1]

    zero._engine = noted
    found: dict[str, Any] = {"small": small(passes=3 * distributed.rank())}
    for name, way in zip(TRAINED, ("ddp", "deepspeed"), strict=True):  # the launcher's word, and the stage's own
        found[name] = trained(name, way, folder / f"2-{name}")
        assert trained(name, "ddp", folder / f"spread-{name}", killed=True) == {}
        found[f"{name} resumed"] = trained(name, "ddp", folder / f"alone-{name}")
        if distributed.is_main():
            shutil.copytree(folder / f"spread-{name}" / "run", folder / f"again-{name}" / "run")
        found[f"{name} again"] = trained(name, "ddp", folder / f"again-{name}")
    os.environ[zero.FILE] = config_file(folder / str(distributed.rank()))
    found["clm-full first"] = trained("clm-full", "ddp", folder / "2-first")
    found["stages"] = [engine.zero_optimization_stage() for engine in engines]
    return found


def main(folder: Path) -> None:
    import deepspeed  # noqa: F401  its exchange through shared memory takes minutes to compile, for CPUs only

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    torch.set_num_threads(1)
    distributed.start()
    (folder / str(distributed.rank())).mkdir()
    torch.save(work(folder), folder / f"{distributed.rank()}.pt")
    distributed.barrier()


# ------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process found, and what each of two did."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    folder = tmp_path_factory.mktemp("zero")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "datasets"))
        alone = {name: trained(name, "ddp", folder / f"1-{name}") for name in TRAINED}
        for name in TRAINED:
            assert trained(name, "ddp", folder / f"alone-{name}", killed=True) == {}
        port = free_port()
        launcher = "accelerate.commands.launch --use_deepspeed --zero_stage=2 --num_processes=2 --mixed_precision=no"
        command = [sys.executable, "-m", *launcher.split(), f"--main_process_port={port}", __file__, str(folder)]
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(command, env=os.environ | own, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-6000:]
        alone |= {f"{name} resumed": trained(name, "ddp", folder / f"spread-{name}") for name in TRAINED}
    return {"alone": alone, "both": [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]}


def off(found: dict[str, Any], alone: dict[str, Any]) -> float:
    """The largest difference of two trainings' weights, in units of the largest change they made."""
    start = {name: parameter.detach() for name, parameter in scale.make_encoder().named_parameters()}
    expected = alone["weights"]
    moved = max((expected[name] - start[name]).abs().max() for name in start)
    return float(max((expected[name] - found["weights"][name]).abs().max() for name in start) / moved)


def test_steps_are_those_of_adamw_over_the_sum_whoever_has_how_many_passes(found) -> None:
    for process in found["both"]:
        one = process["small"]
        assert one["norms"][0] == pytest.approx(one["norms"][1], rel=1e-6) and min(one["norms"][1]) > 2
        assert one["off"] < 1e-6 and one["moments"] < 1e-6 and one["names"] and one["own"]
        assert one["file_lock"] == pytest.approx(1 / 2, abs=0.1)
        assert one["bad"] == float("inf")


@pytest.mark.parametrize("name", TRAINED)
def test_training_is_that_of_one_process(name: str, found) -> None:
    first, second = found["both"]
    assert first[name]["fingerprint"] == second[name]["fingerprint"]
    assert all(torch.equal(first[name]["weights"][key], second[name]["weights"][key]) for key in first[name]["weights"])
    assert off(first[name], found["alone"][name]) < 1e-3  # Adam turns rounding of tiny gradients into small steps


@pytest.mark.parametrize("name", TRAINED)
def test_a_checkpoint_goes_on_under_any_strategy(name: str, found) -> None:
    first, alone = found["both"][0], found["alone"]
    assert off(first[f"{name} resumed"], alone[name]) < 1e-3  # begun by one process
    assert off(alone[f"{name} resumed"], alone[name]) < 1e-3  # ended by one
    assert first[f"{name} again"]["fingerprint"] == first[name]["fingerprint"]  # bit for bit


def test_the_launcher_chooses_the_stage(found) -> None:
    stages = found["both"][0]["stages"]
    assert stages[:-1] == [2] * (1 + 4 * len(TRAINED)) and stages[-1] == 1
    assert off(found["both"][0]["clm-full first"], found["alone"]["clm-full"]) < 1e-3


def test_settings_are_handed_on_and_auto_is_left_out(monkeypatch, tmp_path: Path) -> None:
    assert zero.settings() == {"zero_optimization": {"stage": 2}}
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "1")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
    assert zero.settings() == {"zero_optimization": {"stage": 1}}
    monkeypatch.setenv(zero.FILE, config_file(tmp_path))
    assert zero.settings() == {"steps_per_print": 1000, "zero_optimization": {"stage": 1, "overlap_comm": False}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_batch_size": 32}, r"`train_batch_size` is for the recipe to say \(`batch_size`"),
        ({"gradient_accumulation_steps": 4}, "`micro_batch_tokens`"),
        ({"gradient_clipping": 1.0}, "`max_grad_norm`"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}, "`lr`"),
        ({"scheduler": {"type": "WarmupLR"}}, "`schedule`"),
        ({"fp16": {"enabled": True}}, "`precision`"),
        ({"zero_optimization": {"stage": 3}}, "ZeRO stage 3: 1 and 2 .* `strategy: fsdp`"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer.*strategy: fsdp",
        ),
        ({"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}}}, "zero_optimization.zenflow"),
        ({"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, "zero_optimization.round_robin_gradients"),
        ({"zero_optimization": 2}, "expected a mapping"),
        ({"communication_data_type": "fp16"}, "`communication_data_type`"),
        ({"prescale_gradients": True, "optimizer": {}}, "`optimizer` .*; `prescale_gradients`"),
    ],
)
def test_settings_that_contradict_the_recipe_are_refused(
    changed: dict, message: str, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(launching.DEEPSPEED, "true")
    monkeypatch.setenv(zero.FILE, config_file(tmp_path, **changed))
    with pytest.raises(ValueError, match=message):
        distributed.start()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3", "ZeRO stage 3"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu", "nothing is offloaded"),
        ("ACCELERATE_GRADIENT_CLIPPING", "0.5", "`max_grad_norm`"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "`micro_batch_tokens`"),
        (zero.FILE, "missing.json", "can be read"),
    ],
)
def test_what_the_launcher_asks_for_in_vain_is_refused(name: str, value: str, message: str, monkeypatch) -> None:
    monkeypatch.setenv(name, value)
    distributed.start()  # means nothing without --use_deepspeed
    monkeypatch.setenv(launching.DEEPSPEED, "true")
    with pytest.raises(ValueError, match=message):
        distributed.start()


def test_without_deepspeed_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setattr(zero, "find_spec", lambda name: None)
    monkeypatch.setenv(launching.DEEPSPEED, "true")
    with pytest.raises(ValueError, match=r"llm2enc\[deepspeed\]"):
        distributed.start()


def test_an_update_that_moves_nothing_is_found_without_gradients() -> None:
    guard = Guard({"weight": torch.nn.Parameter(torch.ones(2))})
    with pytest.raises(NothingLearnt, match="moved none of the 1"), guard.update(0.1):
        pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Stage folders: what is reloaded is what was trained, and what does not fit is refused."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm2enc.encoding import Encoder
from llm2enc.recipe import ClmStage, FilesData, LoraSpec
from llm2enc.training import checkpoint
from tests.support.builders import assert_same, make_encoder

LORA = ClmStage(
    objective="clm",
    data=(FilesData(kind="files", path="unused.txt"),),
    steps=1,
    batch_size=1,
    lr=1.0,
    lora=LoraSpec(r=4, alpha=8, dropout=0.0),
)
FULL = LORA.model_copy(update={"trainable": "full", "lora": None})
STAGES = pytest.mark.parametrize("stage", [LORA, FULL], ids=["lora", "full"])


def start(stage: ClmStage) -> tuple[Encoder, torch.optim.Optimizer]:
    encoder = make_encoder()
    if stage.trainable == "full":
        encoder.backbone.train_everything(head=True)
    else:
        encoder.backbone.add_lora(stage.lora, seed=0)
    return encoder, torch.optim.AdamW(encoder.backbone.trained().values(), lr=0.01)


def move(encoder: Encoder, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """One optimizer step along random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in encoder.backbone.trained().values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def weights(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}


def finished(stage: ClmStage, folder: Path) -> dict[str, torch.Tensor]:
    """A finished stage in `folder`; the weights after it."""
    encoder, optimizer = start(stage)
    parent = encoder.backbone.fingerprint()
    for seed in range(3):
        move(encoder, optimizer, seed)
    folder.mkdir(exist_ok=True)
    checkpoint.finish(folder, encoder, parent, {"steps": 3})
    return weights(encoder)


@STAGES
def test_a_checkpoint_restores_weights_and_optimizer(stage: ClmStage, tmp_path: Path) -> None:
    encoder, optimizer = start(stage)
    assert checkpoint.resume(tmp_path, encoder, optimizer) == 0
    move(encoder, optimizer, 1)
    checkpoint.save(tmp_path, 5, encoder, optimizer)
    move(encoder, optimizer, 2)
    other, other_optimizer = start(stage)
    assert checkpoint.resume(tmp_path, other, other_optimizer) == 5
    move(other, other_optimizer, 2)  # equal only with the moments of the first step
    assert_same(weights(other), weights(encoder))


def test_the_former_checkpoint_serves_if_the_new_one_never_arrived(tmp_path: Path) -> None:
    encoder, optimizer = start(LORA)
    checkpoint.save(tmp_path, 5, encoder, optimizer)
    (tmp_path / "checkpoint").rename(tmp_path / f".checkpoint.former-{os.getpid()}")  # killed between the two renames
    assert checkpoint.resume(tmp_path, encoder, optimizer) == 5
    checkpoint.save(tmp_path, 6, encoder, optimizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]
    assert checkpoint.resume(tmp_path, encoder, optimizer) == 6


@pytest.mark.parametrize("first", range(6))
def test_two_kills_while_saving_leave_a_whole_checkpoint(first: int, tmp_path: Path) -> None:
    """Both saves stop before their n-th rename or removal."""
    encoder, optimizer = start(LORA)
    for second in range(6):
        folder = tmp_path / str(second)
        checkpoint.save(folder, 5, encoder, optimizer)
        for step, moment in ((6, first), (7, second)):
            save_and_die(folder, step, encoder, optimizer, moment)
            assert 5 <= checkpoint.resume(folder, encoder, optimizer) <= step


def save_and_die(folder: Path, step: int, encoder: Encoder, optimizer: torch.optim.Optimizer, moment: int) -> None:
    left = [moment]

    def counted(function: Callable) -> Callable:
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        checkpoint.save(folder, step, encoder, optimizer)


@pytest.mark.parametrize("other", [FULL, LORA.model_copy(update={"lora": LoraSpec(r=2)})], ids=["full", "r"])
def test_a_checkpoint_of_another_recipe(other: ClmStage, tmp_path: Path) -> None:
    encoder, optimizer = start(LORA)
    checkpoint.save(tmp_path, 5, encoder, optimizer)
    encoder, optimizer = start(other)
    before = weights(encoder)
    with pytest.raises(ValueError, match="trains other weights than the recipe does now"):
        checkpoint.resume(tmp_path, encoder, optimizer)
    assert_same(weights(encoder), before)


@STAGES
def test_a_finished_stage_is_the_state_after_it(stage: ClmStage, tmp_path: Path) -> None:
    expected = finished(stage, tmp_path)
    again = make_encoder()
    checkpoint.load_finished(tmp_path, again, stage, seed=9)
    assert_same(weights(again), expected)
    assert not again.backbone.trained() and not again.backbone.has_adapter
    base = make_encoder()
    moved = [name for name, tensor in weights(base).items() if not torch.equal(tensor, expected[name])]
    assert len(moved) == (14 if stage is LORA else 21)


def test_stages_stand_on_each_other(tmp_path: Path) -> None:
    encoder = make_encoder()
    for number, stage in enumerate((LORA, FULL, LORA)):
        backbone, parent = encoder.backbone, encoder.backbone.fingerprint()
        if stage.trainable == "full":
            backbone.train_everything(head=True)
        else:
            backbone.add_lora(stage.lora, seed=number)
        move(encoder, torch.optim.AdamW(backbone.trained().values(), lr=0.01), number)
        (tmp_path / str(number)).mkdir()
        checkpoint.finish(tmp_path / str(number), encoder, parent, {})
    again = make_encoder()
    for number, stage in enumerate((LORA, FULL, LORA)):
        checkpoint.load_finished(tmp_path / str(number), again, stage, seed=0)
    assert_same(weights(again), weights(encoder))
    skipped = make_encoder()
    checkpoint.load_finished(tmp_path / "0", skipped, LORA, seed=0)
    with pytest.raises(ValueError, match="an earlier stage has changed"):
        checkpoint.load_finished(tmp_path / "2", skipped, LORA, seed=0)


@STAGES
def test_another_base_is_refused_before_it_is_touched(stage: ClmStage, tmp_path: Path) -> None:
    finished(stage, tmp_path)
    other = make_encoder(initializer_range=0.1)
    before = weights(other)
    with pytest.raises(ValueError, match="another base model"):
        checkpoint.load_finished(tmp_path, other, stage, seed=0)
    assert_same(weights(other), before)


@STAGES
def test_damaged_files_are_found(stage: ClmStage, tmp_path: Path) -> None:
    finished(stage, tmp_path)
    path = tmp_path / (checkpoint.FULL if stage is FULL else "adapter/adapter_model.safetensors")
    state = load_file(path)
    name = next(name for name in state if "q_proj" in name)
    state[name].view(-1)[0] += 1e-3
    save_file(state, path)
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.load_finished(tmp_path, make_encoder(), stage, seed=0)


def test_finished_says_so_last(tmp_path: Path) -> None:
    """A run killed while it stores its result is not finished, and its checkpoint is still there."""
    encoder, optimizer = start(LORA)
    parent = encoder.backbone.fingerprint()
    move(encoder, optimizer, 0)
    checkpoint.save(tmp_path, 1, encoder, optimizer)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(encoder.backbone), "merge_lora", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        checkpoint.finish(tmp_path, encoder, parent, {})
    assert not checkpoint.is_finished(tmp_path)
    again, optimizer = start(LORA)
    assert checkpoint.resume(tmp_path, again, optimizer) == 1
    assert_same(weights(again), weights(encoder))
    checkpoint.finish(tmp_path, again, parent, {"steps": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "finished.json"]
    facts = json.loads((tmp_path / "finished.json").read_text())
    assert facts == {"steps": 1, "parent": parent, "result": again.backbone.fingerprint()}


def without_the_first(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(sorted(state.items())[1:])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_the_first, r"1 missing \("),
        (lambda state: state | {"extra": torch.ones(2)}, r"1 unexpected \(extra\)"),
        (lambda state: {name: tensor[:1] for name, tensor in state.items()}, r"of another shape \("),
    ],
    ids=["missing", "unexpected", "shape"],
)
@STAGES
def test_a_stage_with_other_tensors_is_refused_by_their_names(
    stage: ClmStage, change: Callable, words: str, tmp_path: Path
) -> None:
    finished(stage, tmp_path)
    path = tmp_path / (checkpoint.FULL if stage is FULL else "adapter/adapter_model.safetensors")
    state = {name: tensor for name, tensor in load_file(path).items() if "lm_head" not in name}
    save_file(change(state), path)
    with pytest.raises(ValueError, match=words):
        checkpoint.load_finished(tmp_path, make_encoder(), stage, seed=0)


@STAGES
def test_a_stage_whose_file_was_cut_is_refused_with_both_sizes(stage: ClmStage, tmp_path: Path) -> None:
    finished(stage, tmp_path)
    path = tmp_path / (checkpoint.FULL if stage is FULL else "adapter/adapter_model.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(
        ValueError, match=rf"{path.name} has {len(whole) - 10} bytes, but its header describes {len(whole)}"
    ):
        checkpoint.load_finished(tmp_path, make_encoder(), stage, seed=0)

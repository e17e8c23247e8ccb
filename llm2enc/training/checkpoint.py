"""Stage folders on disk: checkpoints to resume from, finished stages to build on.

    0-mntp/
      checkpoint/        trained weights, the optimizer's moments, step, what it was begun with, what was measured and the
                         best weights by that; replaced as a whole
      kept/step-N.safetensors  trained weights after step N, for a merge stage
      adapter/           the finished adapter in PEFT's layout, or full.safetensors
      head.safetensors   the weights between pooling and vector, if the stage trained any
      finished.json      steps, fingerprints of the weights before and after, of template and data; written last
      teacher-0.answers  what a teacher has said so far, by text, up to the checkpoint; goes when the stage is finished
  metrics.jsonl      one line per logged step

Everything is written beside its place and renamed into it, so a killed run leaves the former state or the new one. An
adapter means something on the weights it was trained on only: the fingerprint of its parent is stored and checked. Where
the next stage goes on with it, the adapter stays unmerged, and weights and adapter together are the parent.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm2enc import distributed
from llm2enc.distributed import Zero
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError, explained
from llm2enc.model import Backbone, check_tensors, tensor_shapes
from llm2enc.recipe import LoraSpec, MergeStage, Stage
from llm2enc.storage import (
    add_path_to_oserror,
    atomic_directory,
    recover,
    remove_stale,
    replace_text,
    sync,
    sync_one,
    temp_path,
)
from llm2enc.training.origin import check_origin
from llm2enc.training.teachers import answers_file

FULL, HEAD = "full.safetensors", "head.safetensors"
TRAINED, OPTIMIZER, BEST = "trained.safetensors", "optimizer.safetensors", "best.safetensors"
CHECKPOINT = "checkpoint"
NOTHING: Mapping[str, str] = MappingProxyType({})


def save(
    folder: Path,
    step: int,
    encoder: Encoder,
    optimizer: torch.optim.Optimizer | Zero,
    begun: Mapping[str, str] = NOTHING,
    measured: Sequence[dict[str, Any]] = (),
    best: bool = False,
) -> None:
    """Everything that step `step` (the next to run) needs; its noise depends on its number alone.

    begun     digests of what the stage was begun with, by name
    measured  the measurements within the stage
    best      whether these weights are the best by them; otherwise those of the former checkpoint are kept on
    """
    trained = encoder.trained()
    moments = (
        (f"{name}.{moment}", tensor)
        for name, parameter in trained.items()
        for moment, tensor in distributed.moments(optimizer, parameter)
    )
    with atomic_directory(folder / CHECKPOINT) if distributed.is_main() else nullcontext() as partial:
        for tensors, file in ((trained.items(), TRAINED), (moments, OPTIMIZER)):
            whole = _whole(tensors)
            if partial is not None:
                save_file(whole, partial / file)
            del whole  # before the next ones are put together
        if partial is not None:
            former = partial / TRAINED if best else folder / CHECKPOINT / BEST
            if former.is_file():
                _link(former, partial / BEST)
            facts = {"step": step, "begun": dict(begun), **({"measured": [*measured]} if measured else {})}
            (partial / "step.json").write_text(json.dumps(facts))
    distributed.barrier()


def resume(
    folder: Path, encoder: Encoder, optimizer: torch.optim.Optimizer | Zero, now: Mapping[str, str] = NOTHING
) -> int:
    """The step to go on with, after restoring the checkpoint of `folder`; 0 if there is none.

    now     digests as for `save`
    raises  InputError, before anything is changed, if one of them differs, or the checkpoint trains other weights
    """
    source = folder / CHECKPOINT
    if distributed.is_main():
        recover(source)
    distributed.barrier()
    if not (source / "step.json").is_file():
        return 0
    with explained(f"the checkpoint in {source}", "start again with --overwrite", (ValueError, SafetensorError)):
        facts = json.loads((source / "step.json").read_text())
        check_origin(folder, facts.get("begun", {}), now)
        saved, moments = load_file(source / TRAINED), load_file(source / OPTIMIZER)
    trained = encoder.trained()
    if trained.keys() != saved.keys() or any(trained[n].shape != saved[n].shape for n in trained):
        raise InputError(
            f"the checkpoint in {source} trains other weights than the recipe does now; resume with the recipe it was "
            "started with, or start again with --overwrite"
        )
    _put(saved, trained)
    if isinstance(optimizer, Zero):
        optimizer.take_weights()
    for name, tensor in moments.items():
        name, _, moment = name.rpartition(".")
        # Adam counts its steps on the CPU wherever the weights are.
        held = tensor if moment == "step" else distributed.distribute_like(tensor, trained[name])
        distributed.set_moment(optimizer, trained[name], moment, held)
    return facts["step"]


def measured(folder: Path) -> list[dict[str, Any]]:
    """The measurements within the stage that the checkpoint of `folder` knows of; none without one."""
    path = folder / CHECKPOINT / "step.json"
    return json.loads(path.read_text()).get("measured", []) if path.is_file() else []


def take_best(folder: Path, encoder: Encoder) -> None:
    """Give the encoder the best weights that the checkpoint of `folder` holds."""
    _put(load_file(folder / CHECKPOINT / BEST), encoder.trained())


def keep(folder: Path, step: int, encoder: Encoder) -> None:
    """Store the trained weights after `step` steps, to stay when the stage is finished."""
    whole = _whole(encoder.trained().items())
    if distributed.is_main():
        path = kept(folder, step)
        path.parent.mkdir(exist_ok=True)
        remove_stale(path)
        partial = temp_path(path)
        with add_path_to_oserror(path):
            save_file(whole, partial)
            sync_one(partial)
            os.replace(partial, path)
    distributed.barrier()


def kept(folder: Path, step: int) -> Path:
    """Where `keep` stores the weights after `step` steps."""
    return folder / "kept" / f"step-{step}.safetensors"


def put_kept(folder: Path, step: int, encoder: Encoder) -> None:
    """Give the encoder, which is ready to train the stage of `folder`, the weights that were kept after `step` steps.

    raises  InputError if they are not there, or do not belong to this encoder
    """
    path, trained = kept(folder, step), encoder.trained()
    if not path.is_file():
        raise InputError(f"{path} is missing; put it back, or start again with --overwrite")
    shapes = {name: tuple(parameter.shape) for name, parameter in trained.items()}
    check_tensors(path, shapes, "this encoder", "start again with --overwrite")
    _put(load_file(path), trained)


def put_adapter(backbone: Backbone, stage: Stage | MergeStage, seed: int) -> None:
    """Give the backbone the adapter that a LoRA stage starts from: a fresh one, or the one it carries."""
    if stage.lora == "continue":
        backbone.continue_lora()
    else:
        backbone.add_lora(stage.lora or LoraSpec(), seed)


def finish(folder: Path, encoder: Encoder, parent: str, facts: dict, keep_adapter: bool = False) -> None:
    """Store what the stage trained, merge its adapter, and mark the folder finished.

    parent        the fingerprint before, with the adapter that was there
    keep_adapter  leave the adapter unmerged, for the next stage to go on with
    """
    backbone, head = encoder.backbone, encoder.head
    is_adapter, partial = backbone.has_adapter, backbone.adapter_leaves_out
    if head is not None and not any(parameter.requires_grad for parameter in head.parameters()):
        head = None  # nothing of it to store
    if distributed.is_main():
        if is_adapter:
            backbone.save_adapter(folder / "adapter")
        else:
            trained = {name: p.detach().contiguous() for name, p in backbone.trained().items()}
            save_file(trained, folder / FULL)
        if head is not None:
            save_file(head.state_dict(), folder / HEAD)
    if is_adapter and not keep_adapter:
        backbone.merge_lora()
    encoder.requires_grad_(False)
    if distributed.is_main():
        # What the next line says is there must be there after a power cut too.
        (sync if is_adapter else sync_one)(folder / ("adapter" if is_adapter else FULL))
        if head is not None:
            sync_one(folder / HEAD)
        facts = {
            **facts,
            **({"adapter": partial} if partial else {}),
            "parent": parent,
            "result": encoder.weights_fingerprint(),
        }
        replace_text(folder / "finished.json", json.dumps(facts, indent=1))
        tidy(folder)
    distributed.barrier()


def tidy(folder: Path) -> None:
    """Remove what a killed process left: half a checkpoint, and whole ones of a finished stage."""
    remove_stale(folder / CHECKPOINT)
    if is_finished(folder):
        remove_stale(folder / CHECKPOINT, "former")
        shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
        for answers in folder.glob(answers_file(folder, "*").name):
            answers.unlink()


def is_finished(folder: Path) -> bool:
    return (folder / "finished.json").is_file()


def load_finished(
    folder: Path,
    encoder: Encoder,
    stage: Stage | MergeStage,
    seed: int,
    keep_adapter: bool = False,
    now: Mapping[str, str] = NOTHING,
) -> None:
    """Bring the encoder to the state after the finished stage of `folder`; `keep_adapter` as for `finish`.

    now     digests of what the stage would be begun with today
    raises  InputError if one of them differs, or if the weights are not those the stage was trained on, or do not become
            those it produced
    """
    backbone = encoder.backbone
    with explained(str(folder / "finished.json"), "start again with --overwrite"):
        facts = json.loads((folder / "finished.json").read_text())
    check_origin(folder, facts.get("begun", {}), now)
    parent = encoder.weights_fingerprint()
    if parent != facts["parent"]:
        raise InputError(
            f"{folder} was trained on weights {facts['parent'][:12]}, but these are {parent[:12]}: another base model, or "
            "an earlier stage has changed. Use the base it belongs to, or train the stage again"
        )
    if (folder / FULL).exists():
        parameters = dict(backbone.named_parameters())
        written = tensor_shapes(folder / FULL)
        decoder = {id(parameter) for parameter in backbone.decoder.parameters()}  # the head's may be among them
        own = {name: tuple(p.shape) for name, p in parameters.items() if id(p) in decoder or name in written}
        if stage.trainable not in ("full", "lora"):
            backbone.train_part(stage.trainable)
            own = {name: tuple(p.shape) for name, p in backbone.trained().items()}
        check_tensors(folder / FULL, own, "this model", "train the stage again")
        with torch.no_grad():
            for name, tensor in load_file(folder / FULL).items():
                parameters[name].copy_(tensor)
    else:
        put_adapter(backbone, stage, seed)
        backbone.load_adapter(folder / "adapter")
        if not keep_adapter:
            backbone.merge_lora()
    if encoder.head is not None and (folder / HEAD).exists():
        own = {name: tuple(tensor.shape) for name, tensor in encoder.head.state_dict().items()}
        check_tensors(folder / HEAD, own, "this encoder's head", "train the stage again")
        encoder.head.load_state_dict(load_file(folder / HEAD))
    encoder.requires_grad_(False)
    if encoder.weights_fingerprint() != facts["result"]:
        raise InputError(f"{folder}: the weights after this stage are not those it produced; its files are damaged")


def _put(saved: Mapping[str, Tensor], trained: Mapping[str, torch.nn.Parameter]) -> None:
    """Give the parameters the saved values, each process its part."""
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(distributed.distribute_like(saved[name], parameter))


def _link(file: Path, place: Path) -> None:
    """The file under a second name, where the file system has such; otherwise a copy of it."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def _whole(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors as the main process writes them; the others help to put together what is spread over them."""
    found = {}
    for name, tensor in tensors:
        full = distributed.full_tensor(tensor.detach())
        if distributed.is_main():
            found[name] = full.cpu().contiguous()  # at once: a GPU has room for one at a time
    return found

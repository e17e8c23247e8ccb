"""One process under torchrun: the collectives, and a stage trained as without it. `joined SETTINGS END ANSWER`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from llm2enc.encoding import Encoder
from llm2enc.training import OBJECTIVES, prepare
from tools.gpu import exactness
from tools.gpu.rows import FAILED, OK, Row, attempt
from tools.gpu.settings import Context, Settings


def main() -> None:
    context, answer = Context(Settings.from_json(sys.argv[1]), float(sys.argv[2])), Path(sys.argv[3])
    alone = _trained(context)
    backend = "nccl" if context.device == "cuda" else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(0)
    dist.init_process_group(backend)
    rows = {
        f"{backend}, collectives": lambda name: _collectives(name, context),
        f"{backend}, trained as alone": lambda name: _equal(name, alone, _trained(context)),
        f"{backend}, layers sharded": lambda name: _sharded(name, context),
    }
    for name, find in rows.items():
        row = attempt(name, lambda find=find, name=name: find(name))
        with answer.open("a") as file:
            file.write(json.dumps(asdict(row), default=str) + "\n")
    dist.destroy_process_group()


def _collectives(name: str, context: Context) -> Row:
    value = torch.arange(4.0, device=context.device)
    gathered = torch.empty_like(value)
    dist.all_gather_into_tensor(gathered, value)
    summed = value.clone()
    dist.all_reduce(summed)
    dist.barrier()
    good = torch.equal(gathered, value) and torch.equal(summed, value)
    return Row(name, OK if good else FAILED, {"backend": dist.get_backend()})


def _trained(context: Context) -> Encoder:
    torch.use_deterministic_algorithms(True, warn_only=True)
    recipe = exactness.small_recipe(context.folder("recipe"), "mntp")
    return exactness.trained(recipe, context, context.folder("stage") / "0")


def _equal(name: str, alone: Encoder, joined: Encoder) -> Row:
    off = exactness.distance(alone, joined)
    return Row(name, OK if off == 0 else FAILED, {"differs by": off})


def _sharded(name: str, context: Context) -> Row:
    """The gradient of a batch with the layers spread over this one process (FSDP2), beside that without."""
    recipe = exactness.small_recipe(context.folder("recipe"), "mntp")
    stage, objective, gradients = recipe.stages[0], OBJECTIVES["mntp"], []
    for sharded in (False, True):
        encoder = Encoder.from_recipe(recipe)
        prepare(encoder, stage, recipe.seed)
        if sharded:
            encoder.backbone.shard()
        rows = next(objective.batches(stage, encoder.input_format, recipe.seed, 0))
        objective.backward(encoder, objective.collate(rows, stage, encoder.input_format, recipe.seed), stage)
        gradients.append(torch.cat([p.grad.float().flatten() for p in encoder.trained().values()]))
    off = ((gradients[0] - gradients[1]).norm() / gradients[0].norm()).item()
    # One process sends nothing, so only the order of sums may differ: bfloat16 rounds to 2^-8.
    return Row(name, OK if off <= 2**-8 else FAILED, {"gradient differs by": off})


if __name__ == "__main__":
    main()

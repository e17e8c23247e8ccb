"""What a stage trains, on how many processes, and with which optimizer."""

import math
from collections.abc import Iterable

import torch

from llm2enc import distributed
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.model import Backbone
from llm2enc.recipe import LoraSpec, Stage
from llm2enc.training.checkpoint import put_adapter
from llm2enc.training.microbatch import idle
from llm2enc.training.objectives import OBJECTIVES
from llm2enc.training.teachers import Teachers


def check_processes(stage: Stage) -> None:
    """ValueError if a process would have nothing to do, or lacks what it needs."""
    if uses_zero(stage):
        distributed.check_zero()
    processes = distributed.world_size()
    reason = idle(processes, stage.batch_size, stage.rng_shards)
    if reason:
        raise InputError(
            f"{reason}. Start fewer, or set `rng_shards` (which changes the dropout noise) and `batch_size` to at least "
            f"{processes} in the recipe"
        )


def prepare(encoder: Encoder, stage: Stage, seed: int) -> None:
    """Make ready for training: adapter or all weights, dropout, checkpointing, and layers spread over the processes.

    raises  ValueError as `prepare_backbone`, or for layers that cannot be spread
    """
    prepare_backbone(encoder.backbone, stage, seed)
    if encoder.head is not None:
        encoder.head.requires_grad_(not OBJECTIVES[stage.objective].predicts_tokens)
    encoder.train()  # and not its backbone alone: `evaluating` goes back to the encoder's mode
    if distributed.world_size() > 1 and (stage.strategy == "fsdp" or distributed.wants_fsdp()):
        encoder.backbone.shard()


def prepare_backbone(backbone: Backbone, stage: Stage, seed: int) -> None:
    """What `prepare` does on one process; the planner does it to a model without weights.

    seed    of a fresh adapter
    raises  ValueError for a stage that the model cannot train
    """
    check_stage(backbone, stage)
    if stage.trainable == "lora":
        put_adapter(backbone, stage, seed)
    backbone.set_gradient_checkpointing(stage.gradient_checkpointing)
    backbone.train()


def check_stage(backbone: Backbone, stage: Stage) -> None:
    """ValueError for a stage that the model cannot train. Sets attention dropout, and what trains if that is everything."""
    objective = OBJECTIVES[stage.objective]
    if stage.trainable == "full":
        backbone.train_everything(head=objective.trains_head)
    elif isinstance(stage.lora, LoraSpec):
        backbone.check_lora(stage.lora)
    if objective.predicts_tokens and not backbone.has_head:
        raise InputError(
            f"a {stage.objective} stage predicts tokens, but this model has no language-model head; start from the causal "
            "LM instead of an exported encoder"
        )
    backbone.set_attention_dropout(stage.attention_dropout)


def check_stages(encoder: Encoder, stages: Iterable[Stage]) -> None:
    """ValueError for the first of the stages that the encoder's model cannot train, or whose teachers cannot be asked,
    before any of them runs."""
    for stage in stages:
        check_stage(encoder.backbone, stage)
        objective = OBJECTIVES[stage.objective]
        objective.auxiliary(encoder, stage, Teachers(objective.teachers(stage)), 0)
    restore(encoder)


def restore(encoder: Encoder) -> None:
    """Undo what `prepare` set for training alone; the adapter stays."""
    encoder.backbone.set_attention_dropout(0.0)
    encoder.backbone.set_gradient_checkpointing(False)
    encoder.eval()


def make_optimizer(stage: Stage, parameters: dict[str, torch.nn.Parameter]) -> torch.optim.Optimizer | distributed.Zero:
    """AdamW by the recipe; its moments and updates spread over the processes if DeepSpeed is wanted."""
    optimizer = torch.optim.AdamW(
        [
            {"params": group, "weight_decay": decay}
            for decay, alike in decay_groups(stage, parameters)
            for group in distributed.grouped_by_sharding(alike)
        ],
        lr=stage.lr,
        betas=stage.adam_betas,
        eps=stage.adam_eps,
    )
    if uses_zero(stage):
        return distributed.Zero(parameters.values(), optimizer, stage.max_grad_norm or math.inf)
    return optimizer


def decay_groups(
    stage: Stage, parameters: dict[str, torch.nn.Parameter]
) -> list[tuple[float, list[torch.nn.Parameter]]]:
    """Weight decay, and the parameters that have it; norms (one dimension) and biases have none unless the stage says so."""
    if not stage.weight_decay or stage.weight_decay_on == "all":
        return [(stage.weight_decay, list(parameters.values()))]
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        spared = parameter.dim() < 2 or name.endswith("bias")
        groups.setdefault(0.0 if spared else stage.weight_decay, []).append(parameter)
    return list(groups.items())


def uses_zero(stage: Stage) -> bool:
    """Whether DeepSpeed spreads the moments over the processes."""
    wanted = stage.strategy == "deepspeed" or (stage.strategy == "ddp" and distributed.wants_zero())
    return wanted and distributed.world_size() > 1

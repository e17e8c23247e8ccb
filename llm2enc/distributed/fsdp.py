"""Layers spread over the processes (FSDP2): each holds a part of every weight, of its gradient and of its moments.

The weights of a layer are gathered while it runs and let go of afterwards; gradients are added up part by part as soon as
a layer's backward pass is done. Parts are DTensors cut along their first axis, and everything here follows the contract
of the package: sums, never averages. Every process must run the layers equally often and in the same order.
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llm2enc.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def check_sharding() -> None:
    """ValueError if this torch cannot spread layers as we need it: with parts left whole, and gradients that are sums."""
    from torch.distributed import fsdp

    spread = getattr(fsdp, "fully_shard", None)
    wanted = ("set_gradient_divide_factor", "set_force_sum_reduction_for_comms")
    if (
        spread is None
        or "ignored_params" not in inspect.signature(spread).parameters
        or not all(hasattr(fsdp.FSDPModule, name) for name in wanted)
    ):
        raise InputError(
            f"`strategy: fsdp` needs a newer torch than {torch.__version__}: one whose fully_shard takes `ignored_params` "
            "and adds gradients up instead of averaging them; update torch, or use `strategy: ddp`"
        )


def shard_layers(decoder: nn.Module, layers: Sequence[nn.Module], whole: set[nn.Parameter]) -> None:
    """Cut the parameters of `layers` into parts, one per process. Those in `whole` stay whole in every process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind = next(decoder.parameters()).device.type
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    for layer in layers:
        part = fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    # It owns nothing, but ends the backward pass of layers whose own hooks see no gradient.
    fully_shard(decoder, mesh=mesh, ignored_params=whole)


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether this process holds a part of the tensor only."""
    return hasattr(tensor, "full_tensor")


def to_local(tensor: Tensor) -> Tensor:
    """What this process holds of the tensor; shares its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor with the parts of all processes, all of which must ask; itself if it is no part."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def distribute_like(tensor: Tensor, model: Tensor) -> Tensor:
    """The whole tensor as `model` is held: on its device, cut in the same way. All processes must ask."""
    tensor = tensor.to(model.device)
    if not is_sharded(model):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, model.device_mesh, model.placements)


def grouped_by_sharding(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters in groups that an optimizer may treat together: parts, and those that are whole. None is empty."""
    groups: dict[bool, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(is_sharded(parameter), []).append(parameter)
    return list(groups.values())


def clip(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale gradients so that their common norm is at most `largest`; return the norm before.

    The norm is that of the whole gradient: parts count once, whichever process holds them.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    if not any(is_sharded(parameter) for parameter in parameters):
        return nn.utils.clip_grad_norm_(parameters, largest)
    squares = {kind: torch.zeros((), device=parameters[0].device) for kind in (True, False)}
    gradients = [to_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        squares[is_sharded(parameter)] += torch.linalg.vector_norm(gradient, dtype=torch.float32).square()
    dist.all_reduce(squares[True])
    norm = (squares[True] + squares[False]).sqrt()
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)  # as torch's own clip_grad_norm_ has it
    for gradient in gradients:
        gradient.mul_(factor)
    return norm

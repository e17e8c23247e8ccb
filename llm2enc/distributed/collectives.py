"""Collectives on tensors: who this process is, what others have, sums over all. With one process they do nothing."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llm2enc.distributed.fsdp import clip, is_sharded
from llm2enc.distributed.process_group import running
from llm2enc.distributed.zero import Zero


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if running() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if running() else 1


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def rank_slice(count: int, process: int | None = None) -> range:
    """Which of `count` things belong to a process, this one by default: neighbours, one more or less than others have."""
    process = rank() if process is None else process
    size, extra = divmod(count, world_size())
    start = process * size + min(process, extra)
    return range(start, start + size + (process < extra))


def gather(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """(sum of counts, D) the rows of every process, in order, without gradient. `counts`: how many each one has."""
    if world_size() == 1:
        return rows.detach()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over the processes, all in one message. Gradients of parts are sums already."""
    if world_size() == 1:
        return
    parameters = [parameter for parameter in parameters if not is_sharded(parameter)]
    if not parameters:
        return
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:  # a process whose share was empty still takes part
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, total in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


def reduce_gradients(
    optimizer: torch.optim.Optimizer | Zero, parameters: Iterable[nn.Parameter], largest: float
) -> Tensor:
    """Add gradients up over the processes for the optimizer's next step; return the norm of the whole gradient.

    If it is larger than `largest`, the step is done with gradients scaled down to that.
    """
    if isinstance(optimizer, Zero):
        return optimizer.reduce()  # it was told `largest` before
    sum_gradients(parameters)
    return clip(parameters, largest)


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum of `value` over the processes."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def all_reduce_max(number: int, device: torch.device) -> int:
    """The largest of the numbers that the processes have."""
    if world_size() == 1:
        return number
    value = torch.tensor(number, device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)

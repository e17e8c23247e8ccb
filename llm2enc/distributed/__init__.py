"""Several processes, one batch: who am I, gather what others have, add up gradients.

The only package that imports torch.distributed. The contract of all training code: every process knows the whole loss,
each sends gradients through its own share of the batch only, and `sum_gradients` adds the shares up. The sum is the
gradient of the global batch, so nothing is ever multiplied or divided by the number of processes.
"""

from llm2enc.distributed.collectives import (
    gather,
    is_main,
    largest,
    rank,
    reduce_gradients,
    share,
    sum_gradients,
    sum_over_processes,
    world_size,
)
from llm2enc.distributed.fsdp import alike, check_spread, clip, is_spread, like, local, spread, whole
from llm2enc.distributed.joining import abort_with_peers, barrier, from_main, start
from llm2enc.distributed.launch import wants_fsdp, wants_zero
from llm2enc.distributed.zero import Zero, check_zero, moments, set_moment

__all__ = [
    "Zero",
    "abort_with_peers",
    "alike",
    "barrier",
    "check_spread",
    "check_zero",
    "clip",
    "from_main",
    "gather",
    "is_main",
    "is_spread",
    "largest",
    "like",
    "local",
    "moments",
    "rank",
    "reduce_gradients",
    "set_moment",
    "share",
    "spread",
    "start",
    "sum_gradients",
    "sum_over_processes",
    "wants_fsdp",
    "wants_zero",
    "whole",
    "world_size",
]

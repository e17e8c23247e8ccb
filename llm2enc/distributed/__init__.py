"""Several processes, one batch: who am I, gather what others have, add up gradients.

The only package that imports torch.distributed. The contract of all training code: every process knows the whole loss,
each sends gradients through its own share of the batch only, and `sum_gradients` adds the shares up. The sum is the
gradient of the global batch, so nothing is ever multiplied or divided by the number of processes.
"""

from llm2enc.distributed.collectives import (
    all_reduce_max,
    all_reduce_sum,
    gather,
    is_main,
    rank,
    rank_slice,
    reduce_gradients,
    sum_gradients,
    world_size,
)
from llm2enc.distributed.fsdp import (
    check_sharding,
    clip,
    distribute_like,
    full_tensor,
    grouped_by_sharding,
    is_sharded,
    shard_layers,
    to_local,
)
from llm2enc.distributed.launch import wants_fsdp, wants_zero
from llm2enc.distributed.process_group import abort_with_peers, barrier, broadcast, start
from llm2enc.distributed.zero import Zero, check_zero, moments, set_moment

__all__ = [
    "Zero",
    "abort_with_peers",
    "all_reduce_max",
    "all_reduce_sum",
    "barrier",
    "broadcast",
    "check_sharding",
    "check_zero",
    "clip",
    "distribute_like",
    "full_tensor",
    "gather",
    "grouped_by_sharding",
    "is_main",
    "is_sharded",
    "moments",
    "rank",
    "rank_slice",
    "reduce_gradients",
    "set_moment",
    "shard_layers",
    "start",
    "sum_gradients",
    "to_local",
    "wants_fsdp",
    "wants_zero",
    "world_size",
]

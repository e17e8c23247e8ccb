"""What a launcher was asked for besides processes. It is done, or refused with what to do instead; never left out.

`accelerate launch` hands its configuration on in environment variables, which mean something to its own loop only.
"""

import os

from llm2enc.distributed.zero import check_zero
from llm2enc.errors import InputError

FSDP, DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
REFUSED = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM has model files of its own; set `strategy: fsdp` in the stages instead",
    "FSDP_OFFLOAD_PARAMS": "parameters stay on their device; launch without offloading",
    "FSDP_ACTIVATION_CHECKPOINTING": "set `gradient_checkpointing: true` in the stages instead",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "set `gradient_checkpointing: true` in the stages instead",
}


def check_launcher() -> None:
    """ValueError if the launcher was asked for something that would not happen."""
    for name, instead in REFUSED.items():
        if _true(name):
            raise InputError(f"{name} is set by the launcher: {instead}")
    if wants_zero():
        check_zero()
    # With --cpu, accelerate leaves it to MPI to start more than one, and says nothing if there is none.
    if _true("ACCELERATE_USE_CPU") and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        raise InputError(
            "accelerate was asked for several processes and started one: with --cpu it starts no others itself. Use "
            "`torchrun --nproc-per-node N -m llm2enc ...`, or `accelerate launch --multi_gpu` without --cpu, which works on "
            "CPUs too"
        )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", "bf16"):
        raise InputError(
            f"the launcher asks for mixed precision {precision}; stages compute in bfloat16 or float32, as their "
            "`precision` says. Launch with --mixed_precision no"
        )


def wants_fsdp() -> bool:
    """Whether the launcher was asked to spread the model over its processes (`accelerate launch --use_fsdp`)."""
    return _true(FSDP)


def wants_zero() -> bool:
    """Whether the launcher was asked for DeepSpeed (`accelerate launch --use_deepspeed`)."""
    return _true(DEEPSPEED)


def _true(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")

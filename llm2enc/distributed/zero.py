"""DeepSpeed's ZeRO, stages 1 and 2 (arXiv 1910.02054): every process updates a part of the weights, with moments for
that part only, and hands the result to the others.

The loop stays ours. Gradients of all passes of a batch add up in `parameter.grad`, whole in each process; then ZeRO adds
them over the processes once, keeps the part it updates, clips and steps. DeepSpeed's engine sees the trained parameters
and never runs the model, so it divides by nothing and needs no fixed number of passes. ZeRO-3, which also cuts the weights,
would have to run the layers: `strategy: fsdp` does that.
"""

import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm2enc.errors import InputError

FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
# What `accelerate launch` hands on besides a file: the name in a file, and what means nothing.
ENVIRONMENT: dict[str, tuple[str, tuple[str, ...]]] = {
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("zero_optimization.offload_optimizer", ("none",)),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("zero_optimization.offload_param", ("none",)),
    "ACCELERATE_GRADIENT_CLIPPING": ("gradient_clipping", ("none", "auto")),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient_accumulation_steps", ("1", "auto")),
}
OURS = {
    "train_batch_size": "`batch_size`",
    "train_micro_batch_size_per_gpu": "`micro_batch_tokens`",
    "gradient_accumulation_steps": "`micro_batch_tokens`",
    "gradient_clipping": "`max_grad_norm`",
    "optimizer": "`lr`, `adam_betas`, `adam_eps` and `weight_decay`",
    "scheduler": "`schedule`, `warmup_steps` and `schedule_steps`",
    "fp16": "`precision`",
    "bf16": "`precision`",
}
PASSED = ("zero_optimization", "comms_logger", "wall_clock_breakdown", "memory_breakdown", "steps_per_print")
# Not round_robin_gradients: under it DeepSpeed 0.19.8 reads whole moments from the wrong places.
ZERO = (
    "stage", "allgather_partitions", "allgather_bucket_size", "reduce_scatter", "reduce_bucket_size", "overlap_comm",
    "contiguous_gradients", "use_multi_rank_bucket_allreduce",
)  # fmt: skip
LARGEST_BUCKET = (
    50_000_000  # elements added up in one message; DeepSpeed's own 500 million are 2 GB besides the gradients
)


def check_zero() -> None:
    """ValueError if DeepSpeed is missing or too old, or was asked for something that would not happen."""
    settings()
    if find_spec("deepspeed") is None:
        raise InputError(
            "`strategy: deepspeed` needs DeepSpeed, which is not installed: pip install 'llm2enc[deepspeed]'"
        )


def settings() -> dict[str, Any]:
    """DeepSpeed's settings as the launcher hands them on, without those that are for us or for DeepSpeed to choose.

    ValueError names every one that contradicts the recipe, or that does not apply here.
    """
    path, faults = os.environ.get(FILE), []
    given = _read(Path(path)) if path else {}
    for name, (key, idle) in ({} if path else ENVIRONMENT).items():
        value = os.environ.get(name, idle[0]).lower()
        if value not in idle:
            faults.append(_fault(key, value))
    found = {}
    for key, value in given.items():
        if key in PASSED:
            found[key] = value
        elif not _idle(value):
            faults.append(_fault(key, value))
    zero = _section(found.pop("zero_optimization", {}), "zero_optimization")
    zero.setdefault("stage", os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    if str(zero["stage"]) not in ("1", "2"):
        faults.append(
            f"ZeRO stage {zero['stage']}: 1 and 2 are done here; `strategy: fsdp` spreads what stage 3 spreads"
        )
    faults += [
        _fault(f"zero_optimization.{key}", value)
        for key, value in zero.items()
        if key not in ZERO and not key.startswith("stage3_") and not _idle(value)
    ]
    if faults:
        raise InputError("DeepSpeed's settings: " + "; ".join(faults))
    zero = {key: value for key, value in zero.items() if key in ZERO}
    return {**found, "zero_optimization": zero | {"stage": int(zero["stage"])}}


def _read(path: Path) -> dict[str, Any]:
    try:
        return _section(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{FILE} names {path}, which is no JSON file that can be read: {error}") from error


def _section(value: Any, name: str) -> dict[str, Any]:
    """The values of a section that are given; "auto" leaves one to us."""
    if not isinstance(value, dict):
        raise InputError(f"{name} of DeepSpeed's settings is {value!r}; expected a mapping of names to values")
    return {key: one for key, one in value.items() if one != "auto"}


def _idle(value: Any) -> bool:
    """Whether a setting asks for nothing."""
    if not isinstance(value, dict):
        return value in ("auto", False, None)
    return value.get("enabled") in (False, "auto") or value.get("device") == "none"


def _fault(key: str, value: Any) -> str:
    if key in OURS:
        return f"`{key}` is for the recipe to say ({OURS[key]} of a stage); leave it out or set it to auto"
    if key.startswith("zero_optimization.offload"):
        return f"`{key}`: nothing is offloaded; `strategy: fsdp` needs less memory on each device"
    return f"`{key}` ({value!r}) does not apply here; leave it out"


def moments(optimizer: "torch.optim.Optimizer | Zero", parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    """What the optimizer keeps of a parameter, by name, one after the other. All processes must ask."""
    yield from optimizer.moments(parameter) if isinstance(optimizer, Zero) else optimizer.state[parameter].items()


def set_moment(optimizer: "torch.optim.Optimizer | Zero", parameter: nn.Parameter, name: str, value: Tensor) -> None:
    """Set one of `moments`, held as the parameter is."""
    if isinstance(optimizer, Zero):
        optimizer.set_moment(parameter, name, value)
    else:
        optimizer.state[parameter][name] = value


class Zero:
    """In place of an optimizer: AdamW over the parts of all processes. All of them must call everything in step."""

    def __init__(self, parameters: Iterable[nn.Parameter], optimizer: torch.optim.AdamW, largest: float):
        """
        parameters  those that train, float32, equal in all processes
        optimizer   AdamW over them; it updates the parts from here on
        largest     norm of the whole gradient at most
        """
        self.parameters = list(parameters)
        self._own = [set(vars(parameter)) for parameter in self.parameters]
        self.engine = _engine(self.parameters, optimizer, largest)
        # Its hooks would add up over the processes after each pass, and a process may have more passes than another.
        for hook in self.engine.optimizer._grad_acc_hooks:
            hook.remove()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """AdamW's, with the rate of the next step."""
        return self.engine.optimizer.param_groups

    def reduce(self) -> Tensor:
        """Add gradients up over the processes, and keep a part; their norm, infinite if one is no number."""
        with self.engine.coalesce_grad_reduction():
            for parameter in self.parameters:  # a process whose share was empty still takes part
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        norm = self.engine.optimizer.scaled_global_norm()
        return torch.where(norm < 0, math.inf, norm)  # -1 stands for no number

    def step(self) -> None:
        """Clip, update the part, and hand it to the others."""
        self.engine.step()
        # DeepSpeed 0.19.8 links the moments of all groups after the step of the first, when the others have none yet.
        self.engine.optimizer._hp_optimizer_states_linked = False
        self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def zero_grad(self) -> None:
        self.engine.optimizer.zero_grad()

    def take_weights(self) -> None:
        """After the weights were set by hand; the part that is updated is a copy."""
        self.engine.optimizer.refresh_fp32_params()

    def moments(self, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
        """AdamW's state of a parameter, whole, one after the other."""
        from deepspeed.utils import safe_get_full_optimizer_state  # pyright: ignore[reportMissingImports]  # an extra

        yield "step", self._states()[0]["step"].clone()  # one for all, which no two files' entries may share
        for name in ("exp_avg", "exp_avg_sq"):
            yield name, safe_get_full_optimizer_state(parameter, name)

    def set_moment(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        """Set one of them, from the whole tensor."""
        from deepspeed.utils import safe_set_full_optimizer_state  # pyright: ignore[reportMissingImports]  # an extra

        if not self._states()[
            0
        ]:  # AdamW makes its moments in the first step; one at rate 0 with no gradient changes nothing
            for group in self.param_groups:
                group["lr"] = 0.0
            self.reduce()
            self.step()
        if name == "step":
            for state in self._states():
                state["step"].copy_(value)
        else:
            safe_set_full_optimizer_state(parameter, value, name)

    def close(self) -> None:
        """Give the parameters memory of their own again, and let go of everything else."""
        self.engine.destroy()
        for parameter, own in zip(self.parameters, self._own, strict=True):
            parameter.data = parameter.data.clone()
            for name in vars(parameter).keys() - own:  # DeepSpeed's marks, which keep all its buffers alive
                delattr(parameter, name)

    def _states(self) -> list[dict[str, Tensor]]:
        """AdamW's state of this process's part of each group; empty before the first step."""
        adamw = self.engine.optimizer.optimizer
        return [adamw.state[group["params"][0]] for group in adamw.param_groups]


def _engine(parameters: list[nn.Parameter], optimizer: torch.optim.AdamW, largest: float) -> Any:
    """DeepSpeed's engine over nothing but these parameters."""
    with redirect_stdout(sys.stderr):  # stdout is for answers
        import deepspeed  # pyright: ignore[reportMissingImports]  # an extra
    if not hasattr(deepspeed.DeepSpeedEngine, "coalesce_grad_reduction"):
        raise InputError(
            f"deepspeed {deepspeed.__version__} cannot add up the gradients of several passes at once; update it: "
            "pip install -U 'llm2enc[deepspeed]'"
        )
    for handler in logging.getLogger("DeepSpeed").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)  # the launcher's side of accelerate may have imported it before
    config = settings()
    total = sum(parameter.numel() for parameter in parameters)
    config["zero_optimization"].setdefault("reduce_bucket_size", min(total, LARGEST_BUCKET))
    config |= {
        "train_micro_batch_size_per_gpu": 1,  # it has to be something; nobody divides by it
        "gradient_accumulation_steps": 1,
        "gradient_allreduce_op": "sum",
        "gradient_clipping": largest if math.isfinite(largest) else 0.0,
        "zero_allow_untested_optimizer": True,
    }
    module = nn.ParameterList(parameters)
    with redirect_stdout(sys.stderr):
        return deepspeed.initialize(model=module, model_parameters=parameters, optimizer=optimizer, config=config)[0]

"""Where a LoRA adapter goes: on linear layers, which it can be merged into, and on nothing else.

The experts of a mixture are one stacked parameter, not linear layers. PEFT 0.19 and newer reads names such as `gate_proj`,
and `all-linear`, as these stacks in some families and leaves them out in others. Here they stay as they are in all.
"""

from contextlib import suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch import nn

from llm2enc.errors import InputError
from llm2enc.model.hooks import decoder_layers
from llm2enc.recipe import LoraSpec

if TYPE_CHECKING:
    from peft import LoraConfig


def lora_config(spec: LoraSpec, decoder: nn.Module) -> "LoraConfig":
    """PEFT's configuration of a fresh adapter on a decoder.

    raises  InputError for targets that name no module, or that PEFT would take for stacked experts
    """
    from peft import LoraConfig

    targets = spec.targets if isinstance(spec.targets, str) else list(spec.targets)
    alpha: Any = spec.alpha  # PEFT says int, and takes any number
    config = LoraConfig(
        r=spec.r, lora_alpha=alpha, lora_dropout=spec.dropout, target_modules=targets,
        use_dora=spec.dora, use_rslora=spec.rslora,
    )  # fmt: skip
    if isinstance(targets, list):  # PEFT is content if one of them matches
        names = [f".{name}" for name, _ in decoder.named_modules()]
        unknown = [target for target in targets if not any(name.endswith(f".{target}") for name in names)]
        if unknown:
            linear = {name.rpartition(".")[2] for name, m in decoder.named_modules() if isinstance(m, nn.Linear)}
            raise InputError(f"lora.targets {unknown} match no module of this model; it has {sorted(linear)}")
    read = _as_peft_reads_it(config, decoder)
    if read.target_parameters:
        rest = set(read.target_modules or ())
        if isinstance(targets, list):
            raise InputError(
                f"lora.targets {sorted(set(targets) - rest)} name the experts of this model, which are "
                f"stacks of matrices that an adapter is not merged into; write {sorted(rest)}, or "
                "`all-linear` for every layer that takes one"
            )
        config.target_modules = sorted(rest)
    return config


def left_out(decoder: nn.Module) -> str:
    """How much of the layers' weights the adapter is on, and which modules with matrices it is not on; empty if it is on
    all of them."""
    total = covered = 0
    others: set[str] = set()
    for _, layer in decoder_layers(decoder):
        for name, parameter in layer.named_parameters():
            if ".lora_" in name:
                continue
            total += parameter.numel()
            if ".base_layer." in name:
                covered += parameter.numel()
            elif parameter.dim() > 1:
                others.add(name.split(".")[-2])
    names = ", ".join(sorted(others))
    return f"on {100 * covered / total:.0f} % of the layers' weights, not on {names}" if others else ""


def _as_peft_reads_it(config: "LoraConfig", decoder: nn.Module) -> "LoraConfig":
    """What PEFT makes of the targets before it puts the adapter in."""
    read = deepcopy(config)
    with suppress(ImportError):  # PEFT 0.18 knows nothing of stacked experts
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

        convert_peft_config_for_transformers(read, model=decoder, conversions=None)
    return read

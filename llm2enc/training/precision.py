"""The type of a stage's matrix products."""

from collections.abc import Sequence
from typing import TypeVar

import torch

from llm2enc.encoding import Encoder
from llm2enc.model import emulated
from llm2enc.recipe import MergeStage, Stage

AnyStage = TypeVar("AnyStage", bound=Stage | MergeStage)


def settled(stages: Sequence[AnyStage], device: torch.device, former: Sequence[str] = ()) -> tuple[AnyStage, ...]:
    """The stages with what `precision: auto` means on this device: bfloat16 if it has instructions for it, else float32.

    former  what it meant for the first of the stages where the run began, which goes on with it
    """
    here = "float32" if emulated(torch.bfloat16, device) else "bfloat16"
    before = (*former, *[here] * len(stages))
    return tuple(
        stage.model_copy(update={"precision": meant}) if stage.precision == "auto" else stage
        for stage, meant in zip(stages, before, strict=False)
    )


def autocast(stage: Stage, encoder: Encoder) -> torch.autocast:
    """The context of a stage's forward and backward pass.

    Of sharded layers autocast must keep no copies: they would hold all weights, and gradients through copies made in an
    earlier pass come out wrong (by 0.8 of their size, in the bfloat16 line of benchmarks/scale.py).
    """
    cast = stage.precision == "bfloat16"
    return torch.autocast(encoder.device.type, torch.bfloat16, cast, cache_enabled=not encoder.backbone.sharded)

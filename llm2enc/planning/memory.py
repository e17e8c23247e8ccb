"""Memory of one process in a stage: what is there all the time, and what comes and goes.

always        weights, adapter, AdamW's two float32 moments of every trained weight
passes        gradients, the activations of a micro-batch and what its backward pass adds, or the logits
loss          kept graphs, all vectors, the similarities
exchange      all gradients once more, flat, where several processes add them up
optimizer     AdamW's temporaries: on CUDA one more copy of the trained weights, on a CPU of the largest of them
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from llm2enc.encoding import Encoder
from llm2enc.model import decoder_layers
from llm2enc.planning.devices import Devices
from llm2enc.planning.fake_profiler import Costs, FakeProfiler, StepConfig
from llm2enc.planning.workload import Workload
from llm2enc.recipe import ClmStage, MntpStage, Pooling, SftStage, Stage
from llm2enc.training import OBJECTIVES, kept_activations

SAFE = 0.9  # of a device's memory: fragments of the allocator, other programs, longer texts than those looked at
# What a process takes before it holds a tensor: CUDA's context with the workspaces of its libraries, as nvidia-smi shows it
# on recent cards; Python with torch, transformers and the data libraries.
RESERVED = {True: int(0.6 * 2**30), False: int(0.6 * 2**30)}
# Of what passes take, on a CPU: freed pieces that glibc keeps; 0 to 0.9 on the one machine of benchmarks/planner.md.
HELD = 0.5


@dataclass(frozen=True)
class Sizes:
    """Bytes of the weights on one process."""

    weights: int
    adapter: int
    trained: int
    """Bytes of the weights that train: of their gradients, and of one of AdamW's moments."""
    largest: int
    """Bytes of the largest of them."""
    replicated: int
    """Bytes of those of them that every process has whole."""
    gathered: int
    """Weights and gradients of the layers that a process has whole for a moment where they are sharded."""
    whole: int
    """All sharded layers whole."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one process. `parts` are not all there at once; `peak` is the most at any moment, during `phase`."""

    parts: dict[str, int]
    peak: int
    phase: str


def sizes(encoder: Encoder, processes: int, sharded: bool) -> Sizes:
    """Of an encoder whose adapter, if any, is in place. Sharded: layers are spread over the processes, the rest is not."""
    backbone, trained = encoder.backbone, list(encoder.trained().values())
    adapter = {id(parameter) for parameter in backbone.trained().values()} if backbone.has_adapter else set()
    frozen = [parameter for parameter in encoder.parameters() if id(parameter) not in adapter]
    layers = [
        [parameter for parameter in layer.parameters() if id(parameter) not in adapter]
        for _, layer in decoder_layers(backbone.decoder)
    ]
    spread = {id(parameter) for layer in layers for parameter in layer} if sharded and processes > 1 else set()

    def total(parameters: Iterable[nn.Parameter]) -> int:
        return sum(_bytes(p) // processes if id(p) in spread else _bytes(p) for p in parameters)

    layer = max(sum(map(_bytes, layer)) for layer in layers) if spread else 0
    in_flight = 2 + (backbone.has_adapter is False)  # the one at work, the next one, and a gradient that is on its way
    return Sizes(
        weights=total(frozen),
        adapter=sum(_bytes(parameter) for parameter in trained if id(parameter) in adapter),
        trained=total(trained),
        largest=max(map(_bytes, trained)),
        replicated=sum(_bytes(parameter) for parameter in trained if id(parameter) not in spread),
        gathered=in_flight * layer,
        whole=sum(_bytes(parameter) for parameter in frozen if id(parameter) in spread),
    )


def _bytes(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size()


def step_config(stage: Stage, pooling: Pooling, devices: Devices, several: bool) -> StepConfig:
    """How micro-batches of a stage run. several: more than one per step and process."""
    objective = OBJECTIVES[stage.objective]
    share = objective.predicted_share
    return StepConfig(
        autocast=stage.precision == "bfloat16",
        cuda=devices.cuda,
        causal=objective.causal,
        pooling=None if share else pooling,
        targets=share(stage) if share else 0.0,
        logit_rows=cast("ClmStage | MntpStage | SftStage", stage).logit_rows if share else 1,
        gradients=several,
        rebuild=objective.rebuild,
        layers=objective.layers(stage),
        evaluate=not share and stage.activation_tokens > 0,
    )


def memory(
    stage: Stage,
    profiler: FakeProfiler,
    size: Sizes,
    workload: Workload,
    devices: Devices,
    pooling: Pooling,
    max_tokens: int | None = None,
    joined: bool = False,
) -> tuple[Memory, Costs, torch.Tensor]:
    """What the busiest process takes, the costs of its largest micro-batch, and the lengths of that one.

    max_tokens  of a micro-batch, instead of the stage's own number
    joined      another stage is trained in the same steps, so that gradients are there before the first micro-batch
    """
    batches = workload.busiest(max_tokens or stage.micro_batch_tokens, devices.count)
    largest = max(batches, key=lambda lengths: int(lengths.sum()))
    several = len(batches) > 1 or size.whole > 0 or joined  # parts of gradients are there from the first micro-batch on
    costs = profiler.costs(largest, step_config(stage, pooling, devices, several))
    always = size.weights + size.adapter + 2 * size.trained + size.gathered
    gradients = size.trained
    parts = {
        "weights": size.weights + size.gathered,
        "adapter": size.adapter,
        "gradients": gradients,
        "optimizer": 2 * size.trained,
        "activations": round(costs.graph - costs.casts),
        "backward": round(max(0, costs.backward - costs.graph)),
        "casts": round(costs.casts),
        "logits": round(max(0, costs.logits - costs.graph)),
        "vectors": 0,
    }
    passes = costs.backward
    phases = {}
    if OBJECTIVES[stage.objective].predicts_tokens:
        passes = max(passes, costs.logits)
    else:
        vectors, loss = profiler.loss(workload.texts, stage)[:2]
        tokens = [int(lengths.sum()) for lengths in batches]
        number = kept_activations(tokens, stage.activation_tokens)
        graphs = sum(tokens[:number]) / int(largest.sum())
        graphs *= costs.graph - costs.casts
        parts["vectors"] = round(loss)
        parts["activations"] = round(max(parts["activations"], graphs))
        phases["loss"] = always + costs.casts + graphs + loss
        if number:
            beside = max(costs.evaluated if number < len(batches) else 0, costs.backward - costs.graph + costs.casts)
            passes = max(passes, graphs + beside)
        passes += vectors
    phases["passes"] = always + gradients * several + passes
    if devices.count > 1:
        phases["exchange"] = always + gradients + size.replicated
    if size.whole:
        phases["gathering"] = always + size.whole
    phases["optimizer"] = always + gradients + (size.trained if devices.cuda else 2 * size.largest)
    parts["reserved"] = RESERVED[devices.cuda]
    parts["held"] = 0 if devices.cuda else round(HELD * costs.peak)
    phase = max(phases, key=phases.__getitem__)
    return Memory(parts, round(phases[phase]) + parts["reserved"] + parts["held"], phase), costs, largest

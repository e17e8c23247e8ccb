"""Memory of one process in a stage: what is there all the time, and what comes and goes.

always        weights, adapter, AdamW's two float32 moments of every trained weight
passes        gradients, the activations of a mini-batch and what its backward pass adds, or the logits
loss          kept graphs, all vectors, the similarities
exchange      all gradients once more, flat, where several processes add them up
optimizer     AdamW's temporaries: on CUDA one more copy of the trained weights, on a CPU of the largest of them
"""

from dataclasses import dataclass

import torch
from torch import nn

from llm2enc.backbone import Backbone
from llm2enc.layers import decoder_layers
from llm2enc.planning.devices import Devices
from llm2enc.planning.simulation import Costs, Setting, Simulation
from llm2enc.planning.workload import Workload
from llm2enc.recipe import Pooling, Stage

SAFE = 0.9  # of a device's memory: fragments of the allocator, other programs, longer texts than those looked at
# What a process takes before it holds a tensor: CUDA's context with the workspaces of its libraries, as nvidia-smi shows it
# on recent cards; Python with torch, transformers and the data libraries.
RESERVED = {True: int(0.6 * 2**30), False: int(0.6 * 2**30)}


@dataclass(frozen=True)
class Sizes:
    """Bytes of the weights on one process."""

    weights: int
    adapter: int
    trained: int
    """Bytes of the weights that train: of their gradients, and of one of AdamW's moments."""
    largest: int
    """Bytes of the largest of them."""
    gathered: int = 0
    """Weights of the layers that a process puts together for a moment where they are sharded."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one process. `parts` are not all there at once; `peak` is the most at any moment, during `phase`."""

    parts: dict[str, int]
    peak: int
    phase: str


def sizes(backbone: Backbone, processes: int, sharded: bool) -> Sizes:
    """Of a backbone whose adapter, if any, is in place. Sharded: layers are spread over the processes, the rest is not."""
    layers = [layer for _, layer in decoder_layers(backbone.trunk)]
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}

    def share(parameter: nn.Parameter) -> float:
        adapter = backbone.has_adapter and parameter.requires_grad
        return 1 / processes if sharded and id(parameter) in inside and not adapter else 1

    def total(parameters) -> int:
        return round(sum(share(parameter) * parameter.numel() * parameter.element_size() for parameter in parameters))

    trained = list(backbone.trained().values())
    adapter = trained if backbone.has_adapter else []
    own = {id(parameter) for parameter in adapter}
    frozen = [parameter for parameter in backbone.parameters() if id(parameter) not in own]
    layer = max(sum(p.numel() * p.element_size() for p in layer.parameters() if id(p) not in own) for layer in layers)
    return Sizes(
        weights=total(frozen),
        adapter=total(adapter),
        trained=total(trained),
        largest=max(parameter.numel() * parameter.element_size() for parameter in trained),
        gathered=2 * layer if sharded and processes > 1 else 0,  # the one at work and the one that comes next
    )


def setting(stage: Stage, pooling: Pooling, bidirectional: bool, devices: Devices, several: bool) -> Setting:
    """How mini-batches of a stage run. several: more than one per step and process."""
    predicts = stage.objective in ("clm", "mntp")
    share = {"clm": 1 - 1 / getattr(stage, "block_tokens", 1), "mntp": getattr(stage, "mask_rate", 0)}
    return Setting(
        autocast=stage.precision == "bfloat16",
        cuda=devices.cuda,
        causal=stage.objective == "clm" if predicts else not bidirectional,
        pooling=None if predicts else pooling,
        targets=share.get(stage.objective, 0.0),
        logit_rows=getattr(stage, "logit_rows", 1),
        gradients=several,
        evaluate=not predicts and stage.graph_tokens > 0,
    )


def kept(stage: Stage, mini_batches: list[torch.Tensor]) -> int:
    """How many of a process's mini-batches keep their activations (gradcache.py)."""
    tokens = 0
    for number, lengths in enumerate(mini_batches):
        tokens += int(lengths.sum())
        if tokens > getattr(stage, "graph_tokens", 0):
            return number
    return len(mini_batches)


def memory(
    stage: Stage,
    simulation: Simulation,
    size: Sizes,
    workload: Workload,
    devices: Devices,
    pooling: Pooling,
    max_tokens: int | None = None,
) -> tuple[Memory, Costs, torch.Tensor]:
    """What the busiest process takes, the costs of its largest mini-batch, and the lengths of that one.

    max_tokens  of a mini-batch, instead of the stage's own number
    """
    batches = workload.busiest(max_tokens or stage.mini_batch_tokens, devices.count)
    largest = max(batches, key=lambda lengths: int(lengths.sum()))
    bidirectional = simulation.backbone.bidirectional
    costs = simulation.costs(largest, setting(stage, pooling, bidirectional, devices, several=len(batches) > 1))
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
    passes, several = costs.backward, len(batches) > 1
    phases = {}
    if stage.objective in ("clm", "mntp"):
        passes = max(passes, costs.logits)
    else:
        vectors, loss = simulation.loss(workload.texts, stage.batch_size)[:2]
        number = kept(stage, batches)
        graphs = sum(int(lengths.sum()) for lengths in batches[:number]) / int(largest.sum())
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
        phases["exchange"] = always + 2 * gradients
    phases["optimizer"] = always + gradients + (size.trained if devices.cuda else 2 * size.largest)
    parts["reserved"] = RESERVED[devices.cuda]
    phase = max(phases, key=phases.__getitem__)
    return Memory(parts, round(phases[phase]) + parts["reserved"], phase), costs, largest

"""What a recipe takes, before it runs: memory, time and disk on given devices, from config.json alone.

Weights are never read. A model without contents goes through the code that trains (`fake_profiler.py`), so what is
counted is what that code does: last-layer pruning, adapters, gradient checkpointing, cached gradients and all.
benchmarks/planner.md compares it with measured steps.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.model import (
    Backbone,
    chosen,
    head_outline,
    is_here,
    load_config,
    load_tokenizer,
    published_config,
    skeleton,
)
from llm2enc.planning import workload as workloads
from llm2enc.planning.devices import Devices
from llm2enc.planning.fake_profiler import Costs, FakeProfiler
from llm2enc.planning.measured import tokens_per_second
from llm2enc.planning.memory import SAFE, Memory, memory, sizes
from llm2enc.planning.workload import Workload
from llm2enc.recipe import Recipe, Stage
from llm2enc.text import InputFormat
from llm2enc.training import OBJECTIVES, Teachers, idle, kept_activations, prepare

# Share of the devices' peak that a step reaches, if nobody has measured it: Llama 3 was trained at 38 to 43 % (The Llama 3
# Herd of Models, arXiv 2407.21783, table 4). Short texts, small models and slow links reach less.
SHARE = 0.4
ROUND = 256  # tokens: a micro-batch size that people read


@dataclass(frozen=True)
class StagePlan:
    """One stage on one process; sizes in bytes."""

    name: str
    trained: int
    """Weights that train."""
    adapter: str
    """What the adapter is on, where it leaves matrices of the layers out; empty otherwise."""
    memory: dict[str, int]
    peak: int
    phase: str
    """When the peak is reached: passes, loss, exchange or optimizer."""
    fits: bool
    """Whether the peak stays below 90 % of the device."""
    idle: str
    """Why some processes would have nothing to do, and what to change; empty if all have work."""
    micro_batch_tokens: int
    safe_micro_batch_tokens: int | None
    """The largest that fits; None if none does."""
    whole_shard: bool
    """Whether a whole shard is no larger than that: a larger number would change nothing."""
    steps: int
    measurements: int
    """Of the recipe's evaluation within the stage; their time is not counted."""
    texts: int
    """Per step, over all processes; so are the tokens."""
    tokens: int
    basis: str
    flops: float
    """Of all steps and processes."""
    share: float
    """Of the devices' peak, assumed or measured."""
    seconds: float
    checkpoint: int
    """Bytes on disk of a checkpoint, the best weights so far among it."""
    finished: int
    """Bytes on disk of what the stage leaves, its kept checkpoints among it."""
    remedies: tuple[str, ...]
    """What would make it fit, if it does not."""


@dataclass(frozen=True)
class Plan:
    """A whole recipe."""

    recipe: str
    model: str
    parameters: int
    devices: Devices
    stages: tuple[StagePlan, ...]
    download: int
    """Bytes fetched from a hub; 0 for a model that is here."""
    exported: int
    """Bytes of the finished directory."""
    merges: tuple[tuple[str, int], ...]
    """Each merge stage, and the bytes of the encoders that are there beside each other while it runs."""
    disk: int
    """Bytes that are there at the worst moment: two checkpoints while one replaces the other, or the encoders of a merge."""
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether it can run on these devices as it is."""
        return all(stage.fits and not stage.idle for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Of training alone: no download, no evaluation, no export."""
        return sum(stage.seconds for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain data."""
        return json.loads(json.dumps({**asdict(self), "fits": self.fits, "seconds": self.seconds}))


def plan(recipe: Recipe, devices: Devices, share: float = SHARE, measured: Path | None = None) -> Plan:
    """The plan of a recipe on devices, one process each.

    share     of the devices' peak
    measured  folder of a run of this recipe on one such device: its tokens per second count instead of `share`
    raises    ValueError if the configuration cannot be had, or nothing was measured there
    """
    # Without a configuration there is no use in looking for a tokenizer.
    recipe, config, published = _configured(recipe)
    model = skeleton(recipe.model, config)
    input_format, note = _input_format(recipe)
    notes = [text for text in (devices.note, published, note) if text]
    stages = []
    for index, stage in recipe.training.items():
        spec = input_format.spec if input_format else recipe.input
        loads = [(part, workloads.of_stage(part, spec, input_format, recipe.seed)) for part in stage.parts]
        speed = None if measured is None else tokens_per_second(measured, index, stage, recipe)
        asked = [teacher.model for teacher in OBJECTIVES[stage.objective].teachers(stage)]
        if asked:
            notes.append(f"{index}-{stage.objective} asks {', '.join(asked)}, whose memory and time are not counted")
        stages.append(_Planner(recipe, config, index, stage, loads, devices).plan(share, speed))
    encoder = _encoder(recipe, Backbone(model, recipe.model.attention == "bidirectional"))
    here = recipe.model.weights == "random" or is_here(recipe.model.source)
    exported = _bytes(encoder.backbone.decoder) + (_bytes(encoder.head) if encoder.head else 0)
    download = 0 if here else _bytes(model)
    checkpoints = max((2 * stage.checkpoint for stage in stages), default=0)
    merges = tuple(
        (
            f"{index}-{stage.objective}",
            exported * (sum(one.encoder is None for one in stage.of) + 1 + bool(stage.base_weight)),
        )
        for index, stage in recipe.merges.items()
    )
    moment = max([checkpoints, *(size for _, size in merges)])
    return Plan(
        recipe=recipe.name,
        model=recipe.model.source,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        devices=devices,
        stages=tuple(stages),
        download=download,
        exported=exported,
        merges=merges,
        disk=download + exported + moment + sum(stage.finished for stage in stages) + exported * len(merges),
        notes=tuple(notes),
    )


class _Planner:
    """One stage. The backbone is built anew: an adapter that goes on from stage to stage counts as a fresh one."""

    def __init__(
        self,
        recipe: Recipe,
        config: Any,
        index: int,
        stage: Stage,
        loads: list[tuple[Stage, Workload]],
        devices: Devices,
    ):
        self.recipe, self.index, self.stage, self.loads, self.devices = recipe, index, stage, loads, devices
        backbone = Backbone(skeleton(recipe.model, config), recipe.model.attention == "bidirectional")
        encoder = _encoder(recipe, backbone)
        # An adapter that goes on has the shape of the one before.
        shape = {"lora": recipe.adapter_of(index)} if stage.trainable == "lora" else {}
        prepare(encoder, stage.model_copy(update=shape), recipe.seed)
        objective = OBJECTIVES[stage.objective]
        if not objective.teachers(stage):  # whose vectors' width nobody knows here
            encoder.auxiliary = nn.ModuleDict(objective.auxiliary(encoder, stage, Teachers(()), recipe.seed))
        self.size = sizes(encoder, devices.count, stage.strategy == "fsdp")
        self.trained = sum(parameter.numel() for parameter in encoder.trained().values())
        self.adapter = backbone.adapter_leaves_out
        self.profiler = FakeProfiler(encoder)
        self.limit = int(SAFE * devices.memory)

    def plan(self, share: float, speed: float | None) -> StagePlan:
        found = self._memory()
        safe, whole = self._safe(found)
        fits = found.peak <= self.limit
        parts = [self._flops(part, load) for part, load in self.loads]
        flops, tokens = sum(parts), sum(load.tokens for _, load in self.loads)
        busiest = sum(part * load.share(self.devices.count) for part, (_, load) in zip(parts, self.loads, strict=True))
        mixed = self.stage.precision == "bfloat16" or self.recipe.model.dtype != "float32"
        peaks = self.devices.peaks
        peak = peaks.get("bfloat16", peaks["float32"]) if mixed else peaks["float32"]  # FLOP/s of its matrix products
        if speed is not None:
            share = flops / tokens * speed / peak
        return StagePlan(
            name=f"{self.index}-{self.stage.objective}",
            trained=self.trained,
            adapter=self.adapter,
            memory=found.parts,
            peak=found.peak,
            phase=found.phase,
            fits=fits,
            idle=self._idle(),
            micro_batch_tokens=self.stage.micro_batch_tokens,
            safe_micro_batch_tokens=safe,
            whole_shard=whole,
            steps=self.stage.steps,
            measurements=-(-self.stage.steps // self.stage.evaluate_every) if self.stage.evaluate_every else 0,
            texts=sum(load.texts for _, load in self.loads),
            tokens=tokens,
            basis=" and ".join(load.basis for _, load in self.loads),
            flops=flops * self.stage.steps,
            share=share,
            seconds=busiest / (peak * share) * self.stage.steps,
            checkpoint=(3 + (self.stage.keep_best is not None)) * self.trained * 4,
            finished=4 * self.trained * (1 + len(self.stage.keep_checkpoints)),
            remedies=() if fits else tuple(self._remedies(safe)),
        )

    def _memory(self, max_tokens: int | None = None) -> Memory:
        """Of the part of the stage that takes most."""
        return max((self._of(*load, max_tokens)[0] for load in self.loads), key=lambda found: found.peak)

    def _of(self, part: Stage, load: Workload, max_tokens: int | None = None):
        given = part, self.profiler, self.size, load, self.devices, self.recipe.pooling
        return memory(*given, max_tokens, joined=len(self.loads) > 1)

    def _flops(self, part: Stage, load: Workload) -> float:
        _, costs, largest = self._of(part, load)
        return flops_of_a_step(part, self.profiler, load, self.devices, costs, largest)

    def _safe(self, found: Memory) -> tuple[int | None, bool]:
        """The largest micro-batch that fits, and whether it is a whole shard.

        What micro-batches take grows in a straight line with their tokens, so two of them give a first guess. Each guess is
        planned for, and its result corrects the next one.
        """
        largest = max(load.largest_shard for _, load in self.loads)
        longest = max(int(load.lengths.max()) for _, load in self.loads)
        whole = self._memory(largest).peak
        if whole <= self.limit:
            return largest, True
        low = longest
        bottom = self._memory(low).peak
        if bottom > self.limit:
            return None, False
        high, top = largest, whole
        for _ in range(3):
            guess = low + (high - low) * (self.limit - bottom) / (top - bottom)
            guess = max(low, int(guess) // ROUND * ROUND if guess > 2 * ROUND else int(guess))
            if guess in (low, high):
                break
            peak = self._memory(guess).peak
            if peak <= self.limit:
                low, bottom = guess, peak
            else:
                high, top = guess, peak
        return low, False

    def _idle(self) -> str:
        stage, processes = self.stage, self.devices.count
        smallest = min(load[0].batch_size for load in self.loads)
        reason = idle(processes, smallest, stage.rng_shards)
        given = {"rng_shards": stage.rng_shards, "batch_size": smallest}
        few = [name for name, count in given.items() if count < processes]
        changes = " ".join(f"--set stages.{self.index}.{name}={processes}" for name in few)
        return reason and f"{reason}; {changes}, or take fewer devices"

    def _remedies(self, safe: int | None):
        path, processes = f"stages.{self.index}", self.devices.count
        if safe is not None:
            yield f"--set {path}.micro_batch_tokens={safe}"
        if not self.stage.gradient_checkpointing:
            self.profiler.backbone.set_gradient_checkpointing(True)
            self.profiler.known.clear()
            found = self._memory().peak
            yield f"--set {path}.gradient_checkpointing=true ({gib(found)}, which {self._verdict(found)})"
        if processes > 1 and self.stage.strategy == "ddp":
            self.size = sizes(self.profiler.encoder, processes, sharded=True)
            found = self._memory().peak
            yield f"--set {path}.strategy=fsdp (with it {gib(found)}, which {self._verdict(found)})"
        if self.stage.trainable == "full":
            saved = 4 * 4 * self.trained - self.size.weights
            yield f"--set {path}.trainable=lora (about {gib(saved)} of gradients and optimizer less)"
        yield "devices with more memory"

    def _verdict(self, peak: int) -> str:
        return "fits" if peak <= self.limit else "does not fit either"


def flops_of_a_step(
    stage: Stage, profiler: FakeProfiler, load: Workload, devices: Devices, costs: Costs, largest: Tensor
) -> float:
    """Of a step, over all processes: per token as in the largest micro-batch, attention per pair of tokens of a text."""
    tokens, pairs = load.tokens / int(largest.sum()), load.pairs / int((largest**2).sum())
    total = costs.flops * tokens + costs.attention * pairs
    if OBJECTIVES[stage.objective].predicts_tokens:
        return total
    parts = [int(lengths.sum()) for lengths in load.busiest(stage.micro_batch_tokens, devices.count)]
    again = 1 - sum(parts[: kept_activations(parts, stage.activation_tokens)]) / sum(parts)
    total += again * (costs.forward_flops * tokens + costs.forward_attention * pairs)
    return total + devices.count * profiler.loss(load.texts, stage)[2]


def gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"


def _configured(recipe: Recipe) -> tuple[Recipe, Any, str]:
    """The recipe with one source of its model, that model's configuration, and a note if that is the published one."""
    try:
        spec = chosen(recipe.model)  # pyright: ignore[reportArgumentType]
        return recipe.model_copy(update={"model": spec}), load_config(spec), ""
    except (OSError, InputError) as error:
        published = published_config(recipe.model)
        reason = " ".join(str(error).split())[:200]
        if published is None and isinstance(error, InputError):
            raise
        if published is None:
            raise InputError(
                f"no config.json for {recipe.model.source!r}: only that file is needed to plan, no weights. Give a "
                f"directory with it, or the file itself: --set model.name=path/to/config.json ({reason})"
            ) from None
    spec = recipe.model.model_copy(update={"package": None})
    note = f"the config.json of {spec.source} cannot be reached, so its published numbers are used ({reason[:120]})"
    return recipe.model_copy(update={"model": spec}), published, note


def _encoder(recipe: Recipe, backbone: Backbone) -> Encoder:
    """The recipe's encoder around a backbone without weights; it reads tokens only."""
    head = None if recipe.head is None else head_outline(backbone.width, recipe.head)
    return Encoder(backbone, cast(Any, None), recipe.pooling, recipe.normalize, head)


def _input_format(recipe: Recipe) -> tuple[InputFormat | None, str]:
    """How texts become tokens, or why that cannot be known here."""
    try:
        return InputFormat(recipe.input, load_tokenizer(recipe.model)), ""
    except (OSError, ValueError, KeyError, TypeError) as error:  # transformers has no one error for a missing tokenizer
        return None, f"no tokenizer, so lengths are upper bounds ({' '.join(str(error).split())[:120]})"


def _bytes(module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())

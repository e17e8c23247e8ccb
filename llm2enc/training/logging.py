"""What a stage tells while it trains: the table before step 1, metrics.jsonl, trackers, the bar."""

import json
import logging
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llm2enc import distributed
from llm2enc.encoding import Encoder
from llm2enc.model import emulated
from llm2enc.recipe import Stage, Tracking
from llm2enc.storage import replace_text
from llm2enc.terminal import bar, table
from llm2enc.training.objectives import Batch
from llm2enc.training.prepare import uses_zero

_log = logging.getLogger(__name__)


@dataclass
class Log:
    """metrics.jsonl, trackers and the bar; nothing on other processes than the main one."""

    folder: Path
    stage: Stage
    trackers: list[Any]
    move: Any
    tokens: int = 0
    since: float = field(default_factory=time.perf_counter)
    score: str = ""
    """The last one measured within the stage, as the bar shows it."""

    def summary(self, encoder: Encoder, batch: Batch, start: int) -> None:
        """What is about to happen, before the first step."""
        if not distributed.is_main():
            return
        from rich.console import Console

        rows = list(stage_summary(encoder, self.stage, batch, start).items())
        Console(stderr=True).print(table(("", ""), rows, f"stage {self.folder.name}", header=False))

    def step(self, step: int, batch: Batch, metrics: dict[str, torch.Tensor], lr: float) -> None:
        """A line every `log_every` steps and after the last one."""
        self.tokens += batch.num_tokens
        last = step + 1 == self.stage.steps
        if not distributed.is_main() or ((step + 1) % self.stage.log_every and not last):
            return
        now = time.perf_counter()
        values = {name: float(value) for name, value in metrics.items()}
        values |= {"lr": lr, "tokens_per_second": self.tokens / (now - self.since), "peak_gib": peak_gib()}
        self.tokens, self.since = 0, now
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step + 1, "source": batch.source, **values}) + "\n")
        for tracker in self.trackers:
            tracker.log(values, step=step + 1)
        self.move(
            to=step + 1,
            facts=f"loss {values['loss']:.4f}  lr {lr:.1e}  {values['tokens_per_second']:.0f} tok/s  "
            f"{values['peak_gib']:.1f} GiB{self.score}",
        )

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """While the bar says that the model is being measured."""
        self.move(what=f"{self.stage.objective}: evaluating")
        yield
        self.move(what=self.stage.objective)

    def measured(self, step: int, scores: dict[str, float], name: str | None, seconds: float) -> None:
        """A line of metrics.jsonl for the scores after `step` steps; the seconds they took are none of training.

        name  of the score that the bar shows; the first one if it is None
        """
        self.since += seconds
        if not distributed.is_main():
            return
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "scores": scores}) + "\n")
        for tracker in self.trackers:
            tracker.log({f"evaluation/{name}": score for name, score in scores.items()}, step=step)
        shown = name or next(iter(scores), None)
        self.score = f"  {shown} {scores[shown]:.4f}" if shown else ""
        _log.info("%s, step %d: %s", self.folder.name, step, ", ".join(f"{n} {s:.4f}" for n, s in scores.items()))


@contextmanager
def open_log(folder: Path, stage: Stage, tracking: Tracking | None, start: int) -> Iterator[Log]:
    """The log of a stage that starts at step `start`; its trackers are finished however the stage ends.

    Lines of steps that a killed run logged behind its last checkpoint are dropped: they are about to run again.
    """
    path = folder / "metrics.jsonl"
    if distributed.is_main() and path.exists():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= start]
        replace_text(path, "".join(kept))
    with (
        _trackers(stage, folder, tracking) as trackers,
        bar(stage.objective, stage.steps, distributed.is_main(), keep=True) as move,
    ):
        yield Log(folder, stage, trackers, move)


def stage_summary(encoder: Encoder, stage: Stage, batch: Batch, start: int) -> dict[str, str]:
    """The rows of the table before step 1: what trains, on how much, and what the batch says of itself."""
    trained = sum(p.numel() for p in encoder.trained().values())
    every = sum(p.numel() for p in encoder.parameters())
    # AdamW keeps two float32 moments per trained weight, and the gradient is a third copy.
    held = [(distributed.to_local(p).numel(), p) for p in encoder.parameters()]
    fixed = sum(count * (p.element_size() + 12 * p.requires_grad) for count, p in held)
    passes = len(list(batch.partition.micro_batches(batch.tokens.lengths, stage.micro_batch_tokens)))
    return {
        "trained parameters": f"{trained:,} of {every:,} ({100 * trained / every:.1f} %)",
        **({"adapter": partial} if (partial := encoder.backbone.adapter_leaves_out) else {}),
        "steps": f"{start} -> {stage.steps} (schedule {stage.schedule_steps or stage.steps})",
        "processes": f"{distributed.world_size()}{_shared(encoder, stage)}",
        "precision": stage.precision + _slow(stage, encoder.device),
        **batch.describe(),
        "batch": f"{stage.batch_size} ({len(batch.tokens)} texts, {batch.num_tokens:,} tokens on this process)",
        "model passes per batch": f"{passes} on this process",
        "truncated texts": f"{100 * batch.tokens.truncated.float().mean():.0f} % of the first batch",
        "weights + optimizer": f"{fixed / 2**30:.2f} GiB, activations of {stage.micro_batch_tokens:,} tokens besides",
    }


def _shared(encoder: Encoder, stage: Stage) -> str:
    if uses_zero(stage):
        return ", each with a part of the moments"
    return ", each with a part of the layers" * encoder.backbone.sharded


def _slow(stage: Stage, device: torch.device) -> str:
    """A warning if bfloat16 will be emulated: measured on AVX2, its matrix products run at a tenth of float32's speed."""
    slow = stage.precision != "float32" and emulated(getattr(torch, stage.precision), device)
    return " (this CPU emulates it, float32 is about 10 times as fast)" if slow else ""


def peak_gib() -> float:
    """Peak memory so far: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextmanager
def _trackers(stage: Stage, folder: Path, tracking: Tracking | None) -> Iterator[list[Any]]:
    """accelerate's trackers, started; they are finished however the stage ends."""
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    # Values that every tracker can show.
    fields = stage.model_dump(mode="json").items()
    flat = {name: value if isinstance(value, int | float | str | bool) else json.dumps(value) for name, value in fields}
    trackers: list[Any] = []
    if tracking is not None and distributed.is_main():
        PartialState(cpu=not torch.cuda.is_available())  # accelerate's loggers refuse to work without
        if tracking.wandb:
            trackers.append(WandBTracker(tracking.project, name=folder.name, dir=str(folder)))
        if tracking.tensorboard:
            trackers.append(TensorBoardTracker(folder.name, logging_dir=str(folder)))
    for tracker in trackers:
        if hasattr(tracker, "start"):
            tracker.start()
        tracker.store_init_configuration(flat)
    try:
        yield trackers
    finally:
        for tracker in trackers:
            tracker.finish()

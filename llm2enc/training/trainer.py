"""One loop for every stage.

    batch k  ->  backward (gradient of the global batch)  ->  clip  ->  AdamW  ->  log  ->  checkpoint

A run that is interrupted (Ctrl-C, SIGTERM) finishes its step, writes a checkpoint and raises `Interrupted`; run again, it
goes on with the next batch, bit for bit.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from llm2enc import distributed
from llm2enc.encoding import Encoder
from llm2enc.errors import Interrupted, NotFinite, NothingLearnt
from llm2enc.recipe import Stage, Tracking
from llm2enc.training import checkpoint
from llm2enc.training.checks import Guard, check_finite
from llm2enc.training.logging import open_log
from llm2enc.training.objectives import OBJECTIVES, Batch, Objective
from llm2enc.training.origin import origin
from llm2enc.training.prepare import check_processes, make_optimizer, prepare, restore
from llm2enc.training.signals import interruptible, stop_requested
from llm2enc.training.teachers import Teachers

PREFETCH = 2  # batches collated ahead: one hides the tokenizer, two hide its jitter


def learning_rate(step: int, stage: Stage) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warmup, then the schedule over `schedule_steps`."""
    total = stage.schedule_steps or stage.steps
    if step < stage.warmup_steps:
        return stage.lr * step / stage.warmup_steps
    done = (step - stage.warmup_steps) / max(1, total - stage.warmup_steps)
    factor = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}
    return stage.lr * factor[stage.schedule]


def train(
    encoder: Encoder,
    stage: Stage,
    folder: Path,
    seed: int,
    tracking: Tracking | None = None,
    keep_adapter: bool = False,
) -> None:
    """Train the encoder for one stage, in place; afterwards its adapter is merged and `folder` is finished.

    keep_adapter  leave the adapter unmerged, for a stage with `lora: continue`

    A checkpoint in `folder` is resumed. Raises Interrupted, NotFinite, NothingLearnt, or ValueError for data the stage
    cannot use and for a checkpoint that was begun with other weights, template, tokenizer or data.
    """
    distributed.start()
    folder.mkdir(parents=True, exist_ok=True)
    objective, backbone = OBJECTIVES[stage.objective], encoder.backbone
    check_processes(stage)
    parent, made_from = encoder.weights_fingerprint(), origin(encoder, stage)
    begun = {"weights": parent, **made_from}
    teachers = Teachers(objective.teachers(stage))
    prepare(encoder, stage, seed)
    encoder.auxiliary = nn.ModuleDict(objective.auxiliary(encoder, stage, teachers, seed))
    trained = encoder.trained()
    optimizer = make_optimizer(stage, trained)
    start = checkpoint.resume(folder, encoder, optimizer, begun)
    teachers.resume(folder, start)
    with (
        # A notebook's own random numbers go on as if nothing had been drawn.
        torch.random.fork_rng(devices=[encoder.device] if encoder.device.type == "cuda" else []),
        interruptible() as stop,
        _prefetched(objective, stage, encoder, seed, start) as batches,
        open_log(folder, stage, tracking, start) as log,
    ):
        guard = Guard(trained)
        for step in range(start, stage.steps):
            batch = next(batches)
            if step == start:
                log.summary(encoder, batch, start)
            rate = learning_rate(step, stage)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with _named(step, batch.source, folder):
                batch = objective.taught(batch, teachers, encoder.device)
                with precision(stage, encoder):
                    metrics = objective.backward(encoder, batch, stage)
                guard.check_batch(metrics, batch.source)
                norm = distributed.reduce_gradients(optimizer, trained.values(), stage.max_grad_norm or math.inf)
                check_finite(metrics["loss"], norm, guard.trained)
                with guard.update(rate):
                    optimizer.step()
            optimizer.zero_grad()
            log.step(step, batch, {**metrics, "grad_norm": norm}, rate)
            if stop_requested(stop, encoder.device):
                teachers.save(folder)
                checkpoint.save(folder, step + 1, encoder, optimizer, begun)
                raise Interrupted(f"{folder.name}: checkpoint after step {step + 1} of {stage.steps}")
            if (step + 1) % stage.save_every == 0 and step + 1 < stage.steps:
                teachers.save(folder)
                checkpoint.save(folder, step + 1, encoder, optimizer, begun)
    if isinstance(optimizer, distributed.Zero):
        optimizer.close()
    if backbone.sharded:
        backbone.unshard()
    if stop:  # after the last look at it; from the last checkpoint on everything can be repeated
        raise KeyboardInterrupt
    restore(encoder)
    encoder.auxiliary = nn.ModuleDict()
    done = {"objective": stage.objective, "steps": stage.steps, "seed": seed, "begun": made_from}
    checkpoint.finish(folder, encoder, parent, done, keep_adapter)


def precision(stage: Stage, encoder: Encoder) -> torch.autocast:
    """The type of matrix products inside.

    Of sharded layers autocast must keep no copies: they would hold all weights, and gradients through copies made in an
    earlier pass come out wrong (by 0.8 of their size, in the bfloat16 line of benchmarks/scale.py).
    """
    cast = stage.precision == "bfloat16"
    return torch.autocast(encoder.device.type, torch.bfloat16, cast, cache_enabled=not encoder.backbone.sharded)


@contextmanager
def _named(step: int, source: str, folder: Path) -> Iterator[None]:
    """Say which step and data a fault of the numbers belongs to, and what to do."""
    where = f"step {step}, batch of {source}: "
    try:
        yield
    except NotFinite as error:
        raise NotFinite(
            f"{where}{error}. The weights were not changed by it; the last checkpoint in {folder} is good. Lower the "
            "learning rate, or look at these rows"
        ) from None
    except NothingLearnt as error:
        raise NothingLearnt(f"{where}{error}") from None


@contextmanager
def _prefetched(
    objective: Objective, stage: Stage, encoder: Encoder, seed: int, start: int
) -> Iterator[Iterator[Batch]]:
    """Collated batches from step `start`, made in a background thread."""
    rows = objective.batches(stage, encoder.input_format, seed, start)

    def one():
        return objective.collate(next(rows), stage, encoder.input_format, seed)

    def ahead():
        waiting = [pool.submit(one) for _ in range(PREFETCH)]
        while True:
            yield waiting.pop(0).result()
            waiting.append(pool.submit(one))

    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            yield ahead()
        finally:
            pool.shutdown(cancel_futures=True)

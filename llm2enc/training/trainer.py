"""One loop for every stage.

    batch k  ->  backward (gradient of the global batch)  ->  clip  ->  AdamW  ->  log  ->  checkpoint

A run that is interrupted (Ctrl-C, SIGTERM) finishes its step, writes a checkpoint and raises `Interrupted`; run again, it
goes on with the next batch, bit for bit.
"""

import json
import math
import resource
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llm2enc import distributed
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError, Interrupted, NotFinite, NothingLearnt
from llm2enc.model import emulated
from llm2enc.recipe import LoraSpec, Stage, Tracking
from llm2enc.storage import replace_text
from llm2enc.terminal import bar, table
from llm2enc.training import checkpoint
from llm2enc.training.checks import Guard, check_finite
from llm2enc.training.microbatch import idle
from llm2enc.training.objectives import OBJECTIVES

PREFETCH = 2  # batches collated ahead: one hides the tokenizer, two hide its jitter


def learning_rate(step: int, stage: Stage) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warmup, then the schedule over `schedule_steps`."""
    total = stage.schedule_steps or stage.steps
    if step < stage.warmup_steps:
        return stage.lr * step / stage.warmup_steps
    done = (step - stage.warmup_steps) / max(1, total - stage.warmup_steps)
    factor = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}
    return stage.lr * factor[stage.schedule]


def train(encoder: Encoder, stage: Stage, folder: Path, seed: int, tracking: Tracking | None = None) -> None:
    """Train the encoder for one stage, in place; afterwards its adapter is merged and `folder` is finished.

    A checkpoint in `folder` is resumed. Raises Interrupted, NotFinite, NothingLearnt, or ValueError for data the stage
    can't use.
    """
    distributed.start()
    folder.mkdir(parents=True, exist_ok=True)
    objective, backbone = OBJECTIVES[stage.objective], encoder.backbone
    _check_processes(stage)
    parent = backbone.fingerprint()
    _prepare(encoder, stage, seed)
    parameters = list(backbone.trained().values())
    optimizer = _optimizer(stage, parameters)
    start = checkpoint.resume(folder, backbone, optimizer)
    _forget(folder / "metrics.jsonl", start)
    with (
        # A notebook's own random numbers go on as if nothing had been drawn.
        torch.random.fork_rng(devices=[encoder.device] if encoder.device.type == "cuda" else []),
        _interruptible() as stop,
        _prefetched(objective, stage, encoder, seed, start) as batches,
        _trackers(stage, folder, tracking) as trackers,
        bar(stage.objective, stage.steps, distributed.is_main(), keep=True) as move,
    ):
        log, guard = _Log(folder, stage, trackers, move), Guard(backbone.trained())
        for step in range(start, stage.steps):
            batch = next(batches)
            if step == start:
                log.summary(encoder, batch, start)
            rate = learning_rate(step, stage)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with _named(step, batch.source, folder):
                with precision(stage, encoder):
                    metrics = objective.backward(encoder, batch, stage)
                guard.check_batch(metrics, batch.source)
                norm = distributed.reduce_gradients(optimizer, parameters, stage.max_grad_norm or math.inf)
                check_finite(metrics["loss"], norm, guard.trained)
                with guard.update(rate):
                    optimizer.step()
            optimizer.zero_grad()
            log.step(step, batch, {**metrics, "grad_norm": norm}, rate)
            if _agreed(stop, encoder.device):
                checkpoint.save(folder, step + 1, backbone, optimizer)
                raise Interrupted(f"{folder.name}: checkpoint after step {step + 1} of {stage.steps}")
            if (step + 1) % stage.save_every == 0 and step + 1 < stage.steps:
                checkpoint.save(folder, step + 1, backbone, optimizer)
    if isinstance(optimizer, distributed.Zero):
        optimizer.close()
    if backbone.sharded:
        backbone.unshard()
    if stop:  # after the last look at it; from the last checkpoint on everything can be repeated
        raise KeyboardInterrupt
    _restore(encoder)
    checkpoint.finish(folder, backbone, parent, {"objective": stage.objective, "steps": stage.steps, "seed": seed})


def precision(stage: Stage, encoder: Encoder) -> torch.autocast:
    """The type of matrix products inside.

    Of sharded layers autocast must keep no copies: they would hold all weights, and gradients through copies made in an
    earlier pass come out wrong (by 0.8 of their size, in the bfloat16 line of benchmarks/scale.py).
    """
    cast = stage.precision == "bfloat16"
    return torch.autocast(encoder.device.type, torch.bfloat16, cast, cache_enabled=not encoder.backbone.sharded)


def _check_processes(stage: Stage) -> None:
    """ValueError if a process would have nothing to do, or lacks what it needs."""
    if _uses_zero(stage):
        distributed.check_zero()
    processes = distributed.world_size()
    reason = idle(processes, stage.batch_size, stage.shards)
    if reason:
        raise InputError(
            f"{reason}. Start fewer, or set `shards` (which changes the dropout noise) and `batch_size` to at least "
            f"{processes} in the recipe"
        )


def _prepare(encoder: Encoder, stage: Stage, seed: int) -> None:
    backbone = encoder.backbone
    if stage.trainable == "full":
        backbone.train_everything(head=stage.objective == "clm")
    else:
        backbone.add_lora(stage.lora or LoraSpec(), seed)
    if stage.objective in ("clm", "mntp") and not backbone.has_head:
        raise InputError(
            f"a {stage.objective} stage predicts tokens, but this model has no language-model head; start from the causal "
            "LM instead of an exported encoder"
        )
    backbone.set_attention_dropout(stage.attention_dropout)
    backbone.set_gradient_checkpointing(stage.gradient_checkpointing)
    encoder.train()
    if distributed.world_size() > 1 and (stage.strategy == "fsdp" or distributed.wants_fsdp()):
        backbone.shard()


def _optimizer(stage: Stage, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer | distributed.Zero:
    """AdamW by the recipe; its moments and updates spread over the processes if DeepSpeed is wanted."""
    optimizer = torch.optim.AdamW(
        [{"params": group} for group in distributed.alike(parameters)],
        lr=stage.lr,
        betas=stage.adam_betas,
        eps=stage.adam_eps,
        weight_decay=stage.weight_decay,
    )
    return distributed.Zero(parameters, optimizer, stage.max_grad_norm or math.inf) if _uses_zero(stage) else optimizer


def _uses_zero(stage: Stage) -> bool:
    wanted = stage.strategy == "deepspeed" or (stage.strategy == "ddp" and distributed.wants_zero())
    return wanted and distributed.world_size() > 1


def _restore(encoder: Encoder) -> None:
    encoder.backbone.set_attention_dropout(0.0)
    encoder.backbone.set_gradient_checkpointing(False)
    encoder.eval()


@contextmanager
def _trackers(stage: Stage, folder: Path, tracking: Tracking | None) -> Iterator[list[Any]]:
    """accelerate's trackers, started; they are finished however the stage ends."""
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    trackers: list[Any] = []
    if tracking is not None and distributed.is_main():
        PartialState(cpu=not _on_cuda())  # accelerate's loggers refuse to work without
        if tracking.wandb:
            trackers.append(WandBTracker(tracking.project, name=folder.name, dir=str(folder)))
        if tracking.tensorboard:
            trackers.append(TensorBoardTracker(folder.name, logging_dir=str(folder)))
    for tracker in trackers:
        if hasattr(tracker, "start"):
            tracker.start()
        tracker.store_init_configuration(_flat(stage.model_dump(mode="json")))
    try:
        yield trackers
    finally:
        for tracker in trackers:
            tracker.finish()


def _on_cuda() -> bool:
    return torch.cuda.is_available()


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Values that every tracker can show."""
    return {k: v if isinstance(v, int | float | str | bool) else json.dumps(v) for k, v in config.items()}


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
def _interruptible() -> Iterator[list[int]]:
    """A list that gets the signal's number on Ctrl-C or SIGTERM; a second Ctrl-C stops at once."""
    received: list[int] = []

    def note(number: int, frame) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    try:
        former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: a notebook's or a server's own handlers stay
        former = {}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _agreed(stop: list[int], device: torch.device) -> bool:
    """Whether any process was asked to stop: all must leave the loop at the same step."""
    if distributed.world_size() == 1:
        return bool(stop)
    return bool(distributed.sum_over_processes(torch.tensor(float(len(stop)), device=device)).item())


@contextmanager
def _prefetched(objective, stage: Stage, encoder: Encoder, seed: int, start: int) -> Iterator[Iterator[Any]]:
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


def _forget(path: Path, start: int) -> None:
    """Drop the lines of steps that a killed run logged behind its last checkpoint: they are about to run again."""
    if distributed.is_main() and path.exists():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= start]
        replace_text(path, "".join(kept))


@dataclass
class _Log:
    """metrics.jsonl, trackers and the bar; nothing on other processes than the main one."""

    folder: Path
    stage: Stage
    trackers: list[Any]
    move: Any
    tokens: int = 0
    since: float = field(default_factory=time.perf_counter)

    def summary(self, encoder: Encoder, batch: Any, start: int) -> None:
        """What is about to happen, before the first step."""
        if not distributed.is_main():
            return
        from rich.console import Console

        rows = facts(encoder, self.stage, batch, start)
        Console(stderr=True).print(table(("", ""), rows, f"stage {self.folder.name}", header=False))

    def step(self, step: int, batch: Any, metrics: dict[str, torch.Tensor], lr: float) -> None:
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
            f"{values['peak_gib']:.1f} GiB",
        )


def facts(encoder: Encoder, stage: Stage, batch: Any, start: int) -> list[tuple[str, str]]:
    """The rows of the table before step 1: what trains, on how much, against how many negatives."""
    trained = sum(p.numel() for p in encoder.backbone.trained().values())
    every = sum(p.numel() for p in encoder.backbone.parameters())
    # AdamW keeps two float32 moments per trained weight, and the gradient is a third copy.
    held = [(distributed.local(p).numel(), p) for p in encoder.backbone.parameters()]
    fixed = sum(count * (p.element_size() + 12 * p.requires_grad) for count, p in held)
    passes = len(list(batch.split.mini_batches(batch.tokens.lengths, stage.mini_batch_tokens)))
    rows = [
        ("trained parameters", f"{trained:,} of {every:,} ({100 * trained / every:.1f} %)"),
        ("steps", f"{start} -> {stage.steps} (schedule {stage.schedule_steps or stage.steps})"),
        ("processes", f"{distributed.world_size()}{_shared(encoder, stage)}"),
        ("precision", stage.precision + _slow(stage, encoder.device)),
        ("batch", f"{stage.batch_size} ({len(batch.tokens)} texts, {batch.num_tokens:,} tokens on this process)"),
        ("model passes per batch", f"{passes} on this process"),
        ("truncated texts", f"{100 * batch.tokens.truncated.float().mean():.0f} % of the first batch"),
        ("weights + optimizer", f"{fixed / 2**30:.2f} GiB, activations of {stage.mini_batch_tokens:,} tokens besides"),
    ]
    if hasattr(batch, "positives"):
        count = len(batch.documents) - 1 if batch.allowed is None else batch.allowed.sum(1).float().mean().item()
        rows.insert(4, ("negatives per query", f"{count:.0f}"))
    return rows


def _shared(encoder: Encoder, stage: Stage) -> str:
    if _uses_zero(stage):
        return ", each with a part of the moments"
    return ", each with a part of the layers" * encoder.backbone.sharded


def _slow(stage: Stage, device: torch.device) -> str:
    """A warning if bfloat16 will be emulated: measured on AVX2, its matrix products run at a tenth of float32's speed."""
    slow = stage.precision != "float32" and emulated(getattr(torch, stage.precision), device)
    return " (this CPU emulates it, float32 is about 10 times as fast)" if slow else ""


def peak_gib() -> float:
    """Peak memory so far: of the GPU if there is one, else of this process."""
    if _on_cuda():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

"""A plan in words: a headline, the rows of a table, and lines below it."""

from datetime import timedelta

from llm2enc.planning.run import Plan, StagePlan, gib

PARTS = {
    "weights": "weights",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "AdamW's moments",
    "activations": "activations",
    "backward": "beside them in the backward pass",
    "casts": "16-bit copies of trained weights",
    "logits": "logits",
    "vectors": "vectors and loss",
    "held": "freed but held by glibc (assumed)",
    "reserved": "context and libraries (assumed)",
}


def headline(plan: Plan) -> str:
    """What is planned, on which devices."""
    devices = plan.devices
    on = f"{devices.count} x {devices.name} of {gib(devices.memory)}"
    return f"{plan.recipe}: {plan.model}, {plan.parameters:,} parameters, on {on}"


def rows(stages: tuple[StagePlan, ...], measured: bool) -> list[tuple[str, ...]]:
    """The rows of the table, a column per stage."""
    found = [("trained parameters", *(f"{stage.trained:,}" for stage in stages))]
    for part, words in PARTS.items():
        if any(stage.memory[part] for stage in stages):
            found.append((words, *(gib(stage.memory[part]) for stage in stages)))
    told = "measured" if measured else "assumed"
    within = [("measured within the stage", *(f"{stage.measurements:,} times" for stage in stages))]
    return [
        *found,
        ("peak", *(f"{gib(stage.peak)} ({stage.phase})" for stage in stages)),
        ("fits below 90 %", *("yes" if stage.fits else "NO" for stage in stages)),
        ("micro_batch_tokens", *(f"{stage.micro_batch_tokens:,}" for stage in stages)),
        ("largest safe", *(_safe(stage) for stage in stages)),
        ("steps", *(f"{stage.steps:,}" for stage in stages)),
        *(within if any(stage.measurements for stage in stages) else []),
        ("texts per step", *(f"{stage.texts:,}" for stage in stages)),
        ("tokens per step", *(f"{stage.tokens:,}" for stage in stages)),
        ("FLOPs", *(f"{stage.flops:.2e}" for stage in stages)),
        (f"share of peak ({told})", *(f"{100 * stage.share:.1f} %" for stage in stages)),
        ("time", *(_time(stage.seconds) for stage in stages)),
        ("checkpoint", *(gib(stage.checkpoint) for stage in stages)),
        ("finished stage", *(gib(stage.finished) for stage in stages)),
    ]


def lines(plan: Plan) -> list[str]:
    """What stands below the table."""
    found = [f"tokens of {stage.name}: {stage.basis}" for stage in plan.stages]
    found += [f"training: {_time(plan.seconds)} (without download, evaluation and export)"] if plan.stages else []
    found.append(
        f"disk: {gib(plan.disk)} at most ({gib(plan.download)} download, {gib(plan.exported)} exported directory, two "
        "checkpoints of the largest stage, every finished stage)"
    )
    found += [f"{name}: {gib(size)} of encoders beside each other while it merges" for name, size in plan.merges]
    for index, stage in enumerate(plan.stages):
        if stage.fits and stage.safe_micro_batch_tokens is not None and not stage.whole_shard:
            option = f"--set stages.{index}.micro_batch_tokens={stage.safe_micro_batch_tokens}"
            found.append(f"largest micro-batch of {stage.name}: {option}")
        found += [f"{stage.name}: the adapter is {stage.adapter}"] if stage.adapter else []
        found += [f"{stage.name}: {stage.idle}"] if stage.idle else []
        found += [f"{stage.name} does not fit; try {remedy}" for remedy in stage.remedies]
    return [*found, *(f"note: {note}" for note in plan.notes)]


def _safe(stage: StagePlan) -> str:
    if stage.safe_micro_batch_tokens is None:
        return "none"
    return f"{stage.safe_micro_batch_tokens:,}" + (" (a whole shard)" if stage.whole_shard else "")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else str(timedelta(seconds=round(seconds)))

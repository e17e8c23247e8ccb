"""An MNTP step of Mistral-7B at its published size: 32 blocks of 512 tokens, LoRA, gradient checkpointing."""

import functools
import statistics
from collections.abc import Iterator

import torch

from llm2enc.recipe import Recipe, load_recipe
from tools.gpu import machine, shapes, speed
from tools.gpu.rows import Row, attempt
from tools.gpu.settings import Context

STEPS = 5


def step(context: Context) -> Iterator[Row]:
    """Time and memory of steps of the shipped recipe `mistral-7b`, and what the planner foretells."""
    recipe = published(context)
    measured: list[tuple[machine.Memory, int]] = []
    yield attempt("mistral-7b, MNTP step", functools.partial(_step, recipe, context, measured))
    name = "mistral-7b, MNTP step, plan"
    machine.clean_up()
    memory, others = measured[0] if measured else (machine.Memory(), 0)
    yield attempt(name, lambda: speed.plan_row(name, recipe, memory, others, context))


def published(context: Context) -> Recipe:
    """The first stage of the shipped recipe, on random weights and random words; cut down in a rehearsal."""
    folder = context.folder("mntp")
    model = shapes.write_model(folder / "model", shapes.shape("mistral-7b", context.rehearse))
    data = shapes.write_texts(folder / "texts.txt", shapes.texts(200 if context.rehearse else 4000, 400))
    small = ["stages.0.batch_size=4", "stages.0.block_tokens=32"] if context.rehearse else []
    recipe = load_recipe(
        "mistral-7b",
        [
            f"model.name={model}", "model.weights=random", f"stages.0.data=[{{kind: files, path: {data}}}]", *small,
        ],
    )  # fmt: skip
    return recipe.model_copy(update={"stages": recipe.stages[:1]})


def _step(recipe: Recipe, context: Context, measured: list) -> Row:
    stage = recipe.stages[0]
    others = machine.allocated(context.device)
    encoder = shapes.encoder_of(
        shapes.random_model(recipe.model.name, context.device, torch.bfloat16), stage.block_tokens
    )
    run = speed.our_step(encoder, recipe)
    run()  # a warm-up, after which AdamW has its moments
    spans = []
    with machine.watched_memory(context.device) as memory:
        while len(spans) < STEPS and (not spans or context.left > 12 + 2 * spans[-1]):
            spans.append(machine.seconds(run, context.device))
    measured.append((memory, others))
    span, tokens = statistics.median(spans), stage.batch_size * stage.block_tokens
    work = speed.stage_plan(recipe).flops / stage.steps
    ceiling = speed.matrix_rate(context, 256 if context.rehearse else 8192)
    values = {
        "s": span, "tokens/s": tokens / span, "share of the ceiling, recomputation counted": work / span / ceiling,
        "peak, GiB": machine.gib(memory.peak), "steps": len(spans), "tokens": tokens,
    }  # fmt: skip
    return Row("mistral-7b, MNTP step", values=values)

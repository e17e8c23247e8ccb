"""Speed and memory of encoding and of contrastive steps, beside sentence-transformers, in one run and by turns."""

import functools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llm2enc.encoding import Encoder
from llm2enc.recipe import LoraSpec, Recipe, load_recipe
from tools.gpu import machine, shapes
from tools.gpu.peer import Peer
from tools.gpu.rows import FAILED, OK, Row, attempt
from tools.gpu.settings import Context

ENCODE, CONTRASTIVE, MEMORY, PLANNER = 1.3, 1.5, 0.5, 0.10
BATCH_SIZES = (32, 128)  # sentence-transformers' default, and one for large devices
# Texts of a pass in its cached loss: its default, and fewer where activations of 32 x 512 tokens do not fit. A pass of
# ours has as many tokens as theirs with padding.
MINI_BATCH = {"qwen3-0.6b": 32, "llama-3.2-1b": 32, "mistral-7b": 8}
ROUNDS = 3
_ceilings: dict[str, float] = {}
_plans: dict[str, Any] = {}


def ceiling(context: Context) -> Iterator[Row]:
    """FLOP/s of a square bfloat16 product of random numbers."""
    yield attempt("bfloat16 product", lambda: _ceiling_row(context))


def _ceiling_row(context: Context) -> Row:
    size = 256 if context.rehearse else 8192
    rate = matrix_rate(context, size)
    return Row("bfloat16 product", values={"TFLOP/s": rate / 1e12, "size": size})


def matrix_rate(context: Context, size: int) -> float:
    """The median of a few, kept for later parts of the same process."""
    if context.device not in _ceilings:
        matrix = torch.randn(size, size, device=context.device).to(torch.bfloat16)
        spans = [machine.seconds(lambda: [matrix @ matrix for _ in range(4)], context.device) / 4 for _ in range(8)]
        _ceilings[context.device] = 2 * size**3 / statistics.median(spans[3:])
    return _ceilings[context.device]


def reached(value: bool, context: Context) -> bool | None:
    """A goal means nothing in a rehearsal."""
    return None if context.rehearse else value


@dataclass
class Pair:
    """Both tools with one shape, its weights drawn from one seed."""

    name: str
    values: dict[str, Any]
    ours: Encoder
    peer: Peer
    context: Context


def side_by_side(context: Context, shape: str) -> Iterator[Row]:
    """Encoding, then contrastive steps: an adapter stays where it was put."""
    values, folder = shapes.shape(shape, context.rehearse), context.folder(shape)
    model = shapes.write_model(folder / "model", values)
    dtype, longest = torch.bfloat16, 64 if context.rehearse else context.settings.max_tokens
    ours = shapes.encoder_of(shapes.random_model(model, context.device, dtype), longest)
    peer = Peer(folder, values, shapes.random_model(model, context.device, dtype), context.device, longest)
    pair = Pair(shape, values, ours, peer, context)
    rows = shapes.texts(24 if context.rehearse else shapes.TEXTS[shape], longest)
    for attention in ("sdpa", "flash_attention_2"):
        name = f"{shape}, encode, beside {attention}"
        yield attempt(name, functools.partial(_encode, name, pair, rows, attention))
    machine.clean_up()
    count = 8 if context.rehearse else shapes.PAIRS[shape]
    path, triples = shapes.write_pairs(folder / "pairs.jsonl", count, longest)
    recipe = contrastive_recipe(str(model), str(path), count, longest, MINI_BATCH[shape])
    step: list[Callable[[], float]] = []
    name = f"{shape}, contrastive step, plan"
    yield attempt(name, lambda: _planned(name, pair, recipe, step))
    for attention in ("sdpa", "flash_attention_2"):
        name = f"{shape}, contrastive step, beside {attention}"
        yield attempt(name, functools.partial(_contrastive, name, pair, recipe, triples, attention, step))


def _encode(name: str, pair: Pair, rows: list[str], attention: str) -> Row:
    context, unpadded = pair.context, pair.peer.attend_by(attention)
    some = rows[:200]
    cosine = smallest_cosine(pair.ours.encode(some), pair.peer.encode(some, 32))  # and a warm-up of both
    runs = {"ours": lambda: pair.ours.encode(rows)}
    runs |= {f"theirs, {size}": functools.partial(pair.peer.encode, rows, size) for size in BATCH_SIZES}
    spans, memory = by_turns(runs, context)
    lengths = pair.ours.input_format.pack(rows, "", "document").lengths.tolist()
    rate = shapes.encode_flops(pair.values, lengths) / spans["ours"]
    best = min(span for key, span in spans.items() if key != "ours")
    values = {
        "times as fast": best / spans["ours"], "ours, texts/s": len(rows) / spans["ours"],
        "ours, tokens/s": sum(lengths) / spans["ours"],
        "share of the ceiling": rate / matrix_rate(context, 256 if context.rehearse else 8192),
        **{f"{key}, s": span for key, span in spans.items()},
        **{f"{key}, GiB": machine.gib(found.extra) for key, found in memory.items()},
        "unpadded": unpadded, "smallest cosine": cosine, "texts": len(rows),
    }  # fmt: skip
    good = cosine > 0.99  # bfloat16 through 16 to 32 layers; other attention or pooling gives 0.9 and less
    return Row(
        name, OK if good else FAILED, values, f"{ENCODE} x", reached(best / spans["ours"] >= ENCODE, context),
        "" if good else "the two give other vectors",
    )  # fmt: skip


def smallest_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Over the rows of two matrices."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(1) / lengths).min())


def by_turns(runs: dict[str, Callable[[], Any]], context: Context):
    """({name: median seconds}, {name: Memory}) of calls that take turns, as often as a third of what is left allows.

    The first round is a warm-up where there are three.
    """
    spans: dict[str, list[float]] = {name: [] for name in runs}
    memory: dict[str, machine.Memory] = {}
    until = context.left * 2 / 3
    for _ in range(1 if context.rehearse else ROUNDS):
        for name, run in runs.items():
            with machine.watched_memory(context.device) as memory[name]:
                spans[name].append(machine.seconds(run, context.device))
        if context.left - sum(found[-1] for found in spans.values()) < until:
            break
    return {name: statistics.median(found) for name, found in spans.items()}, memory


def contrastive_recipe(model: str, data: str, pairs: int, longest: int, mini_batch: int) -> Recipe:
    """LoRA of rank 16 on bfloat16 weights, one hard negative a query, all texts of the step in the loss."""
    document = [part.model_dump(exclude_defaults=True) for part in shapes.DOCUMENT]
    stage = {
        "objective": "contrastive", "data": [{"kind": "files", "path": data}], "steps": 10, "batch_size": pairs,
        "lr": 1e-4, "loss": {"temperature": 0.05}, "micro_batch_tokens": mini_batch * longest,
        "rng_shards": max(1, min(8, pairs // 8)),
    }  # fmt: skip
    return load_recipe({
        "name": "contrastive", "model": {"name": model, "weights": "random", "dtype": "bfloat16"}, "pooling": "mean",
        "input": {"query": document, "document": document, "max_tokens": longest}, "stages": [stage],
    })  # fmt: skip


def our_step(encoder: Encoder, recipe: Recipe) -> Callable[[], float]:
    """A training step of the recipe's first stage on its first batch, which returns the loss."""
    from llm2enc.training import OBJECTIVES, prepare

    stage = recipe.stages[0]
    objective, device = OBJECTIVES[stage.objective], encoder.device.type
    prepare(encoder, stage, recipe.seed)
    rows = next(objective.batches(stage, encoder.input_format, recipe.seed, 0))
    batch = objective.collate(rows, stage, encoder.input_format, recipe.seed)
    optimizer = torch.optim.AdamW(encoder.trained().values(), lr=0.0)  # the loss stays what it was

    def step() -> float:
        with torch.autocast(device, torch.bfloat16):
            loss = objective.backward(encoder, batch, stage)["loss"]
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return step


def stage_plan(recipe: Recipe) -> Any:
    """What the planner says of the first stage on this device."""
    from llm2enc.planning import here, plan  # like training it needs pyarrow, which encoding does not

    if recipe.model.name not in _plans:
        _plans[recipe.model.name] = plan(recipe, here()).stages[0]
    return _plans[recipe.model.name]


def plan_row(name: str, recipe: Recipe, memory: machine.Memory, others: int, context: Context) -> Row:
    """What the planner foretells for the first stage, beside the allocator's peak; `others`: bytes that are not ours."""
    found = stage_plan(recipe)
    foretold = found.peak - found.memory["reserved"]
    values: dict[str, Any] = {"planned, GiB": machine.gib(foretold)}
    measured = None if memory.peak is None else memory.peak - others
    values["measured, GiB"] = machine.gib(measured)
    if measured is None:
        return Row(name, values=values, goal=f"within {PLANNER:.0%}")
    values["planned / measured"] = foretold / measured
    return Row(name, OK, values, f"within {PLANNER:.0%}", reached(abs(foretold / measured - 1) <= PLANNER, context))


def _planned(name: str, pair: Pair, recipe: Recipe, step: list[Callable[[], float]]) -> Row:
    """Puts our adapter in place and does the first steps: AdamW's moments are there from then on."""
    others = machine.allocated(pair.context.device) - sum(weight.nbytes for weight in pair.ours.parameters())
    step.append(our_step(pair.ours, recipe))
    step[0]()
    with machine.watched_memory(pair.context.device) as memory:
        step[0]()
    return plan_row(name, recipe, memory, others, pair.context)


def _contrastive(
    name: str, pair: Pair, recipe: Recipe, triples: list[tuple[str, str, str]], attention: str,
    step: list[Callable[[], float]],
) -> Row:  # fmt: skip
    context, stage = pair.context, recipe.stages[0]
    if not step:
        raise RuntimeError("our own step could not be made; see the row before")
    pair.peer.attend_by(attention)
    theirs = _their_step(pair, triples, stage.loss.temperature)
    losses = step[0](), theirs()
    spans, memory = by_turns({"ours": step[0], "theirs": theirs}, context)
    values = {
        "times as fast": spans["theirs"] / spans["ours"], "ours, s": spans["ours"], "theirs, s": spans["theirs"],
        "pairs": len(triples), "our loss": losses[0], "their loss": losses[1],
        **{f"{key}, GiB of the step": machine.gib(found.extra) for key, found in memory.items()},
    }  # fmt: skip
    fast = values["times as fast"] >= CONTRASTIVE
    if context.device == "cuda":
        values["share of their memory"] = memory["ours"].extra / max(1, memory["theirs"].extra)
        fast = fast and values["share of their memory"] <= MEMORY
    # Adapters that are still zero change nothing, so only rounding may differ: each tool's cosines are off by 2^-8 or so,
    # and a loss is the difference of two.
    good = abs(losses[0] - losses[1]) <= 4 * 2**-8 / stage.loss.temperature
    return Row(
        name, OK if good else FAILED, values, f"{CONTRASTIVE} x at {MEMORY} of the memory", reached(fast, context),
        "" if good else "the losses differ by more than rounding",
    )  # fmt: skip


def _their_step(pair: Pair, triples: list[tuple[str, str, str]], temperature: float) -> Callable[[], float]:
    trained = [weight for key, weight in pair.peer.decoder.named_parameters() if "lora_" in key]
    trained = trained or pair.peer.add_lora(LoraSpec())
    loss = pair.peer.loss(temperature, MINI_BATCH[pair.name])
    features = pair.peer.features([list(column) for column in zip(*triples, strict=True)])
    optimizer = torch.optim.AdamW(trained, lr=0.0)

    def step() -> float:
        with torch.autocast(pair.context.device, torch.bfloat16):
            value = loss([dict(feature) for feature in features], None)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(value)

    return step

"""What must be equal to the bit on the device: a saved encoder, a resumed run, a run under torchrun. And the proof."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm2enc.encoding import Encoder
from llm2enc.errors import Interrupted
from llm2enc.recipe import InputSpec, ModelSpec, Recipe, load_recipe
from tools.gpu import shapes
from tools.gpu.rows import FAILED, NOT_HERE, OK, Row, attempt
from tools.gpu.settings import Context

STEPS, STOP = 4, 2
FAMILIES = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 3},
    "gemma2": {"sliding_window": 3, "attn_logit_softcapping": 3.0},
}
STAGES: dict[str, dict[str, Any]] = {
    "mntp": {"mask_rate": 0.3, "mask_policy": "bert", "block_tokens": 32},
    "contrastive": {"loss": {"temperature": 0.05}, "attention_dropout": 0.1},
}


def proofs(context: Context) -> Iterator[Row]:
    """The proof of each family on this device, and a saved encoder beside itself."""
    for family in list(FAMILIES)[: 2 if context.rehearse else None]:
        for dtype in ("float32", "bfloat16"):
            name = f"proof of {family}, {dtype}"
            yield attempt(name, functools.partial(_proof, name, family, dtype, context))
    yield attempt("saved and loaded", lambda: _saved(context))


def _model(context: Context, family: str) -> Path:
    values = shapes.TINY | {"model_type": family, "initializer_range": 0.1} | FAMILIES[family]
    return shapes.write_model(context.folder(family), values)


def _proof(name: str, family: str, dtype: str, context: Context) -> Row:
    encoder = _encoder(context, family, dtype)
    proof = encoder.backbone.proof
    facts = {key: value for key, value in vars(proof).items() if isinstance(value, float | str | bool | int)}
    return Row(name, values={"on": str(encoder.device), **{k: v for k, v in facts.items() if k != "fingerprint"}})


def _encoder(context: Context, family: str, dtype: str) -> Encoder:
    spec = ModelSpec(name=str(_model(context, family)), dtype=dtype, weights="random")
    encoder = Encoder.from_causal_lm(spec, InputSpec(query=shapes.DOCUMENT, document=shapes.DOCUMENT, max_tokens=64))
    if encoder.device.type != context.device:
        raise RuntimeError(f"the encoder is on {encoder.device}, the run on {context.device}")
    return encoder


def _saved(context: Context) -> Row:
    """The packaged model as an encoder, saved and loaded again: equal vectors, bit for bit."""
    spec = InputSpec(query=shapes.DOCUMENT, document=shapes.DOCUMENT, max_tokens=64)
    encoder, rows = Encoder.from_causal_lm(ModelSpec(name="pocket", dtype="float32"), spec), shapes.texts(20, 40)
    folder = context.folder("saved") / "model"
    encoder.save(folder)
    equal = np.array_equal(encoder.encode(rows), Encoder.load(folder).encode(rows))
    return Row("saved and loaded", OK if equal else FAILED, {"texts": len(rows), "bit-equal": equal})


def resume(context: Context) -> Iterator[Row]:
    """A run that is interrupted and resumed, beside one that is not, by the kernels' usual and by repeatable means."""
    for objective in STAGES:
        for repeatable in (True,) if context.rehearse else (True, False):  # a CPU has one kind of kernels
            how = "repeatable kernels" if repeatable else "usual kernels"
            name = f"{objective} resumed, {how}"
            yield attempt(name, functools.partial(_resumed, name, objective, repeatable, context))


def _resumed(name: str, objective: str, repeatable: bool, context: Context) -> Row:
    """Equal to the bit. With the usual kernels that can be asked only where a run repeats itself to the bit."""
    recipe = small_recipe(context.folder("recipe"), objective)
    with warnings.catch_warnings(record=True) as warned:
        torch.use_deterministic_algorithms(repeatable, warn_only=True)
        try:
            whole, again = (trained(recipe, context, context.folder("whole") / "0") for _ in range(2))
            resumed = _interrupted(recipe, context, context.folder("resumed") / "0")
        finally:
            torch.use_deterministic_algorithms(False)
    repeats, off = distance(whole, again), distance(whole, resumed)
    notes = sorted({str(w.message).split(".")[0][:120] for w in warned if "deterministic" in str(w.message)})
    values = {"resumed differs by": off, "a second run differs by": repeats}
    if repeats and not repeatable:
        notes.append("not judged: on this device no run repeats itself to the bit")
    good = off == 0 or bool(repeats and not repeatable)
    return Row(name, OK if good else FAILED, values, message="; ".join(notes))


def small_recipe(folder: Path, objective: str) -> Recipe:
    """A stage of a few steps on a tiny model; the first stage of a recipe of one."""
    model = shapes.write_model(folder / "model", shapes.TINY | {"model_type": "llama", "initializer_range": 0.1})
    if objective == "contrastive":
        data, _ = shapes.write_pairs(folder / "pairs.jsonl", 32, 40)
    else:
        data = shapes.write_texts(folder / "texts.txt", shapes.texts(64, 40))
    document = [part.model_dump(exclude_defaults=True) for part in shapes.DOCUMENT]
    stage = {
        "objective": objective, "data": [{"kind": "files", "path": str(data)}], "steps": STEPS, "batch_size": 8,
        "lr": 1e-3, "save_every": 100, "micro_batch_tokens": 300, "rng_shards": 2, **STAGES[objective],
    }  # fmt: skip
    return load_recipe({
        "name": "small", "model": {"name": str(model), "weights": "random", "dtype": "bfloat16"}, "pooling": "mean",
        "input": {"query": document, "document": document, "max_tokens": 64}, "stages": [stage],
    })  # fmt: skip


def trained(recipe: Recipe, context: Context, folder: Path) -> Encoder:
    """The recipe's encoder after its stage, on the device."""
    from llm2enc.training import train  # it needs pyarrow, which the proofs do not

    encoder = Encoder.from_recipe(recipe)
    train(encoder, recipe.stages[0], folder, recipe.seed)
    return encoder


def _interrupted(recipe: Recipe, context: Context, folder: Path) -> Encoder:
    """The same with a Ctrl-C in step STOP, and a second process's worth of random numbers before it is resumed."""
    from llm2enc.training import OBJECTIVES

    name = recipe.stages[0].objective
    original, calls = OBJECTIVES[name], [0]

    def backward(*args):
        calls[0] += 1
        if calls[0] == STOP:
            os.kill(os.getpid(), signal.SIGINT)
        return original.backward(*args)

    OBJECTIVES[name] = replace(original, backward=backward)
    try:
        trained(recipe, context, folder)
    except Interrupted:
        torch.rand(7, device=context.device)
        return trained(recipe, context, folder)
    finally:
        OBJECTIVES[name] = original
    raise RuntimeError("the run was not interrupted")


def distance(one: Encoder, other: Encoder) -> float:
    """Largest difference of a weight."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a.detach().float() - b.detach().float()).abs().max().item() for a, b in pairs)


def one_process(context: Context) -> Iterator[Row]:
    """What `joined.py` finds under torchrun, with one process and NCCL (gloo on a CPU)."""
    answer = context.folder("joined") / "answer.jsonl"
    answer.touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--master-addr", "127.0.0.1",
        "--master-port", str(port), "-m", "tools.gpu.joined", context.settings.to_json(), str(context.end), str(answer),
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        try:
            code = process.wait(timeout=max(5.0, context.left - 3))
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun hands it on
            code = "none: it took too long"
    rows = [Row(**json.loads(line)) for line in answer.read_text().splitlines()]
    yield from rows
    good = code == 0 and bool(rows)
    skipped = bool(rows) and rows[-1].status == NOT_HERE
    yield Row("torchrun, one process", OK if good or skipped else FAILED, {"exit code": code, "rows": len(rows)})

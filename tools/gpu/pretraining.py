"""The packaged model pre-trained from nothing, by the recipe of tools/build_pocket.py, for as long as is left."""

import json
import math
import os
import signal
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from llm2enc.encoding import Encoder
from llm2enc.errors import Interrupted
from llm2enc.model import load_backbone, load_config, load_tokenizer
from llm2enc.recipe import ModelSpec, Recipe, load_recipe
from llm2enc.text import InputFormat
from llm2enc.training import train
from tools import build_pocket
from tools.gpu.rows import FAILED, Row, attempt
from tools.gpu.settings import Context

TRIAL = 40  # steps that show how many fit
AFTERWARDS = 25  # seconds to measure the perplexity and to bring the weights back
SHARE = 0.85  # of the time that is left is planned for; the rest is a reserve
PACKAGED = ModelSpec(name="pocket", dtype="float32", attention="causal")


def pretrain(context: Context) -> Iterator[Row]:
    """Perplexity of the packaged weights, a trial of a few steps, the training, its perplexity, its weights in pieces."""
    data = Path(context.settings.carried) / "text"
    if not (data / "wiki.valid.txt.gz").is_file():
        yield Row("pre-training", "not here", message=f"no text in {data}: tools/gpu/pack --data FOLDER brings it")
        return
    base = context.folder("pretraining")
    model = _untrained(base / "0-untrained")
    trial = _recipe(model, data, 3 if context.rehearse else TRIAL, context)
    yield attempt("packaged weights", lambda: _perplexity(trial, data, context))
    started = time.time()
    _train(trial, base / "trial", context)
    rate = _last_rate(base / "trial")
    stage = trial.stages[0]
    step = stage.batch_size * stage.block_tokens / rate
    start = max(0.0, time.time() - started - stage.steps * step)
    steps = stage.steps if context.rehearse else steps_that_fit(context.left - AFTERWARDS - start, step)
    yield Row("trial", values={"tokens/s": rate, "s before the first step": start, "steps that fit": steps})
    recipe = _recipe(model, data, steps, context)
    started = time.time()
    encoder, ended = _train(recipe, base / "1-clm", context)
    span, tokens = time.time() - started, steps * stage.batch_size * stage.block_tokens
    values = {"steps": steps, "tokens": tokens, "s": span, "tokens/s": tokens / span}
    yield Row("training", values=values, message=ended)
    yield attempt("weights", lambda: _bring_back(encoder, recipe, data, base / "model", context))


def _last_rate(folder: Path) -> float:
    """Tokens a second between the last two lines of a stage's log."""
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["tokens_per_second"]


def steps_that_fit(seconds: float, step: float) -> int:
    """Optimizer steps for the time that is left; at least one."""
    return max(1, int(SHARE * seconds / step))


def _untrained(folder: Path) -> Path:
    """The packaged configuration and tokenizer, so that perplexities can be compared."""
    load_config(PACKAGED).save_pretrained(folder)
    load_tokenizer(PACKAGED).save_pretrained(folder)
    return folder


def _recipe(model: Path, data: Path, steps: int, context: Context) -> Recipe:
    """build_pocket's recipe with the sources that were carried, and batches for a large device."""
    values = build_pocket.recipe_data(model, data)
    stage = values["stages"][0]
    rows = {"limit": 100 if context.rehearse else None}
    stage["data"] = [source | rows for source in stage["data"] if Path(source["path"]).is_file()]
    stage |= {"steps": steps, "warmup_steps": min(100, steps // 10), "save_every": 10 * steps}
    if context.rehearse:
        stage |= {"batch_size": 4, "block_tokens": 16, "log_every": 1}
    else:
        stage |= {"batch_size": 128, "micro_batch_tokens": 32768, "logit_rows": 16384, "precision": "bfloat16"}
    return load_recipe(values)


def _train(recipe: Recipe, folder: Path, context: Context) -> tuple[Encoder, str]:
    """The trained encoder; a checkpoint's if the clock was faster, and then the message says so."""
    encoder = _encoder(recipe.model, recipe, context)
    alarm = threading.Timer(max(1.0, context.left - AFTERWARDS), os.kill, (os.getpid(), signal.SIGTERM))
    alarm.daemon = True
    alarm.start()
    try:
        train(encoder, recipe.stages[0], folder, recipe.seed)
    except Interrupted as reason:
        return encoder, f"stopped by the clock: {reason}"
    finally:
        alarm.cancel()
    return encoder, ""


def _encoder(spec: ModelSpec, recipe: Recipe, context: Context) -> Encoder:
    encoder = Encoder(load_backbone(spec, recipe.seed), InputFormat(recipe.input, load_tokenizer(spec)), recipe.pooling)
    return encoder.to(context.device)


def _perplexity(recipe: Recipe, data: Path, context: Context) -> Row:
    loss = build_pocket.validation_loss(_encoder(PACKAGED, recipe, context), recipe, data / "wiki.valid.txt.gz")
    return Row("packaged weights", values={"validation loss": loss, "perplexity": math.exp(loss)})


def _bring_back(encoder: Encoder, recipe: Recipe, data: Path, folder: Path, context: Context) -> Row:
    """The directory of the packaged model as one tar file in pieces, beside the report."""
    build_pocket.write_packaged(encoder, folder, recipe, data)
    archive = folder.with_suffix(".tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname="model")
    out, size = Path(context.settings.out), archive.stat().st_size
    if size + sum(path.stat().st_size for path in out.iterdir()) > context.settings.out_mib * 2**20:
        return Row("weights", FAILED, message=f"{size:,} more bytes are too many for {out}: see --out-mib")
    pieces = cut(archive, out, int(context.settings.piece_mib * 2**20))
    numbers = json.loads((folder / "training.json").read_text())
    return Row("weights", values={**numbers, "files": ", ".join(path.name for path in pieces)})


def cut(archive: Path, out: Path, size: int) -> list[Path]:
    """Files of at most `size` bytes, `NAME.00` and so on, which `cat NAME.*` joins again."""
    pieces = []
    with archive.open("rb") as source:
        while chunk := source.read(size):
            pieces.append(out / f"{archive.name}.{len(pieces):02d}")
            pieces[-1].write_bytes(chunk)
    return pieces

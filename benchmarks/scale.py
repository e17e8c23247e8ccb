"""Does the number of processes change a step? Loss and gradient of each objective, beside those of one process.

python -m benchmarks.scale                                     1, 2, 3, 4 and 8 processes of this machine, on the CPU
python -m benchmarks.scale --processes 1 4 --markdown FILE     others; the table into a file too

Dropout is on, rows don't divide evenly, texts have many lengths, queries have 0, 1 or 2 hard negatives, and a process
has several micro-batches, not as many as another. Weights and products are float32, but for the lines that say bfloat16:
there products are, and the weights under an adapter.

Each number is max |g - g1| / max |g1|, the largest over all trained tensors: g1 is the gradient in one process, g that of
so many processes, put together from their parts where needed.
"""

import argparse
import math
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
import transformers

from llm2enc import distributed
from llm2enc.data import Pair, RowBatch
from llm2enc.encoding import Encoder
from llm2enc.model import Backbone, load_tokenizer, quiet
from llm2enc.recipe import (
    ClmStage,
    ContrastiveStage,
    FilesData,
    InputSpec,
    LoraSpec,
    MntpStage,
    ModelSpec,
    Part,
    SimcseStage,
    Stage,
)
from llm2enc.text import InputFormat
from llm2enc.training import OBJECTIVES, prepare_backbone
from llm2enc.training.precision import autocast

ROWS = 9  # one more than 2, 4 or 8 processes share evenly
STRATEGIES = ("ddp", "fsdp")
WORDS = "a river runs through the old town and the bridge over it was built of stone when trade in salt made it rich".split()
COMMON = {
    "data": (FilesData(kind="files", path="unused.txt"),),
    "steps": 3,
    "batch_size": ROWS,
    "lr": 1e-2,
    "precision": "float32",
    "micro_batch_tokens": 100,
    "log_every": 1,
    "attention_dropout": 0.3,
}
OWN = {
    "clm": {"objective": "clm"},
    "mntp": {"objective": "mntp", "mask_rate": 0.3, "mask_policy": "bert"},
    "simcse": {"objective": "simcse"},
    "contrastive": {"objective": "contrastive", "hard_negatives": 2},
    "contrastive, graphs kept": {"objective": "contrastive", "hard_negatives": 2, "activation_tokens": 120},
    "contrastive, checkpointing": {"objective": "contrastive", "hard_negatives": 2, "gradient_checkpointing": True},
    "contrastive, bfloat16": {"objective": "contrastive", "hard_negatives": 2, "precision": "bfloat16"},
}
STAGES = {"clm": ClmStage, "mntp": MntpStage, "simcse": SimcseStage, "contrastive": ContrastiveStage}
TRAINABLE = {"full": {"trainable": "full"}, "lora": {"lora": LoraSpec(r=4, alpha=8, dropout=0.3)}}

Step = tuple[float, dict[str, torch.Tensor]]
"""Loss, and the gradient of the global batch by the name of the parameter."""


def make_encoder(dtype: torch.dtype = torch.float32) -> Encoder:
    """A bidirectional Llama of 3 layers whose random weights are the same every time, with the packaged tokenizer."""
    tokenizer = _tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 30,  # no multiple of 4 or 8: parts of unequal size
        "intermediate_size": 44,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "initializer_range": 0.2,  # at 0.02 attention is so flat that dropout hardly matters
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).to(dtype)
    text = Part(slot="text", pool=True)
    query = (Part(slot="instruction"), Part(literal=": ", when="instruction"), text)
    spec = InputSpec(query=query, document=(text,), max_tokens=64)
    return Encoder(Backbone(model, bidirectional=True), InputFormat(spec, tokenizer), "mean").eval()


@cache
def _tokenizer() -> transformers.PreTrainedTokenizerBase:
    return load_tokenizer(ModelSpec(name="pocket"))


def texts(count: int, seed: int = 0) -> list[str]:
    """Different texts of 2 to 30 words."""
    generator = np.random.default_rng(seed)
    return [" ".join([*generator.choice(WORDS, generator.integers(2, 30)), str(n)]) for n in range(count)]


def cases(shards: int = 8, names: Iterable[str] = OWN) -> dict[str, Stage]:
    """Every objective, or those named, full and with LoRA."""
    return {
        f"{name} ({how})": STAGES[own["objective"]](**COMMON | own | which, rng_shards=shards)
        for name, own in ((name, OWN[name]) for name in names)
        for how, which in TRAINABLE.items()
    }


def rows_of(objective: str) -> list[Any]:
    """What the data of a step would be."""
    if objective in ("clm", "mntp"):
        return list(np.random.default_rng(0).integers(10, 9000, (ROWS, 12), dtype=np.int32))
    found = texts(2 * ROWS)
    if objective == "simcse":
        return found[:ROWS]
    others = texts(2 * ROWS, seed=1)
    return [Pair(found[n], found[ROWS + n], tuple(others[2 * n : 2 * n + n % 3]), "Find it", "") for n in range(ROWS)]


def step(stage: Stage, strategy: str) -> Step:
    """Loss and gradient of the global batch, whole in every process. Like a step of the trainer, without its update."""
    half = stage.precision == "bfloat16"  # of an adapter also the weights below it are
    encoder = make_encoder(torch.bfloat16 if half and stage.trainable == "lora" else torch.float32)
    backbone = encoder.backbone
    prepare_backbone(backbone, stage, seed=0)
    if stage.trainable == "lora":
        with torch.no_grad():  # a fresh B is zero, and so would be the gradient of A
            for number, parameter in enumerate(backbone.trained().values()):
                parameter.add_(0.02 * math.cos(number))
    encoder.train()
    if strategy == "fsdp" and distributed.world_size() > 1:
        backbone.shard()
    torch.rand(distributed.rank())  # the processes' own random states differ, and play no role
    objective = OBJECTIVES[stage.objective]
    batch = objective.collate(RowBatch(0, rows_of(stage.objective), "here", True), stage, encoder.input_format, 0)
    with autocast(stage, encoder):
        loss = objective.backward(encoder, batch, stage)["loss"].item()
    distributed.sum_gradients(backbone.trained().values())
    return loss, {name: distributed.full_tensor(p.grad).clone() for name, p in backbone.trained().items()}


def difference(one: Step, other: Step) -> float:
    """Of the gradients, relative to the largest entry of each tensor of `other`; the largest of all."""
    return max(((one[1][n] - g).abs().max() / g.abs().max()).item() for n, g in other[1].items())


def steps(count: int, shards: int = 8, names: Iterable[str] = OWN) -> dict[str, Step]:
    """Every case by every strategy; alone there is one only."""
    ways = STRATEGIES if count > 1 else STRATEGIES[:1]
    return {f"{name} {way}": step(stage, way) for name, stage in cases(shards, names).items() for way in ways}


def together(count: int, folder: Path, work: Callable[[int], Any]) -> list[Any]:
    """What `work(count)` returns in each of `count` processes, which start as torchrun would start them.

    They are forks: this process must not have computed gradients itself.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    place = (count, port, folder, work)
    torch.multiprocessing.start_processes(_process, place, nprocs=count, start_method="fork")
    return [torch.load(folder / f"{count}-{rank}.pt", weights_only=True) for rank in range(count)]


def _process(rank: int, count: int, port: int, folder: Path, work: Callable[[int], Any]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    quiet()
    distributed.start()
    torch.save(work(count), folder / f"{count}-{rank}.pt")
    distributed.barrier()


def table(found: dict[int, list[dict[str, Step]]]) -> str:
    """One line per case, one column per number of processes and strategy."""
    alone = found[1][0]
    several = [count for count in found if count > 1]
    columns = [(count, way) for count in several for way in STRATEGIES]
    lines = [
        "| objective | " + " | ".join(f"{count} x {way}" for count, way in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name in cases():
        worst = [
            max(difference(process[f"{name} {way}"], alone[f"{name} ddp"]) for process in found[count])
            for count, way in columns
        ]
        lines.append(f"| {name} | " + " | ".join(f"{value:.1e}" for value in worst) + " |")
    losses = max(
        abs(process[f"{name} {way}"][0] / alone[f"{name} ddp"][0] - 1)
        for name in cases()
        for count, way in columns
        for process in found[count]
    )
    return "\n".join([*lines, "", f"Largest relative difference of a loss: {losses:.1e}"])


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3, 4, 8])
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = {count: together(count, Path(folder), steps) for count in sorted({1, *given.processes})}
    result = table(found)
    print(result)
    if given.markdown:
        versions = f"torch {torch.__version__}, transformers {transformers.__version__}, gloo on the CPU"
        what = " ".join(line for line in __doc__.splitlines()[5:] if line)
        text = f"# One batch, any number of processes\n\n{what}\n\n{versions}.\n\n{result}\n"
        given.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

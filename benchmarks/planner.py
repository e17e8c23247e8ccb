"""How good the planner's estimates are: predicted against measured memory and operations of real steps on this CPU.

    python -m benchmarks.planner                  every shape, a process each; writes benchmarks/planner.md
    python -m benchmarks.planner lora simcse      some of them, printed only

Each process builds a model with random weights, takes one tiny step (libraries load their kernels then), resets the
kernel's high-water mark and takes two steps. Measured is the high-water mark of resident memory less what was resident
before: gradients, AdamW's moments, activations, logits. The weights are in neither number. It is measured twice:

- `tensors`: with MALLOC_MMAP_THRESHOLD_=65536, so that every freed tensor goes back to the kernel at once. This is what the
  planner counts, and nothing in the planner is fitted to it.
- `resident`: with glibc's own settings, which keep freed pieces. What a user sees on a CPU; GPUs have another allocator.
  A plan for a CPU adds half of what the passes take for these pieces, which is not in the prediction here.

torch's counter does not know the grouped products of a mixture of experts, so there the planner counts more. In the case
with a large vocabulary 13 MiB more are resident during the backward pass of the head than all tensors have: most likely
scratch space of the matrix library, whose inner dimension is the vocabulary there. Numbers below 20 MiB differ by 3 MiB from
run to run.
"""

import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LLAMA = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 2, "attention_dropout": 0.0}
PAIRS = {"objective": "contrastive", "batch_size": 3, "rng_shards": 1, "lr": 1e-3, "steps": 2, "precision": "float32"}
BLOCKS = PAIRS | {"block_tokens": 128, "batch_size": 4}
LORA = {"r": 16, "alpha": 32, "dropout": 0.05}


def _model(width: int, depth: int, vocabulary: int, **fields: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": depth, "vocab_size": vocabulary}
    return LLAMA | sizes | fields


# name: model, stage, tokens per text (from, to)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, int]]] = {
    "lora": (_model(256, 6, 8000), PAIRS | {"lora": LORA, "micro_batch_tokens": 256}, (56, 72)),
    "lora, checkpointing": (
        _model(256, 6, 8000), PAIRS | {"lora": LORA, "micro_batch_tokens": 256, "gradient_checkpointing": True}, (56, 72)
    ),
    "lora, one mini batch": (_model(256, 10, 8000), PAIRS | {"lora": LORA, "micro_batch_tokens": 9999}, (64, 64)),
    "lora, activation_tokens": (
        _model(256, 6, 8000), PAIRS | {"lora": LORA, "micro_batch_tokens": 128, "activation_tokens": 400}, (56, 72)
    ),
    "lora, wide": (_model(1024, 2, 4000), PAIRS | {"lora": LORA, "micro_batch_tokens": 256}, (40, 64)),
    "full": (_model(256, 6, 8000), PAIRS | {"trainable": "full", "micro_batch_tokens": 256}, (56, 72)),
    "full, checkpointing": (
        _model(256, 6, 8000),
        PAIRS | {"trainable": "full", "micro_batch_tokens": 256, "gradient_checkpointing": True},
        (56, 72),
    ),
    "full, one mini batch": (_model(256, 8, 4000), PAIRS | {"trainable": "full", "micro_batch_tokens": 9999}, (60, 64)),
    "simcse, attention dropout": (
        _model(256, 6, 8000),
        PAIRS | {"objective": "simcse", "lora": LORA, "micro_batch_tokens": 256, "attention_dropout": 0.3},
        (128, 128),
    ),
    "mntp, large vocabulary": (
        _model(192, 4, 64000),
        BLOCKS | {"objective": "mntp", "lora": LORA, "mask_rate": 0.2, "mask_policy": "bert", "micro_batch_tokens": 256,
                  "logit_rows": 128},
        (128, 128),
    ),
    "clm, full, untied": (
        _model(256, 4, 16000, tie_word_embeddings=False),
        BLOCKS | {"objective": "clm", "trainable": "full", "micro_batch_tokens": 256, "logit_rows": 128},
        (128, 128),
    ),
    "mixture of experts": (
        _model(256, 4, 8000, model_type="mixtral", num_local_experts=4, num_experts_per_tok=2, intermediate_size=512),
        PAIRS | {"lora": LORA | {"targets": ["q_proj", "v_proj"]}, "micro_batch_tokens": 256},
        (60, 64),
    ),
}  # fmt: skip


def _backbone(name: str, device: str):
    """The backbone of a case, ready to train."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from llm2enc.model import Backbone
    from llm2enc.training import prepare_backbone

    fields, stage, _ = _resolved(name)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), dtype=torch.float32)
    made = Backbone(model, bidirectional=True)
    prepare_backbone(made, stage, seed=0)
    return made


def _resolved(name: str):
    import torch
    from pydantic import TypeAdapter

    from llm2enc.recipe import Stage

    fields, stage, (low, high) = CASES[name]
    data = [{"kind": "docstrings"}]
    parsed = TypeAdapter(Stage).validate_json(json.dumps(stage | {"data": data}))
    texts = stage["batch_size"] * {"contrastive": 3, "simcse": 2}.get(stage["objective"], 1)
    return fields, parsed, torch.randint(low, high + 1, (texts,), generator=torch.Generator().manual_seed(1))


def predicted(name: str) -> dict[str, Any]:
    """What the planner says of a case: bytes beside the weights, and operations of a step."""
    from llm2enc.encoding import Encoder
    from llm2enc.planning.devices import Devices
    from llm2enc.planning.fake_profiler import FakeProfiler
    from llm2enc.planning.memory import memory, sizes
    from llm2enc.planning.run import flops_of_a_step
    from llm2enc.planning.workload import Workload

    (_, stage, lengths), encoder = _resolved(name), Encoder(_backbone(name, "meta"), None, "mean")
    devices = Devices("cpu", 1, 2**40, {}, cuda=False)
    size, profiler = sizes(encoder, 1, sharded=False), FakeProfiler(encoder)
    load = Workload(lengths, "", stage.rng_shards)
    found, costs, largest = memory(stage, profiler, size, load, devices, "mean")
    flops = flops_of_a_step(stage, profiler, load, devices, costs, largest)
    beside = found.peak - found.parts["reserved"] - found.parts["held"] - size.weights - size.adapter
    return {"predicted": beside, "phase": found.phase, "predicted_flops": flops}


def measured(name: str) -> dict[str, Any]:
    """What the case takes in this process."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from llm2enc.encoding import Encoder
    from llm2enc.training import OBJECTIVES

    torch.set_num_threads(1)
    (_, stage, lengths), backbone = _resolved(name), _backbone(name, "cpu")

    class Format:
        """An encoder asks its format for nothing while it trains."""

    encoder = Encoder(backbone, Format(), "mean").train()
    parameters = list(backbone.trained().values())
    backward = OBJECTIVES[stage.objective].backward

    def step(batch, optimizer) -> None:
        backward(encoder, batch, stage)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step(_batch(stage, lengths[:6] * 0 + 4, backbone.config.vocab_size), torch.optim.AdamW(parameters, lr=1e-9))
    batch, optimizer = _batch(stage, lengths, backbone.config.vocab_size), torch.optim.AdamW(parameters, lr=1e-4)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is resident
    before = _status("VmRSS")
    for _ in range(2):
        step(batch, optimizer)
    grown = _status("VmHWM") - before
    with _attention_counter() as attention, FlopCounterMode(display=False) as counter:
        backward(encoder, batch, stage)
    return {"measured": grown, "measured_flops": counter.get_total_flops() + attention.total}


def _attention_counter():
    """Counts the CPU's fused attention, which torch's own counter does not know, by its formulas for the other kernels."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    class Counter(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func._overloadpacket._qualified_op_name
            if name.endswith("flash_attention_for_cpu"):
                query, key, value = (tuple(tensor.shape) for tensor in args[:3])
                heads = query[1]
                self.total += sdpa_flop_count(query, (key[0], heads, *key[2:]), (value[0], heads, *value[2:]))
            elif name.endswith("flash_attention_for_cpu_backward"):
                gradient, query, key, value = (tuple(tensor.shape) for tensor in args[:4])
                wide = [(shape[0], query[1], *shape[2:]) for shape in (key, value)]
                self.total += sdpa_backward_flop_count(gradient, query, *wide)
            return func(*args, **(kwargs or {}))

    return Counter()


def _batch(stage, lengths, vocabulary: int):
    """A batch of random tokens."""
    import torch

    from llm2enc.losses import Layout
    from llm2enc.text import Tokens
    from llm2enc.training import BatchPartition
    from llm2enc.training.objectives.contrastive import ContrastiveBatch
    from llm2enc.training.objectives.token_loss import TokenBatch

    total = int(lengths.sum())
    ids = torch.randint(vocabulary, (total,))
    tokens = Tokens(ids, lengths, torch.ones(total, dtype=torch.bool), torch.zeros(len(lengths), dtype=torch.bool))
    partition = BatchPartition(len(lengths), stage.rng_shards, 0, 0)
    if stage.objective in ("clm", "mntp"):
        share = 1 - 1 / stage.block_tokens if stage.objective == "clm" else stage.mask_rate
        chosen = torch.randperm(total) < max(1, round(share * total))
        return TokenBatch(tokens, torch.where(chosen, ids, -100), int(chosen.sum()), partition, "random")
    every = len(lengths) // (2 if stage.objective == "simcse" else 3)
    places = torch.arange(len(lengths)).view(every, -1)
    documents = places[:, 1:].reshape(-1)
    return ContrastiveBatch(
        tokens=tokens, partition=partition, queries=places[:, 0], documents=documents,
        layout=Layout(torch.arange(every) * (places.size(1) - 1), torch.arange(len(documents)) // (places.size(1) - 1)),
        in_batch=True, loss=stage.loss, source="random",
    )  # fmt: skip


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _forked(names: list[str]) -> None:
    """Print what each case takes, each in a child of this process, which has imported the libraries and nothing else."""
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers

    transformers.AutoModelForCausalLM  # noqa: B018  # its lazy imports too
    for name in names:
        sys.stdout.flush()
        child = os.fork()
        if not child:
            print(json.dumps(measured(name)), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise RuntimeError(f"{name}: the child failed")


def _measure(names: list[str], exact: bool) -> list[dict[str, Any]]:
    """`measured` of each case in a process of its own. exact: whatever is freed goes back to the kernel."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if exact else {})
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.planner", "--measure", *names]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


HEAD = (
    "| case | width x depth, vocabulary | tokens per text | mini batch | peak in | predicted MiB | tensors MiB | error "
    "| resident MiB | error | predicted GFLOP | measured GFLOP | error |\n|" + "---|" * 13
)


def row(name: str, plan: dict[str, Any], tensors: dict[str, Any], resident: dict[str, Any]) -> str:
    """A line of the table."""
    fields, stage, (low, high) = CASES[name]
    shape = f"{fields['hidden_size']} x {fields['num_hidden_layers']}, {fields['vocab_size']:,}"
    cells = [
        name,
        shape,
        f"{low}-{high}",
        stage["micro_batch_tokens"],
        plan["phase"],
        f"{plan['predicted'] / 2**20:.1f}",
    ]
    for found in (tensors, resident):
        cells += [f"{found['measured'] / 2**20:.1f}", f"{100 * (plan['predicted'] / found['measured'] - 1):+.1f} %"]
    operations = plan["predicted_flops"], tensors["measured_flops"]
    cells += [*(f"{count / 1e9:.2f}" for count in operations), f"{100 * (operations[0] / operations[1] - 1):+.2f} %"]
    return f"| {' | '.join(map(str, cells))} |"


def main(names: list[str]) -> None:
    import torch

    chosen = names or list(CASES)
    with ThreadPoolExecutor(max_workers=2) as pool:
        runs = [pool.submit(_measure, chosen, exact) for exact in (True, False)]
        plans = [predicted(name) for name in chosen]
        lines = [row(*facts) for facts in zip(chosen, plans, *(run.result() for run in runs), strict=True)]
    print("\n".join([HEAD, *lines]))
    if not names:
        told = (__doc__ or "").split("\n\n")
        setup = (
            f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, one thread, float32."
        )
        text = "\n\n".join([f"# {told[0]}", *told[2:], setup, "\n".join([HEAD, *lines])])
        Path(__file__).with_suffix(".md").write_text(text.strip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        _forked(sys.argv[2:])
    else:
        main(sys.argv[1:])

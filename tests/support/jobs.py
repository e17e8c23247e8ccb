"""A tiny real `llm2enc convert` as a process of its own, and what two finished runs must have in common.

Processes are forked from one that has imported everything, for an import costs more than the whole run, and has done
nothing else: a fork of a process with threads, as pytest is after its first product of matrices, hangs or crashes now
and then.
"""

import atexit
import functools
import io
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import dill
import pytest
import yaml

from tests.support.builders import make_model, make_tokenizer, pairs_file, sentences, texts_file

# What a clock and a machine's memory decide, by file: everything else of a run is equal bit for bit.
EXEMPT = {"history.json": {"seconds"}, "metrics.jsonl": {"tokens_per_second", "peak_gib"}, "llm2enc.json": {"seconds"}}


OBJECTIVES = ("clm", "simcse", "contrastive")


def write_recipe(folder: Path, objectives: tuple[str, ...] = OBJECTIVES, **fields: Any) -> Path:
    """A recipe, dropout on, with an evaluation, and all that it needs; `fields` go into every stage."""
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = make_model(), make_tokenizer()
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    texts = [texts_file(folder).model_dump(mode="json", exclude_defaults=True)]
    pairs = [pairs_file(folder).model_dump(mode="json", exclude_defaults=True)]
    _write_task(folder / "tasks" / "sts")
    common = {"steps": 4, "batch_size": 4, "lr": 3e-3, "precision": "float32", "log_every": 1, "save_every": 1}
    common |= {"micro_batch_tokens": 200, "attention_dropout": 0.2} | fields
    lora = {"lora": {"r": 4, "alpha": 8, "dropout": 0.1}}
    stages = [
        {"objective": "clm", "data": texts, "block_tokens": 16, **common, "trainable": "full"},
        {"objective": "simcse", "data": texts, **common, **lora},
        {"objective": "contrastive", "data": pairs, **common, **lora},
    ]
    template = [{"special": "bos", "pool": True}, {"slot": "text", "pool": True}]
    recipe = {
        "name": "tiny",
        "seed": 5,
        "model": {"name": str(folder / "base"), "dtype": "float32"},
        "input": {"query": template, "document": template, "max_tokens": 64},
        "pooling": "mean",
        "stages": [stage for stage in stages if stage["objective"] in objectives],
        "evaluation": [{"kind": "folder", "path": str(folder / "tasks")}],
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def _write_task(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "task.json").write_text('{"type": "sts"}')
    texts = sentences(12, seed=4)
    rows = [f"{one}\t{other}\t{number}" for number, (one, other) in enumerate(pairwise(texts))]
    (folder / "test.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))


# Whatever the commands import when they need it.
BEFOREHAND = """
    tests.support.jobs llm2enc.cli llm2enc.conversion llm2enc.data llm2enc.evaluation.benchmark llm2enc.verification
    llm2enc.export accelerate peft rich.progress sentence_transformers sklearn.metrics.pairwise
""".split()


@functools.cache
def clean() -> multiprocessing.context.ForkServerContext:
    """The context whose processes are forked from one that only imports, with one thread; it ends with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(BEFOREHAND)
    tables = tempfile.TemporaryDirectory()  # which read data of tests only
    atexit.register(tables.cleanup)
    atexit.register(_kill_all)  # before multiprocessing waits for them
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", tables.name)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        first = context.Process()
        first.start()
    first.join()  # the imports are done, and cost no job its time
    return context


def _kill_all() -> None:
    """What a failed test has left running."""
    for process in multiprocessing.active_children():
        process.kill()


def start(work: Callable, *arguments: Any) -> multiprocessing.process.BaseProcess:
    """A function of a module in a process of its own."""
    process = clean().Process(target=_begin, args=(work, *arguments))
    process.start()
    return process


def _begin(work: Callable, *arguments: Any) -> None:
    # As from a terminal: the shell has switched it off if the tests run in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work(*arguments)


class Job:
    """`work` in a process of its own; `output` is all that it and its children print."""

    def __init__(self, work: Callable[[], int | None], output: Path, **environment: str):
        self.output = output
        # dill takes a function that another one has made; what it changes in modules, it must change there itself.
        given = dill.dumps(work)
        clean()
        self.started = time.monotonic()
        self.process = start(_child, given, output, os.environ | environment)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def code(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """The exit code, or minus the signal that ended it; None while it runs."""
        return self.process.exitcode

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float = 120) -> int:
        self.process.join(seconds)
        if self.code is None:
            self.send(signal.SIGKILL)
            raise AssertionError(f"still running after {seconds} seconds:\n{self.said()}")
        return self.code

    def said(self) -> str:
        return self.output.read_text()


def _child(work: bytes, output: Path, environment: dict[str, str]) -> None:
    sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w"), write_through=True) for n in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(dill.loads(work)())


def convert(recipe: Path, out: Path, *options: str, engines: tuple[str, ...] = ("llm2enc",)) -> Callable[[], None]:
    """What `llm2enc convert RECIPE -o OUT` does, by its own entry point; `engines` verify the result."""

    def work() -> None:
        import torch

        from llm2enc import cli
        from llm2enc.conversion import run

        torch.set_num_threads(1)
        assert run.AT_THE_END_OF_A_CONVERSION  # the name that is looked up there
        run.AT_THE_END_OF_A_CONVERSION = engines
        sys.argv = ["llm2enc", "convert", str(recipe), "-o", str(out), *options]
        cli.main()

    return work


_PORTS = iter(range(20_000 + 1_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]), 30_000))


def free_port() -> int:
    """A port that nothing listens on, and that no other worker of pytest is given: theirs begin elsewhere.

    A port that the system picks may be picked for another test before this one has opened it.
    """
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("localhost", port))
            return port
    raise RuntimeError("no free port is left below 30000")


def places(count: int, nodes: int = 1) -> list[dict[str, str]]:
    """What torchrun tells each of `count` processes."""
    port = free_port()
    each = count // nodes
    return [
        {
            "RANK": str(number),
            "LOCAL_RANK": str(number % each),
            "GROUP_RANK": str(number // each),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for number in range(count)
    ]


def contents(out: Path) -> dict[str, Any]:
    """Every file of a run, by its path; without what EXEMPT lists."""
    return {str(path.relative_to(out)): _content(path) for path in sorted(out.rglob("*")) if path.is_file()}


def _content(path: Path) -> Any:
    if path.name == "README.md":
        return re.sub(r"\| \d+ \|$", "|", path.read_text(), flags=re.MULTILINE)  # the seconds of a stage
    exempt = EXEMPT.get(path.name)
    if exempt is None:
        return path.read_bytes()
    text = path.read_text()
    return [_without(json.loads(part), exempt) for part in (text.splitlines() if path.suffix == ".jsonl" else [text])]


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(one, names) for name, one in value.items() if name not in names}
    return [_without(one, names) for one in value] if isinstance(value, list) else value


def assert_equal(out: Path, whole: Path) -> None:
    """Two runs left the same files with the same content."""
    found, expected = contents(out), contents(whole)
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    different = [name for name in found if found[name] != expected[name]]
    assert not different, different

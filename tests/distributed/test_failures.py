"""Several processes, one of which fails: the others stop soon, one line says which and why, and the run can go on.

Processes are those of jobs.py. Two nodes are two elastic agents, as torchrun starts them, on two loopback addresses; the
long form starts torchrun itself in two network namespaces.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llm2enc import distributed
from llm2enc.conversion import run as conversion
from llm2enc.conversion import run_directory
from llm2enc.distributed import failure, process_group
from llm2enc.errors import DataError
from llm2enc.training import objectives
from llm2enc.training.logging import Log
from tests.support.jobs import Job, assert_equal, contents, convert, places, write_recipe

SOON = 15  # seconds on a busy machine; alone it is a tenth of one


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), ("contrastive",), steps=5, rng_shards=4)


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make of it when nobody disturbs them."""
    place = tmp_path_factory.mktemp("whole")
    jobs = launch(recipe, place / "run", 2)
    assert [job.wait() for job in jobs] == [0, 0], told(jobs)
    return place / "run"


def launch(recipe: Path, out: Path, count: int, *options: str, hook: Callable[[int], None] = int, **environment: str):
    """A job of `count` processes; each calls `hook` with its number first."""

    def work(number: int) -> Callable[[], None]:
        def run() -> None:
            hook(number)
            convert(recipe, out, *options)()

        return run

    logs = [out.with_name(f"{out.name}-{number}.log") for number in range(count)]
    for log in logs:
        log.unlink(missing_ok=True)
    return [Job(work(number), logs[number], **(place | environment)) for number, place in enumerate(places(count))]


def told(jobs: list[Job]) -> str:
    return "\n".join(job.said() for job in jobs)


def at_step(step: int, process: int, action: Callable[[], None]) -> Callable[[int], None]:
    """A hook: the process does `action` in a step (from 0)."""

    def hook(number: int) -> None:
        log = Log.step

        def logged(self, now: int, *others) -> None:
            log(self, now, *others)
            if (now, number) == (step, process):
                action()

        Log.step = logged

    return hook


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def end() -> None:
    os._exit(7)


def fail() -> None:
    raise RuntimeError("the disk of this node is gone")


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def ends(jobs: list[Job], first: int) -> tuple[list[int], float]:
    """Exit codes, and the seconds from the end of process `first` to that of the last one."""
    jobs[first].wait()
    started = time.monotonic()
    codes = [job.wait() for job in jobs]
    return codes, time.monotonic() - started


# ------------------------------------------------------------------------------------------------------ one of several


@pytest.mark.parametrize(
    ("process", "action", "code", "reason"),
    [
        (1, kill, -9, r"process 1 of 2 \(.*, pid \d+\) was killed, or its machine is gone"),
        (0, end, 7, r"process 0, the main one, was killed, or its machine is gone"),
        (1, fail, 1, r"process 1 of 2 \(.*\) failed: RuntimeError: the disk of this node is gone"),
    ],
    ids=["killed", "main-exits", "raises"],
)
def test_one_fails_and_all_stop(
    process: int, action: Callable, code: int, reason: str, recipe: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    jobs = launch(recipe, out, 2, hook=at_step(2, process, action))
    codes, seconds = ends(jobs, process)
    assert codes[process] == code and codes[1 - process] == 1 and seconds < SOON, told(jobs)
    other = jobs[1 - process].said()
    assert len(re.findall(rf"stopped: {reason}\. .*go on with --resume", other)) == 1 and "Traceback" not in other, (
        other
    )
    again = launch(recipe, out, 2, "--resume")
    assert [job.wait() for job in again] == [0, 0], told(again)
    assert_equal(out, whole)


def test_a_fault_in_one_share_of_the_data_is_told_once(recipe: Path, tmp_path: Path) -> None:
    def hook(number: int) -> None:
        own = objectives.OBJECTIVES["contrastive"]

        def collate(*arguments):
            if number == 2:
                raise DataError("line 7 of pairs.jsonl is damaged")
            return own.collate(*arguments)

        objectives.OBJECTIVES["contrastive"] = replace(own, collate=collate)

    jobs = launch(recipe, tmp_path / "run", 3, hook=hook)
    codes, seconds = ends(jobs, 2)
    assert codes == [1, 1, 2] and seconds < SOON, told(jobs)
    assert re.findall(r"^(stopped|error): .*line 7", told(jobs), re.MULTILINE) == ["stopped", "error"]
    assert "Traceback" not in told(jobs)


def test_what_all_refuse_is_told_once(recipe: Path, tmp_path: Path) -> None:
    jobs = launch(recipe, tmp_path / "run", 3, "--set", "stages.0.batch_size=2")
    assert sorted(job.wait() for job in jobs) == [1, 1, 2], told(jobs)
    assert len(re.findall(r"^error: 3 processes share a batch of 2 rows", told(jobs), re.MULTILINE)) == 1, told(jobs)
    assert "Traceback" not in told(jobs)


def test_a_frozen_process_is_given_up(recipe: Path, tmp_path: Path) -> None:
    jobs = launch(recipe, tmp_path / "run", 2, hook=at_step(1, 1, freeze), LLM2ENC_TIMEOUT="0.25")
    try:
        assert jobs[0].wait(60) == 1
        assert re.search(r"stopped: process 1 of 2 .* no sign of life for 0.25 minutes", jobs[0].said()), told(jobs)
    finally:
        jobs[1].send(signal.SIGKILL)
        jobs[1].wait()


def test_sigterm_for_all_leaves_one_checkpoint(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """As torchrun hands it on: all processes leave behind the same step."""
    out = tmp_path / "run"
    jobs = launch(recipe, out, 2, "--set", "stages.0.save_every=100")
    while not (out / "0-contrastive" / "metrics.jsonl").exists():
        assert jobs[0].poll() is None, told(jobs)
        time.sleep(0.001)
    for job in jobs:
        job.send(signal.SIGTERM)
    codes = [job.wait() for job in jobs]
    assert codes == [130, 130] and len(re.findall("Go on with", told(jobs))) == 1, told(jobs)
    again = launch(recipe, out, 2, "--resume", "--set", "stages.0.save_every=100")
    assert [job.wait() for job in again] == [0, 0], told(again)
    assert_weights(out, whole)


def test_a_second_ctrl_c_does_not_wait_for_the_step(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (job,) = launch(recipe, out, 1, hook=at_step(1, 0, lambda: time.sleep(600)))
    log = out / "0-contrastive" / "metrics.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 2:
        assert job.poll() is None, job.said()
        time.sleep(0.01)
    job.send(signal.SIGINT)
    time.sleep(0.2)
    assert job.poll() is None  # it would finish the step
    job.send(signal.SIGINT)
    assert job.wait() == 130 and "--resume" in job.said() and "Traceback" not in job.said(), job.said()


# --------------------------------------------------------------------------------------------------- while main works


def main_works(seconds: float) -> Callable[[int], None]:
    def hook(number: int) -> None:
        evaluate, naps = conversion.evaluate, [seconds]

        def slow(*arguments):
            time.sleep(naps.pop() if naps else 0)
            return evaluate(*arguments)

        conversion.evaluate = slow

    return hook


def test_waiting_for_main_has_no_timeout(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """A collective would be given up after twelve seconds."""
    jobs = launch(recipe, tmp_path / "run", 2, hook=main_works(15.0), LLM2ENC_TIMEOUT="0.2")
    assert [job.wait() for job in jobs] == [0, 0], told(jobs)
    assert_weights(tmp_path / "run", whole)


@pytest.mark.parametrize("process", [0, 1], ids=["main", "waiting"])
def test_a_death_while_main_evaluates(process: int, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    jobs = launch(recipe, out, 2, hook=main_works(600))
    while not (out / run_directory.RECIPE).exists():
        assert jobs[0].poll() is None, told(jobs)
        time.sleep(0.01)
    time.sleep(0.5)
    jobs[process].send(signal.SIGKILL)
    codes, seconds = ends(jobs, process)
    assert codes[process] == -9 and codes[1 - process] == 1 and seconds < SOON, told(jobs)
    assert "was killed, or its machine is gone" in jobs[1 - process].said()


# ---------------------------------------------------------------------------------------------------------- the watch


def test_strangers_are_sent_away() -> None:
    supervisor = failure.Supervisor(1, 60)
    for noise in (b'guessed\n{"rank": 0}\n', b"GET / HTTP/1.1\r\n\r\n", b"[]\n", bytes(2 * failure.LONGEST)):
        with socket.create_connection(("localhost", supervisor.port), timeout=5) as stranger:
            stranger.sendall(noise)
            with suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
    client = failure.Client(("localhost", supervisor.port), supervisor.token, 0, 1, "here", 0, 60)
    client.wait()
    client.leave()
    supervisor.leave()


def test_who_joins_late_is_told_of_the_failure() -> None:
    """On a busy machine one process may fail before another has come to the supervisor."""

    def join(rank: int) -> socket.socket:
        connection = socket.create_connection(("localhost", supervisor.port), timeout=10)
        place = {"rank": rank, "title": f"process {rank}", "node": "", "local_rank": 0}
        connection.sendall(f"{supervisor.token}\n{json.dumps(place)}\n".encode())
        return connection

    def told_to_stop(connection: socket.socket) -> dict:
        return next(filter(None, (json.loads(line).get("stop") for line in connection.makefile())))

    supervisor = failure.Supervisor(2, 60)
    with join(1) as first:
        first.sendall(b'{"failed": "failed", "code": 3}\n')
        said = told_to_stop(first)
        assert said == {"rank": 1, "node": "", "local_rank": 0, "text": "process 1 failed", "code": 3}
        with join(0) as late:
            assert told_to_stop(late) == said
    supervisor.leave()


def test_who_failed_has_time_to_say_so(tmp_path: Path) -> None:
    """Process 0 is gone long before: its end is no cause of anything by then."""

    def work() -> None:
        distributed.start()
        try:
            with distributed.abort_with_peers(""):
                if distributed.rank() == 1:
                    fail()
                distributed.barrier()
        except RuntimeError:
            time.sleep(1)
            sys.exit("the whole traceback")

    jobs = [Job(work, tmp_path / f"{number}.log", **place) for number, place in enumerate(places(2))]
    assert [job.wait() for job in jobs] == [1, 1] and jobs[1].said() == "the whole traceback\n", told(jobs)


@pytest.mark.parametrize("given", ["soon", "0", "-3", "nan", "1e9"])
def test_a_timeout_that_is_none(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM2ENC_TIMEOUT", given)
    with pytest.raises(ValueError, match=f"LLM2ENC_TIMEOUT is '{given}'; expected minutes"):
        distributed.start()


def test_a_break_is_known_from_an_own_error() -> None:
    def caught(action: Callable) -> BaseException:
        with pytest.raises(BaseException) as found:
            action()
        return found.value

    assert process_group._in_collective(caught(lambda: torch.distributed.barrier()))
    assert not process_group._in_collective(caught(lambda: torch.zeros(2) @ torch.zeros(3)))
    assert not process_group._in_collective(caught(fail))


# ------------------------------------------------------------------------------------------------------------ two nodes


def assert_weights(out: Path, whole: Path) -> None:
    """The same weights in the encoder, bit for bit; the recipes may differ."""
    one, other = (load_file(path / "model" / "model.safetensors") for path in (out, whole))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def node(number: int, work: Callable[[], None], port: int, log: Path) -> Job:
    """An elastic agent, as `torchrun --nnodes 2 --local-addr 127.0.0.(1 + number)` makes one; one process on each."""

    def agent() -> None:
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        config = LaunchConfig(
            min_nodes=2,
            max_nodes=2,
            nproc_per_node=1,
            run_id="test",
            rdzv_backend="c10d",
            rdzv_endpoint=f"127.0.0.1:{port}",
            rdzv_configs={"is_host": number == 0},
            local_addr=f"127.0.0.{1 + number}",
            start_method="fork",
            max_restarts=0,  # torchrun's own default
            monitor_interval=0.1,
        )
        elastic_launch(config, work)()

    return Job(agent, log, PYTHONWARNINGS="ignore")


def test_two_nodes_are_one_run(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """Node 1 dies and node 0 stops with the reason; started again, both end as one node of two processes does."""
    out = tmp_path / "run"

    def dying() -> None:
        at_step(2, 1, kill)(int(os.environ["RANK"]))
        convert(recipe, out)()

    port = int(places(1)[0]["MASTER_PORT"])
    nodes = [node(number, dying, port, tmp_path / f"first-{number}.log") for number in range(2)]
    assert all(job.wait() for job in nodes), told(nodes)
    assert re.search(r"stopped: process 1 of 2 .* was killed, or its machine is gone\..*--resume", nodes[0].said())
    assert json.loads((out / "0-contrastive" / "checkpoint" / "step.json").read_text())["step"] > 0
    port = int(places(1)[0]["MASTER_PORT"])
    again = convert(recipe, out, "--resume")
    nodes = [node(number, again, port, tmp_path / f"second-{number}.log") for number in range(2)]
    assert [job.wait() for job in nodes] == [0, 0], told(nodes)
    assert_equal(out, whole)


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "torchrun-alone"])
def test_a_node_fails_while_process_0_works_alone(watched: bool, tmp_path: Path) -> None:
    """Why there is failure.py: torchrun ends the processes of the node that failed, and tells no other node of it."""

    def work() -> None:
        if watched:
            distributed.start()
        else:
            torch.distributed.init_process_group("gloo")
        with distributed.abort_with_peers("Start again"):
            torch.distributed.barrier()  # so that process 0 is at work, too
            if distributed.rank() == 1:
                fail()
            time.sleep(600)

    port = int(places(1)[0]["MASTER_PORT"])
    nodes = [node(number, work, port, tmp_path / f"{number}.log") for number in range(2)]
    assert nodes[1].wait() != 0
    if watched:
        assert nodes[0].wait(SOON) != 0
        assert "failed: RuntimeError: the disk of this node is gone. Start again" in nodes[0].said(), told(nodes)
    else:
        time.sleep(5)
        assert nodes[0].poll() is None and "disk" not in nodes[0].said(), told(nodes)
        nodes[0].send(signal.SIGTERM)  # which torchrun hands on
        nodes[0].wait()


def test_a_folder_that_nodes_do_not_share_is_refused_at_once(recipe: Path, tmp_path: Path) -> None:
    places_of = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    for path in places_of:
        path.parent.mkdir()

    def work(number: int) -> Callable[[], None]:
        def run() -> None:
            run_directory.PATIENCE = 0.5
            convert(recipe, places_of[number])()

        return run

    where = places(2, nodes=2)
    jobs = [Job(work(number), tmp_path / f"{number}.log", **where[number]) for number in range(2)]
    assert [job.wait() for job in jobs] == [1, 2], told(jobs)
    for job in jobs:
        assert re.search(rf"process 1 on .* does not see {places_of[1]}/.lock", job.said()), told(jobs)
    assert [path.name for path in places_of[0].iterdir()] == [
        run_directory.LOCK
    ]  # of a stopped process: the next run takes it


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Two network namespaces, machines as far as addresses go, joined by one cable: 10.231.7.1 and 10.231.7.2."""
    names = [f"llm2enc-{os.getpid()}-{number}" for number in (1, 2)]

    def ip(*words: str) -> bool:
        return subprocess.run(["ip", *words], capture_output=True).returncode == 0

    try:
        if shutil.which("ip") is None or not all(ip("netns", "add", name) for name in names):
            pytest.skip("no right to make network namespaces")
        cable = ("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        assert ip(*cable)
        for number, name in enumerate(names, 1):
            assert ip("-n", name, "addr", "add", f"10.231.7.{number}/24", "dev", "cable")
            assert all(ip("-n", name, "link", "set", device, "up") for device in ("lo", "cable"))
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


class Torchrun:
    """`torchrun` with two processes, in a namespace."""

    def __init__(self, name: str, number: int, recipe: Path, out: Path, log: Path):
        own = f"--local-addr 10.231.7.{number + 1} --node-rank {number} --nnodes 2 --nproc-per-node 2"
        # Both have one name, which does not lead to these addresses: torchrun cannot tell by itself who is the host.
        meet = (
            f"--rdzv-backend c10d --rdzv-endpoint 10.231.7.1:29411 --rdzv-id tiny --rdzv-conf is_host={int(not number)}"
        )
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *f"{own} {meet}".split()]
        command += f"-m llm2enc convert {recipe} -o {out} --resume".split()
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "cable", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self.log = log
        self.process = subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT, env=environment)

    def wait(self) -> int:
        return self.process.wait(900)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def workers(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(number) for number in path.read_text().split()]


@pytest.mark.full
def test_two_machines_are_one_run(namespaces: list[str], recipe: Path, tmp_path: Path) -> None:
    def both(out: Path) -> list[Torchrun]:
        return [Torchrun(name, i, recipe, out, tmp_path / f"{out.name}-{i}") for i, name in enumerate(namespaces)]

    whole, out = tmp_path / "whole", tmp_path / "run"
    nodes = both(whole)
    assert [node.wait() for node in nodes] == [0, 0], nodes[0].said() + nodes[1].said()
    print("undisturbed:", sorted(contents(whole)))
    alone = Job(convert(recipe, tmp_path / "alone"), tmp_path / "alone.log")
    assert alone.wait(600) == 0, alone.said()
    exported, single = (load_file(path / "model" / "model.safetensors") for path in (whole, tmp_path / "alone"))
    base = load_file(recipe.parent / "base" / "model.safetensors")
    moved = max((single[n] - base[n if n in base else f"model.{n}"]).abs().max().item() for n in single)
    off = max((exported[n] - single[n]).abs().max().item() for n in single)
    print(f"2 machines x 2 processes and 1 process: weights differ by {off:.2e}, training moved them by {moved:.2e}")
    assert off < 1e-2 * moved
    nodes = both(out)
    while not (out / "0-contrastive" / "checkpoint" / "step.json").exists():
        assert nodes[0].process.poll() is None, nodes[0].said()
        time.sleep(0.005)
    for number in [*nodes[1].workers(), nodes[1].process.pid]:
        os.kill(number, signal.SIGKILL)
    started = time.monotonic()
    lines = re.compile(r"^stopped: .*", re.MULTILINE)
    while not lines.search(nodes[0].said()):
        assert time.monotonic() - started < 120 and nodes[0].process.poll() is None, nodes[0].said()
        time.sleep(0.01)
    print(f"node 1 was killed; after {time.monotonic() - started:.2f} s node 0 said: {lines.findall(nodes[0].said())}")
    assert nodes[0].wait() != 0 and nodes[1].wait() != 0
    print(f"torchrun of node 0 ended after {time.monotonic() - started:.1f} s")
    assert not (out / "model").exists()
    nodes = both(out)
    assert [node.wait() for node in nodes] == [0, 0], nodes[0].said() + nodes[1].said()
    assert_equal(out, whole)
    print("started again with --resume: equal to the undisturbed one, bit for bit")


@pytest.mark.full
def test_a_pulled_cable_is_noticed(namespaces: list[str], recipe: Path, tmp_path: Path) -> None:
    """Nothing says goodbye: the other machine counts as gone after LOST seconds without an answer."""
    nodes = [Torchrun(name, i, recipe, tmp_path / "run", tmp_path / f"{i}") for i, name in enumerate(namespaces)]
    while not (tmp_path / "run" / "0-contrastive").exists():
        assert nodes[0].process.poll() is None, nodes[0].said()
        time.sleep(0.01)
    subprocess.run(["ip", "-n", namespaces[1], "link", "set", "cable", "down"], check=True)
    started = time.monotonic()
    while not all("stopped: " in node.said() for node in nodes):
        assert time.monotonic() - started < 3 * failure.LOST, nodes[0].said() + nodes[1].said()
        time.sleep(0.1)
    print(f"the cable was pulled; both had stopped after {time.monotonic() - started:.0f} s")
    for node in nodes:  # torchrun itself waits for the other one much longer
        node.process.kill()
        node.wait()


# ---------------------------------------------------------------------------------------------------------------- SLURM

SLURM = Path(__file__).parents[2] / "recipes" / "slurm.sh"
FAKES = {  # of SLURM and torchrun: what they were asked is written down
    "scontrol": 'echo "scontrol $*" >> "$TOLD"; [ "$1" = show ] && printf "node7\\nnode8\\n"; true',
    "srun": 'shift; exec "$@"',
    "torchrun": 'echo "torchrun $*" >> "$TOLD"; trap "sleep 0.3; echo stopped >> $TOLD; exit 130" TERM; '
    'touch "$TOLD.started"; if [ -n "$LONG" ]; then sleep 30 & wait; fi',
}


@pytest.mark.parametrize("asked", [False, True], ids=["finished", "out-of-time"])
def test_the_slurm_script_goes_on_until_it_is_finished(asked: bool, tmp_path: Path) -> None:
    for name, body in FAKES.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_ID": "41", "NODEID": "0", "JOB_NUM_NODES": "2", "JOB_NODELIST": "node[7-8]", "GPUS_ON_NODE": "8"}
    environment = os.environ | {f"SLURM_{name}": value for name, value in slurm.items()}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TOLD": str(tmp_path / "told"), "LONG": "yes" * asked}
    process = subprocess.Popen(["bash", SLURM, "recipe.yaml", "run", "--set", "seed=1"], env=environment)
    until = time.monotonic() + 30
    while not (tmp_path / "told.started").exists() and time.monotonic() < until:
        time.sleep(0.01)
    if asked:
        process.terminate()
    assert process.wait(30) == (130 if asked else 0)
    told = (tmp_path / "told").read_text()
    command = "-m llm2enc convert recipe.yaml -o run --resume --set seed=1"
    places = "--nnodes 2 --nproc-per-node 8 --rdzv-id 41-0 --rdzv-backend c10d --rdzv-endpoint node7:20041"
    assert f"torchrun --rdzv-conf is_host=1 {places} {command}" in told
    assert told.endswith("stopped\nscontrol requeue 41\n" if asked else f"{command}\n")

"""Contests to rows: both tools loaded, results compared, then rounds in turn, so that a busy machine hurts both alike."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import material
from benchmarks.contests import LOWER_IS_BETTER, Claim, Contest

HERE = Path(__file__).parent
TRUTH = "float32"
CEILING_ROWS = 2048  # of a product: as many as `encode` has on a CPU, and where products run best


class ToolError(RuntimeError):
    """A tool's process answered with an error or died."""


class Worker:
    """A tool in its own process."""

    def __init__(self, tool: str, interpreter: str, threads: int = 1):
        self.tool = tool
        count = str(threads)
        environment = {
            **os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "RAYON_NUM_THREADS": count,
            "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by close())
        self._process = subprocess.Popen(
            [interpreter, str(HERE / "worker.py"), str(HERE / "tools" / f"{tool}.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment,
        )  # fmt: skip

    def send(self, request: dict[str, Any]) -> None:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise ToolError(f"{self.tool} died:\n{self._errors.read()[-2000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise ToolError(f"{self.tool}: {answer['error']}")
        return answer

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.send(request)
        return self.receive()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._errors.close()


@dataclass
class Row:
    """One line of the table. `ours` and `peer` are medians of `unit`; `ratio` is the median of paired ratios."""

    name: str
    metric: str
    peer_tool: str
    unit: str
    ours: float
    peer: float | None
    ratio: float
    low: float
    high: float
    gate: float
    stretch: float
    equal: bool
    difference: str
    samples: dict[str, list[float]] = field(default_factory=dict)

    @property
    def wall(self) -> float | None:
        """The median ratio in wall-clock seconds, for rows about time."""
        ours, peer = self.samples.get("ours_wall"), self.samples.get("peer_wall")
        if self.metric not in ("speed", "cost") or not ours:
            return None
        ratio = median(p / o for o, p in zip(ours, peer, strict=True))
        return ratio if self.metric == "speed" else 1 / ratio

    @property
    def better(self) -> str:
        return "lower" if self.metric in LOWER_IS_BETTER else "higher"

    def reaches(self, goal: float) -> bool:
        return self.equal and (self.ratio <= goal if self.better == "lower" else self.ratio >= goal)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "wall": self.wall, "better": self.better, "gate_reached": self.reaches(self.gate)}


def run(contest: Contest, interpreters: dict[str, str], rounds: int, threads: int = 1) -> list[Row]:
    """The rows of a contest. Raises ToolError if a tool fails."""
    tools = [("ours", contest.ours_job), (contest.peer, contest.peer_job)]
    shape = contest.facts.get("shape")
    wants_ceiling = any(claim.metric == "ceiling" for claim in contest.claims)
    if wants_ceiling:
        tools.append(("ceiling", ceiling_job(shape, contest.ours_job["dtype"])))
    workers = [Worker(tool, interpreters.get(tool, sys.executable), threads) for tool, _ in tools]
    try:
        for worker, (_, job) in zip(workers, tools, strict=True):
            worker.send({"prepare": job})  # all of them at once: nothing is timed yet
        for worker in workers:
            worker.receive()
        equal, difference = compare(contest, workers, interpreters)
        samples = [[worker.ask({"run": True}) for worker in workers] for _ in range(contest.rounds or rounds)]
    finally:
        for worker in workers:
            worker.close()
    return [row(contest, claim, samples, equal, difference) for claim in contest.claims]


def ceiling_job(shape: str, dtype: str) -> dict[str, Any]:
    """Every linear layer of the shape once."""
    layers = material.SHAPES[shape][1]
    return {
        "dtype": dtype,
        "rows": CEILING_ROWS,
        "products": [[*widths, layers] for widths in material.linears(shape).values()],
    }


# ------------------------------------------------------------------------------------------------------------ equality


def compare(contest: Contest, workers: Sequence[Worker], interpreters: dict[str, str]) -> tuple[bool, str]:
    """Whether the two tools agree, and how closely, in words."""
    with tempfile.TemporaryDirectory() as folder:
        ours, peer = (results(worker, Path(folder) / f"{worker.tool}.npz") for worker in workers[:2])
        if contest.agreement == "none":
            return True, ""
        if contest.agreement == "vectors":
            largest = float(np.abs(ours["vectors"] - peer["vectors"]).max())
            return largest <= contest.tolerance, f"largest difference {largest:.1e}"
        if contest.agreement == "gradients":
            return _same_gradients(ours, peer, contest.tolerance)
        truth_worker = Worker("ours", interpreters.get("ours", sys.executable))
        try:
            truth_worker.ask({"prepare": {**contest.ours_job, "dtype": TRUTH}})
            truth = results(truth_worker, Path(folder) / "truth.npz")["vectors"]
        finally:
            truth_worker.close()
    own, other = (float((truth * found["vectors"]).sum(1).min()) for found in (ours, peer))
    return own >= other - 1e-6, f"lowest cosine to float32 {own:.6f}, peer {other:.6f}"


def results(worker: Worker, path: Path) -> dict[str, np.ndarray]:
    worker.ask({"save": str(path)})
    return dict(np.load(path))


def _same_gradients(ours: dict[str, np.ndarray], peer: dict[str, np.ndarray], tolerance: float) -> tuple[bool, str]:
    """Loss and the gradient of all parameters together, relative to its norm; both must have the same parameters."""
    if ours.keys() != peer.keys():
        return False, f"other parameters: {sorted(ours.keys() ^ peer.keys())[:4]}"
    names = [name for name in ours if name.startswith("gradient:")]
    apart = np.sqrt(sum(((ours[name] - peer[name]).astype(np.float64) ** 2).sum() for name in names))
    norm = np.sqrt(sum((peer[name].astype(np.float64) ** 2).sum() for name in names))
    loss = abs(float(ours["loss"][0] - peer["loss"][0])) / max(1.0, abs(float(peer["loss"][0])))  # it may be near zero
    return bool(apart / norm <= tolerance and loss <= 1e-5), f"gradient {apart / norm:.1e} (relative), loss {loss:.1e}"


# ---------------------------------------------------------------------------------------------------------------- rows


def row(contest: Contest, claim: Claim, samples: list[list[dict[str, float]]], equal: bool, difference: str) -> Row:
    """One claim from the rounds' samples: [ours, peer, (ceiling)] of each."""
    facts = contest.facts
    ours, peer = [s[0] for s in samples], [s[1] for s in samples]
    if claim.metric == "speed":
        unit, pairs = "s", [(o["cpu"], p["cpu"], p["cpu"] / o["cpu"]) for o, p in zip(ours, peer, strict=True)]
    elif claim.metric == "cost":
        unit, pairs = "s", [(o["cpu"], p["cpu"], o["cpu"] / p["cpu"]) for o, p in zip(ours, peer, strict=True)]
    elif claim.metric == "memory":
        unit, pairs = "MB", [(o["peak"], p["peak"], o["peak"] / p["peak"]) for o, p in zip(ours, peer, strict=True)]
    elif claim.metric == "ceiling":
        unit = "GFLOP/s"
        best = max(CEILING_ROWS * material.linear_flops(facts["shape"]) / s[2]["cpu"] for s in samples)
        pairs = [(facts["flops"] / o["cpu"], best, facts["flops"] / o["cpu"] / best) for o in ours]
    elif claim.metric == "growth":
        unit = "MB"
        pairs = [
            (o["peak"], p["peak"], (o["peak"] - p["peak"] - facts["bytes_apart"]) / 1e6)
            for o, p in zip(ours, peer, strict=True)
        ]
    else:
        unit, (large, small) = "MB", facts["bytes"]
        pairs = [
            (o["peak"] - large, p["peak"] - small, (o["peak"] - large) / (p["peak"] - small))
            for o, p in zip(ours, peer, strict=True)
        ]
    scale = {"MB": 1e6, "GFLOP/s": 1e9}.get(unit, 1.0)
    ratios = [ratio for *_, ratio in pairs]
    return Row(
        claim.name, claim.metric, contest.peer, unit, median(o for o, _, _ in pairs) / scale,
        median(p for _, p, _ in pairs) / scale, median(ratios), min(ratios), max(ratios), claim.gate, claim.stretch,
        equal, difference,
        {f"{side}_{name}": [s[name] for s in found] for side, found in (("ours", ours), ("peer", peer))
         for name in ("cpu", "wall", "peak")},
    )  # fmt: skip

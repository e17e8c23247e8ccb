"""Accelerators: their memory, and how fast they multiply matrices according to their makers.

Peaks are dense, as the vendors publish them (they print twice as much for NVIDIA's structured sparsity); GeForce cards count
with float32 sums, at which their tensor cores run at half speed. They were checked against third-party pages that quote the
data sheets, but for A30, A6000, 6000-Ada, 5090, MI300X, MI325X and the 3090 in bfloat16. Where a card is sold with several
memories all are listed; of a chip sold in several forms the plain name is the faster one (SXM).
"""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from llm2enc.errors import InputError

# name: memories in GB, peak in TFLOP/s with bfloat16 (None: it has no such units) and with float32 outside tensor cores
TABLE: dict[str, tuple[tuple[int, ...], float | None, float]] = {
    "h100": ((80,), 989.4, 66.9),
    "h100-pcie": ((80,), 756.0, 51.2),
    "h100-nvl": ((94,), 835.5, 60.0),
    "h200": ((141,), 989.4, 66.9),
    "b200": ((180, 192), 2250.0, 75.0),
    "a100": ((40, 80), 312.0, 19.5),
    "a30": ((24,), 165.0, 10.3),
    "a40": ((48,), 149.7, 37.4),
    "a10": ((24,), 125.0, 31.2),
    "a6000": ((48,), 154.8, 38.7),
    "l4": ((24,), 121.0, 30.3),
    "l40": ((48,), 181.1, 90.5),
    "l40s": ((48,), 362.1, 91.6),
    "6000-ada": ((48,), 364.3, 91.1),
    "v100": ((16, 32), None, 15.7),
    "t4": ((16,), None, 8.1),
    "3090": ((24,), 71.0, 35.6),
    "4090": ((24,), 165.2, 82.6),
    "5090": ((32,), 209.5, 104.8),
    "mi300x": ((192,), 1307.4, 163.4),
    "mi325x": ((256,), 1307.4, 163.4),
}
CHECKED = {"a10", "a40", "l4", "l40", "l40s", "t4"}  # a sixteenth of their memory holds the check bits of the rest
ALIASES = {"rtx3090": "3090", "rtx4090": "4090", "rtx5090": "5090", "rtxa6000": "a6000", "h100-sxm": "h100"}
_SPEC = re.compile(r"(?:(?P<nodes>\d+)x(?=\d+x))?(?:(?P<count>\d+)x)?(?P<name>[a-z0-9-]+?)(?:-(?P<memory>\d+)gb)?")


@dataclass(frozen=True)
class Devices:
    """What a run is planned for: `count` alike, one process each."""

    name: str
    count: int
    memory: int
    """Bytes of each."""
    peaks: dict[str, float]
    """FLOP/s of matrix products by type, of each."""
    cuda: bool
    note: str = ""


def parse(spec: str) -> Devices:
    """`8xh100-80gb`, `2x4090-24gb`, `a100-40gb`, `2x8xh100-80gb` (two machines of eight) or `cpu`: this machine.

    raises  ValueError that lists what is known
    """
    text = spec.strip().lower()
    if text == "cpu":
        return processor()
    match = _SPEC.fullmatch(text)
    name = ALIASES.get(match["name"], match["name"]) if match else ""
    if match is None or name not in TABLE:
        known = ", ".join(f"{known}-{'/'.join(map(str, row[0]))}gb" for known, row in TABLE.items())
        raise InputError(f"--gpus {spec!r} is not of the form 8xh100-80gb with a known name, or cpu; known: {known}")
    count = int(match["count"] or 1) * int(match["nodes"] or 1)
    if not count:
        raise InputError(f"--gpus {spec!r}: give at least one")
    memories, bfloat16, float32 = TABLE[name]
    if match["memory"] is None and len(memories) > 1:
        choices = " or ".join(f"{name}-{size}gb" for size in memories)
        raise InputError(f"--gpus {spec!r}: it is sold with several memories; say {choices}")
    memory = int(match["memory"] or min(memories))
    note = "" if memory in memories else f"{name} is sold with {' or '.join(map(str, memories))} GB; taken as said"
    peaks = {"float32": float32 * 1e12} | ({} if bfloat16 is None else {"bfloat16": bfloat16 * 1e12})
    usable = int(memory * 2**30 * (0.98 - (name in CHECKED) / 16))  # vendors count in GiB, and drivers keep about 2 %
    return Devices(f"{name}-{memory}gb", count, usable, peaks, cuda=True, note=note)


def here() -> Devices:
    """The accelerators of this machine, or its processor."""
    import torch

    if not torch.cuda.is_available():
        return processor()
    properties = torch.cuda.get_device_properties(0)
    note = "peaks measured here, by products of 4096 x 4096 matrices"
    return Devices(
        properties.name, torch.cuda.device_count(), properties.total_memory, _measured("cuda", 4096), True, note
    )


def processor() -> Devices:
    """This machine without accelerators: its memory, or its container's, and the speed of a matrix product as measured."""
    total, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    memory = min(total, int(text)) if text.isdecimal() else total
    note = "peak measured here, by products of 1024 x 1024 matrices"
    return Devices("cpu", 1, memory, _measured("cpu", 1024), cuda=False, note=note)


def _measured(kind: str, size: int) -> dict[str, float]:
    """FLOP/s of the best of a few matrix products, by type."""
    import torch

    found = {}
    for name in ("float32", "bfloat16"):
        matrix = torch.randn(size, size, device=kind).to(getattr(torch, name))
        best = float("inf")
        for _ in range(4):
            started = time.perf_counter()
            float((matrix @ matrix)[0, 0])  # waits for the device
            best = min(best, time.perf_counter() - started)
        found[name] = 2 * size**3 / best
    return found

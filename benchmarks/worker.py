"""One tool in a process of its own: reads jobs as JSON lines, answers with seconds and memory.

    python worker.py TOOL.py
    {"prepare": job}            -> {"ready": true}                     everything is loaded; one run has warmed it up
    {"run": true}               -> {"cpu": s, "wall": s, "peak": bytes}
    {"save": path}              -> {"saved": path}                     results of one run, for the equality check

Runs in foreign interpreters too: imports nothing but the standard library, numpy and torch.
`peak` is the highest resident memory of the run beyond what the process held before its first run.
"""

import ctypes
import gc
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

THREADS = os.environ.get("OMP_NUM_THREADS", "1")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    import torch

    torch.set_num_threads(int(THREADS))
    spec = importlib.util.spec_from_file_location("tool", sys.argv[1])
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    state: dict[str, Any] = {}
    for line in sys.stdin:
        try:
            answers.write(json.dumps(answer(tool, state, json.loads(line))) + "\n")
        except Exception:
            answers.write(json.dumps({"error": traceback.format_exc()}) + "\n")


def answer(tool: Any, state: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """What one request comes to; `state` keeps the prepared job between requests."""
    if "prepare" in request:
        state["run"] = tool.prepare(request["prepare"])
        compact()
        state["before"] = memory()[0]
        state["results"] = state["run"]()
        return {"ready": True}
    if "save" in request:
        import numpy as np

        np.savez(request["save"], **state.pop("results"))
        return {"saved": request["save"]}
    return measure(state["run"], state["before"])


def measure(run: Callable[[], object], before: int) -> dict[str, float]:
    """CPU and wall seconds of one run, and its peak memory over `before`."""
    compact()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"cpu": cpu, "wall": wall, "peak": memory()[1] - before}


def compact() -> None:
    """Give freed memory back, so that one run's heap is not counted as the next one's base."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def memory() -> tuple[int, int]:
    """Resident bytes now, and at their highest since the last reset."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines["VmRSS"].split()[0]) * 1024, int(lines["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    main()

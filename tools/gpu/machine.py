"""The device: what it is, how long work on it takes, how much of its memory, and whether it is still usable."""

import gc
import importlib.util
import inspect
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from tools.gpu.rows import NotHere
from tools.gpu.settings import Settings

PACKAGES = ("torch", "transformers", "sentence-transformers", "peft", "accelerate", "flash-attn", "numpy", "datasets")
_spent = False  # this process has chosen a kernel for good


def prepare(settings: Settings) -> None:
    """Set up this process."""
    from llm2enc.model import quiet

    quiet()
    torch.set_num_threads(max(1, min(8, (os.cpu_count() or 2) // 2)) if not settings.rehearse else 1)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device; --rehearse runs everything on a CPU, with tiny shapes")


def facts(settings: Settings) -> dict[str, Any]:
    """What there is to know of this machine."""
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(0) if settings.device == "cuda" else "CPU, a rehearsal with tiny shapes",
        "python": platform.python_version(), "cores": os.cpu_count(), "system": platform.platform(),
        **{name: installed(name) for name in PACKAGES},
        "varlen_attn takes": ", ".join(_varlen_parameters()) or "not there",
    }  # fmt: skip
    if settings.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["device memory, GiB"] = round(properties.total_memory / 2**30, 1)
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["CUDA of torch"] = torch.version.cuda
    return found


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not there"


def _varlen_parameters() -> list[str]:
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return []
    from torch.nn.attention.varlen import varlen_attn

    return list(inspect.signature(varlen_attn).parameters)


def hide(module: str) -> None:
    """Make a library look as if it was not installed, for the rest of this process."""
    sys.modules[module] = None  # type: ignore[assignment]


def spend() -> None:
    """Say that other parts need a fresh process: llm2enc looks once for the kernels that are there."""
    global _spent
    _spent = True


def is_spent(settings: Settings) -> bool:
    """Whether other parts need a fresh process: it was said, or the device answers with an error."""
    try:
        synchronize(settings.device)
    except Exception:  # a kernel that failed takes the context of its process with it
        return True
    return _spent


def clean_up() -> None:
    """Give the memory of the last part back."""
    gc.collect()
    if torch.cuda.is_available():
        try:
            torch.cuda.empty_cache()
        except Exception:  # `is_spent` sees it too
            return


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], Any], device: str) -> float:
    """How long one call takes, to the end of what it starts on the device."""
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started


@dataclass
class Memory:
    """Bytes on the device; None on a CPU, whose allocator keeps no peak."""

    before: int | None = None
    peak: int | None = None

    @property
    def extra(self) -> int | None:
        """What was needed beyond what was there."""
        return None if self.peak is None or self.before is None else self.peak - self.before


@contextmanager
def watched_memory(device: str) -> Iterator[Memory]:
    """The allocator's peak while this lasts."""
    memory = Memory()
    if device == "cuda":
        clean_up()
        synchronize(device)
        torch.cuda.reset_peak_memory_stats()
        memory.before = torch.cuda.memory_allocated()
    yield memory
    if device == "cuda":
        synchronize(device)
        memory.peak = torch.cuda.max_memory_allocated()


def allocated(device: str) -> int:
    """Bytes that are in use now."""
    clean_up()
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def gib(size: int | None) -> float | str:
    return "not measured on a CPU" if size is None else round(size / 2**30, 3)


def need_flash() -> None:
    if importlib.util.find_spec("flash_attn") is None:
        raise NotHere("flash-attn is not installed")

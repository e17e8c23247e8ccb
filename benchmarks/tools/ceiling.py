"""The ceiling: nothing but the matrix products of a model's own shapes, at a batch size where they run best."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


def prepare(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Products of (rows, in) by (in, out) for each [in, out, count] of `job["products"]`."""
    # Where 16-bit products are emulated, the machine's ceiling is that of float32.
    emulated = job["dtype"] == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    dtype = torch.float32 if emulated else getattr(torch, job["dtype"])
    products = [
        (torch.randn(job["rows"], width).to(dtype), torch.randn(out, width).to(dtype), count)
        for width, out, count in job["products"]
    ]

    @torch.no_grad()
    def run() -> dict[str, Any]:
        for inputs, weight, count in products:
            for _ in range(count):
                F.linear(inputs, weight)
        return {}

    return run

"""What tools share. They run in foreign interpreters, beside worker.py: the standard library, numpy and torch only."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def read(path: str) -> list[Any]:
    """The rows of a JSON file."""
    return json.loads(Path(path).read_text())


def plain(name: str) -> str:
    """A parameter's name without the prefixes and suffixes that libraries put around it."""
    name = re.search(r"(layers\.\d+\..*|embed_tokens\..*|norm\.weight)$", name)[0]
    return re.sub(r"\.default\.weight$", "", name)


def fill_adapter(parameters: Iterable[tuple[str, torch.Tensor]], weights: str) -> None:
    """Give LoRA factors the values of a file; in their first state one factor is zero, and hides the other's gradient."""
    given = np.load(weights)
    with torch.no_grad():
        for name, parameter in parameters:
            if "lora_" in name:
                parameter.copy_(torch.from_numpy(given[plain(name)]))


def gradients(parameters: Iterable[tuple[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    """The gradient of every parameter that trains, by `gradient:` and its plain name."""
    return {f"gradient:{plain(name)}": p.grad.numpy() for name, p in parameters if p.requires_grad}

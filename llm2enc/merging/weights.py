"""The weights of a directory, tensor by tensor: no model is ever in memory for the sake of its weights."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm2enc.errors import InputError, explained
from llm2enc.model import tensor_shapes
from llm2enc.storage import check_name

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class Weights:
    """The tensors of a directory, read one by one from one safetensors file or from shards."""

    def __init__(self, folder: Path):
        with explained(f"the weights of {folder}", "get its files again", (ValueError, KeyError, SafetensorError)):
            if (folder / INDEX).is_file():
                self.files = dict(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"])
            elif (folder / WEIGHTS).is_file():
                self.files = dict.fromkeys(tensor_shapes(folder / WEIGHTS), WEIGHTS)
            else:
                raise InputError(f"{folder} holds no {WEIGHTS} and no {INDEX}; weights are read from safetensors only")
        self.folder = folder
        for file in set(self.files.values()):
            check_name(file, f"a file of {folder / INDEX}")
            if (folder / file).is_file():
                tensor_shapes(folder / file)  # which refuses one that was cut, with its sizes

    @cached_property
    def headers(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and storage type of each tensor; no weight is read."""
        found = {}
        for name in self.files:
            part = self._file(name).get_slice(name)
            found[name] = (tuple(part.get_shape()), part.get_dtype())
        return found

    def __getitem__(self, name: str) -> Tensor:
        return self._file(name).get_tensor(name)

    def _file(self, name: str) -> Any:
        file = self.files[name]
        if file not in self._open:
            self._open[file] = safe_open(self.folder / file, "pt")
        return self._open[file]

    @cached_property
    def _open(self) -> dict[str, Any]:
        return {}


def fingerprint(weights: Weights, names: dict[str, str], stored: Weights) -> str:
    """What `Backbone.fingerprint` gives for these weights once they are loaded in the storage types of `stored`.

    names  of the decoder's tensors, as `stored` has them -> as `weights` has them
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        tensor = weights[names[name]].to(stored[name].dtype)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

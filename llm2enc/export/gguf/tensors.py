"""Weights, one at a time: the name and the order of rows that llama.cpp wants, in the type of the file.

Nothing exists twice: of each weight, what is written is made when its turn has come.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2enc.errors import NoGGUF
from llm2enc.export.gguf import rope
from llm2enc.export.gguf.families import FAMILIES, Family, head_width

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

HALF_LIMIT = 65504.0  # the largest float16


@dataclass(frozen=True)
class Item:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]  # float32
    largest: float = 0.0  # absolute value


def items(decoder: "PreTrainedModel", arch: str, max_tokens: int) -> Iterator[Item]:
    """Every tensor, in the model's order. NoGGUF if llama.cpp has no place for one."""
    import gguf

    family = FAMILIES[decoder.config.model_type]
    known = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[arch], decoder.config.num_hidden_layers)
    for name, weight in decoder.state_dict().items():
        theirs = names.get_name(family.prefix + name, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise NoGGUF(f"llama.cpp has no place for {name} in {arch}; export to ONNX instead")
        largest = float(weight.detach().abs().max()) if weight.ndim > 1 else 0.0
        yield Item(theirs, tuple(weight.shape), _arranger(weight, theirs, family, decoder.config), largest)
    for name, factors in rope.factor_tensors(decoder, arch, max_tokens).items():
        yield Item(name, factors.shape, lambda factors=factors: factors)


def add(writer: "GGUFWriter", tensors: list[Item], file_type: str) -> list[Callable[[], np.ndarray]]:
    """Announce the tensors; what is returned makes their bytes, in order."""
    makers = []
    for item in tensors:
        kind, size, shape = _stored(item, file_type)
        writer.add_tensor_info(item.name, shape, np.dtype(_NUMPY[kind.name]), size, raw_dtype=kind)
        makers.append(_encoder(item, kind))
    return makers


def head(writer: "GGUFWriter", tokens: int, width: int) -> Callable[[], np.ndarray]:
    """Announce a head of zeros in the smallest common type, for architectures that don't load without one.

    Embeddings don't depend on it; the logits that nobody asks for are zero.
    """
    import gguf

    kind = gguf.GGMLQuantizationType.Q4_0 if width % 32 == 0 else gguf.GGMLQuantizationType.F16
    shape = (tokens, width // 32 * 18) if kind.name == "Q4_0" else (tokens, width)  # 32 weights in 18 bytes
    dtype = np.dtype(_NUMPY[kind.name])
    writer.add_tensor_info("output.weight", shape, dtype, int(np.prod(shape)) * dtype.itemsize, raw_dtype=kind)
    return lambda: np.zeros(shape, dtype)


_NUMPY = {"F32": "float32", "F16": "float16", "Q8_0": "uint8", "Q4_0": "uint8"}


def _stored(item: Item, file_type: str) -> tuple[Any, int, tuple[int, ...]]:
    """Type, bytes and shape (of bytes, if quantised) of a tensor in a file of a type.

    Vectors (norms, biases, factors) stay float32, as llama.cpp wants; so do matrices that float16 cannot hold.
    """
    import gguf

    types = gguf.GGMLQuantizationType
    count = int(np.prod(item.shape))
    if len(item.shape) == 1 or file_type == "float32" or (file_type == "float16" and item.largest > HALF_LIMIT):
        return types.F32, 4 * count, item.shape
    if file_type == "q8_0" and item.shape[-1] % 32 == 0:
        shape = gguf.quant_shape_to_byte_shape(item.shape, types.Q8_0)
        return types.Q8_0, int(np.prod(shape)), shape
    if item.largest > HALF_LIMIT:
        return types.F32, 4 * count, item.shape
    return types.F16, 2 * count, item.shape


def _encoder(item: Item, kind: Any) -> Callable[[], np.ndarray]:
    def encoded() -> np.ndarray:
        if kind.name == "Q8_0":
            from gguf.quants import quantize

            return quantize(item.make(), kind)
        return np.ascontiguousarray(item.make(), dtype=_NUMPY[kind.name])

    return encoded


def _arranger(weight: "Tensor", name: str, family: Family, config: "PretrainedConfig") -> Callable[[], np.ndarray]:
    """Makes float32 values in llama.cpp's order of rows."""

    def arranged() -> np.ndarray:
        values = weight.detach().float().cpu().numpy()
        stem = name.rsplit(".", 1)[0].split(".")[-1]
        if family.offset and stem.endswith("norm"):
            return values + np.float32(1)
        if family.interleaved and stem in ("attn_q", "attn_k"):
            return _neighbours(values, head_width(config))
        if config.model_type == "gpt_neox" and stem == "attn_qkv":
            return _by_kind(values, head_width(config))
        return values

    return arranged


def _neighbours(rows: np.ndarray, width: int) -> np.ndarray:
    """Rows of every head from (first half, second half) to pairs: 0, d/2, 1, d/2 + 1, ..."""
    halves = rows.reshape(-1, 2, width // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _by_kind(rows: np.ndarray, width: int) -> np.ndarray:
    """Rows from (head, query | key | value) to (query | key | value, head)."""
    heads = rows.reshape(-1, 3, width, *rows.shape[1:])
    return heads.swapaxes(0, 1).reshape(rows.shape)

"""Vectors in 8 bits or in 1 bit per dimension, for an index that takes 4 or 32 times less room. NumPy only.

    ranges = calibrate(encoder.encode(texts), shared=True)
    codes = quantize(vectors, "int8", ranges)         (B, D) int8
    codes = quantize(vectors, "ubinary")              (B, ceil(D / 8)) uint8, one sign per bit

Vectors are cut (Matryoshka) and normalised before they are quantised: ranges belong to one width and to one of both
states. The codes are those of sentence-transformers' `quantize_embeddings`, so that its search functions, FAISS and
usearch read them.
"""

from typing import Literal, get_args

import numpy as np

from llm2enc.errors import InputError

Quantized = Literal["int8", "uint8", "binary", "ubinary"]
Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]

_LEVELS = 255  # steps between the smallest and the largest value of a dimension


def check(precision: str, ranges: np.ndarray | None, dimensions: int) -> None:
    """ValueError if vectors of so many dimensions cannot be had in this precision with these ranges."""
    if precision not in get_args(Precision):
        raise InputError(f"precision is {precision!r}; vectors come as one of {', '.join(get_args(Precision))}")
    if precision not in ("int8", "uint8"):
        if ranges is not None:
            raise InputError(f"ranges are for int8 and uint8, and precision is {precision}; leave them out")
        return
    if ranges is None:
        raise InputError(
            f"{precision} needs the ranges of the dimensions, the same for documents and queries: encode some thousand "
            "texts in float32, and give ranges=calibrate(vectors) of llm2enc.encoding"
        )
    if np.shape(ranges) != (2, dimensions):
        raise InputError(
            f"the ranges have shape {np.shape(ranges)}, expected (2, {dimensions}), the smallest and largest value of each "
            "dimension; calibrate on vectors of this width, cut as these are"
        )
    if not (np.isfinite(ranges).all() and (ranges[0] <= ranges[1]).all()):
        raise InputError("the ranges hold nan, infinity, or a smallest value above the largest; calibrate again")


def layout(dimensions: int, precision: Precision) -> tuple[int, np.dtype]:
    """Entries of a vector of so many dimensions, and their type."""
    entries = dimensions if precision in ("float32", "int8", "uint8") else -(-dimensions // 8)
    return entries, np.dtype({"binary": "int8", "ubinary": "uint8"}.get(precision, precision))


def calibrate(vectors: np.ndarray, shared: bool = False) -> np.ndarray:
    """Ranges (2, D) float32: the smallest and the largest value of each dimension in vectors (N, D).

    A later value outside becomes the nearest code, so a thousand texts like those of the index, or more, are wanted.

    shared  one range for all dimensions, from -m to m. The codes are then the vectors on another scale, so that inner
            products of int8 codes rank as those of the vectors do. With a range each they don't: dimensions that vary
            little weigh as much as others, and such codes are to be decoded before they are compared
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) < 2:
        raise InputError(f"ranges come from two vectors (N, D) at least, got an array of shape {vectors.shape}")
    _check_finite(vectors)
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    if shared:
        high = np.full_like(high, max(-low.min(), high.max()))
        low = -high
    return np.stack([low, high]).astype(np.float32)


def quantize(vectors: np.ndarray, precision: Quantized, ranges: np.ndarray | None = None) -> np.ndarray:
    """Codes of float vectors (B, D).

    int8, uint8      (B, D): the number of the step, of 255 equal ones between the ends of the dimension's range, in
                     which the value lies; 0 to 255, or less 128. Values outside count as the end
    binary, ubinary  (B, ceil(D / 8)): bit 1 for a value above 0, the first dimension in the highest bit, the last byte
                     filled with zeros; as bytes, or less 128
    ranges           (2, D) from `calibrate`, for int8 and uint8 only
    """
    vectors = np.asarray(vectors)
    if precision not in get_args(Quantized):
        raise InputError(
            f"precision is {precision!r}; vectors are quantised to one of {', '.join(get_args(Quantized))}"
        )
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise InputError(f"expected float vectors (B, D), got {vectors.dtype} of shape {vectors.shape}")
    check(precision, ranges, vectors.shape[1])
    _check_finite(vectors)
    if ranges is None:
        codes = np.packbits(vectors > 0, axis=-1)
    else:
        low, high = np.asarray(ranges, dtype=np.float32)
        step = (high - low) / _LEVELS
        # A dimension that never varied has one code, whatever the step.
        codes = np.clip(np.floor((vectors - low) / np.where(step == 0, 1, step)), 0, _LEVELS).astype(np.uint8)
    # Less 128 in a byte is its highest bit turned over.
    return codes if precision.startswith("u") else (codes ^ 0x80).view(np.int8)


def _check_finite(vectors: np.ndarray) -> None:
    if not np.isfinite(vectors).all():
        raise InputError("the vectors hold nan or infinity, which no code stands for")

"""Quantized weights of folders, packed by code written from the schemes' definitions."""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

BF16 = ml_dtypes.bfloat16
N, K = 96, 256
Array = NDArray[Any]


def pack(codes: Array, n_bits: int, axis: int) -> Array:
    """Unsigned codes to int32 words along an axis, end to end, the lowest bits first."""
    moved = np.moveaxis(codes.astype(np.uint8), axis, -1)
    bits = np.unpackbits(moved[..., None], axis=-1, bitorder="little")[..., :n_bits]
    stream = bits.reshape(*moved.shape[:-1], -1)
    words = np.packbits(stream, axis=-1, bitorder="little").view("<i4")
    return np.ascontiguousarray(np.moveaxis(words, -1, axis))


def spread(values: Array, length: int, axis: int = -1) -> Array:
    """Values per group to values per weight."""
    return np.repeat(values, length // values.shape[axis], axis)


def random_scales(rng: np.random.Generator, shape: tuple[int, ...], kind: Any) -> Array:
    """Scales of a typical size, some of them negative."""
    return (rng.uniform(0.5, 2, shape) * rng.choice([-0.01, 0.01], shape)).astype(kind)


LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def fp4_pairs(rng: np.random.Generator, *shape: int) -> tuple[Array, Array]:
    """Bytes with two 4-bit floats each, the first in the lower half, and what they stand for."""
    packed = rng.integers(0, 256, shape).astype(np.uint8)
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(*shape[:-1], -1)
    return packed, np.where(codes & 8, -1, 1) * LEVELS[codes & 7]


def packed_int4(rng: np.random.Generator, n: int = N, k: int = K, group: int = 32) -> Any:
    """``pack-quantized`` as in Kimi-K2-Thinking: int4, groups of 32, bfloat16 scales."""
    codes = rng.integers(-8, 8, (n, k))
    scales = random_scales(rng, (n, k // group), BF16)
    tensors = {
        "weight_packed": pack(codes + 8, 4, 1),
        "weight_scale": scales,
        "weight_shape": np.array([n, k], np.int64),
    }
    return tensors, codes * spread(scales.astype(np.float64), k)


def gptq(
    rng: np.random.Generator,
    zeros: Array,
    n_bits: int = 4,
    *,
    is_v2: bool = False,
) -> tuple[dict[str, Array], Array]:
    """Codes along the input dimension (rows), zero points (G, N) packed along the output's."""
    n_groups = len(zeros)
    codes = rng.integers(0, 1 << n_bits, (K, N))
    scales = random_scales(rng, (n_groups, N), np.float16)
    stored = zeros if is_v2 else zeros - 1
    tensors = {
        "qweight": pack(codes, n_bits, 0),
        "qzeros": pack(stored, n_bits, 1),
        "scales": scales,
        "g_idx": (np.arange(K) // (K // n_groups)).astype(np.int32),
    }
    expanded = spread(zeros, K, 0), spread(scales.astype(np.float64), K, 0)
    return tensors, ((codes - expanded[0]) * expanded[1]).T

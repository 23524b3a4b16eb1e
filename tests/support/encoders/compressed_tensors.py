"""What llm-compressor's QuantizationModifier makes of weights, in NumPy.

After calculate_qparams and _quantize of compressed-tensors, each operation rounded to the model's
floats, and its packing.
"""

from typing import Any

import ml_dtypes  # gives NumPy bfloat16
import numpy as np

from tests.support.encoders.mlx import pack
from tests.support.foreign_modules import FLOATS, Array

RECIPE = "default_stage:\n  default_modifiers:\n    QuantizationModifier:\n      scheme: W4A16\n"


def config(observer: str | None = "memoryless_minmax") -> dict[str, Any]:
    weights = {"observer": observer, "type": "int"}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def _groups(x: Array, group: int | str) -> Array:
    """(N, groups, weights of each): of so many columns, by ``channel`` or ``tensor``."""
    if group == "tensor":
        return x.reshape(1, 1, -1)
    return x.reshape(len(x), -1, x.shape[1] if group == "channel" else int(group))


def _scales(grouped: Array, half: int, shrink: float, *, symmetric: bool) -> tuple[Array, Array]:
    """Scales and zero points from the range times `shrink`."""
    dtype = grouped.dtype.type
    low = np.minimum(grouped.min(-1), dtype(0)) * dtype(shrink)
    high = np.maximum(grouped.max(-1), dtype(0)) * dtype(shrink)
    if symmetric:
        scale = np.maximum(np.abs(low), np.abs(high)) / dtype(half - 0.5)
        zero = np.zeros_like(scale)
    else:
        scale = (high - low) / dtype(2 * half - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            zero = np.clip(dtype(-half) - low / scale, dtype(-half), dtype(half - 1))
        zero = np.rint(np.nan_to_num(zero.astype(np.float32))).astype(dtype)
    tiny = np.array(2.0**-7 if dtype is ml_dtypes.bfloat16 else 2.0**-10, dtype)
    return np.where(scale == 0, tiny, scale), zero


def _rounded(grouped: Array, half: int, scale: Array, zero: Array) -> Array:
    scaled = (grouped / scale[..., None]) + zero[..., None]
    return np.rint(np.clip(scaled.astype(np.float32), -half, half - 1))


def _searched(grouped: Array, half: int, *, symmetric: bool) -> tuple[Array, Array]:
    """As the mse observer: of ranges shrunk by up to 20% those with the least error."""
    best, kept = np.full(grouped.shape[:-1], np.inf), _scales(grouped, half, 1, symmetric=symmetric)
    for i in range(20):
        scale, zero = _scales(grouped, half, 1 - i / 100, symmetric=symmetric)
        codes = _rounded(grouped, half, scale, zero) - zero[..., None].astype(np.float32)
        off = codes * scale[..., None].astype(np.float32) - grouped.astype(np.float32)
        error = (np.abs(off) ** 2.4).sum(-1)
        is_better = error < best
        best = np.where(is_better, error, best)
        kept = np.where(is_better, scale, kept[0]), np.where(is_better, zero, kept[1])
    return kept


def encode(
    x: Array,
    n_bits: int = 4,
    group: int | str = 128,
    kind: str = "BF16",
    *,
    symmetric: bool = True,
    packed: bool | None = None,
    search: bool = False,
) -> dict[str, Array]:
    """The arrays of a module."""
    half = 1 << (n_bits - 1)
    grouped = _groups(x.astype(FLOATS[kind]), group)
    if search:
        scale, zero = _searched(grouped, half, symmetric=symmetric)
    else:
        scale, zero = _scales(grouped, half, 1, symmetric=symmetric)
    codes = _rounded(grouped, half, scale, zero).reshape(x.shape)
    stored_scale = scale.reshape(-1) if group == "tensor" else scale
    arrays: dict[str, Array] = {"weight_scale": stored_scale}
    if packed is None:
        packed = n_bits < 8
    if packed:
        arrays["weight_packed"] = pack((codes + half).astype(np.uint8), n_bits).view(np.int32)
        arrays["weight_shape"] = np.array(x.shape, np.int64)
    else:
        arrays["weight"] = codes.astype(np.int8)
    if not symmetric:
        whole = zero.astype(np.float32).astype(np.int64)
        if packed:
            rows = np.pad(whole + half, ((0, -len(x) % (32 // n_bits)), (0, 0)))
            arrays["weight_zero_point"] = pack(rows.T.astype(np.uint8), n_bits).view(np.int32).T
        else:
            arrays["weight_zero_point"] = whole.astype(np.int8)
    return arrays

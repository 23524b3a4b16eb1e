"""FP8 as DeepSeek, vLLM, llm-compressor, ModelOpt and transformers make it."""

from typing import Any

import ml_dtypes
import numpy as np

from recover.quants import F32Array
from tests.support.foreign_modules import FLOATS, Array, rounded

KINDS = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}


def _tiles(n: int, k: int, extent: str) -> tuple[int, int]:
    return {"block": (128, 128), "row": (1, k), "tensor": (n, k)}[extent]


def largest_of_tiles(x: F32Array, high: int, wide: int) -> F32Array:
    """The largest magnitude of each tile; those at the edges may be smaller."""
    n, k = x.shape
    padded = np.pad(np.abs(x), ((0, -n % high), (0, -k % wide)))
    return padded.reshape(-(-n // high), high, -(-k // wide), wide).max((1, 3))


def encode(
    w: Array,
    extent: str = "block",
    *,
    kind: str = "e4m3",
    arithmetic: str = "F32",
    reciprocal: bool = False,
    power_of_two: bool = False,
    seen_as: str = "BF16",
) -> dict[str, Array]:
    """The arrays of a module.

    `arithmetic` is the type of quotients and scales; with `reciprocal` the factor is rounded to it
    instead, and the scale that is stored is one over the factor (transformers).
    """
    x = rounded(w, seen_as)
    high, wide = _tiles(x.shape[0], x.shape[1], extent)
    most = np.float32(ml_dtypes.finfo(KINDS[kind]).max)
    largest: F32Array = np.maximum(largest_of_tiles(x, high, wide), np.float32(1e-12))
    if reciprocal:
        factor = rounded(most / largest, arithmetic)
        stored = np.float32(1) / factor
    else:
        stored = rounded(largest / most, arithmetic)
        if power_of_two:
            stored = np.exp2(np.ceil(np.log2(stored))).astype(np.float32)
        factor = stored
    each = factor.repeat(high, 0).repeat(wide, 1)[: x.shape[0], : x.shape[1]]
    quotient = rounded(x * each if reciprocal else x / each, arithmetic)
    codes = np.clip(quotient, -most, most).astype(KINDS[kind])
    scale: Any = stored if reciprocal or arithmetic == "F32" else stored.astype(FLOATS[arithmetic])
    leaf = "weight_scale_inv" if extent == "block" else "weight_scale"
    return {"weight": codes, leaf: scale.reshape(()) if extent == "tensor" else scale}

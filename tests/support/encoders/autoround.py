"""Codes as AutoRound chooses them, with random moves in place of tuned ones, in GPTQ's packing."""

from typing import Any

import numpy as np

from tests.support.encoders.gptq import Codes, pack
from tests.support.foreign_modules import Array, rounded


def config(iters: int | None = None, **more: Any) -> dict[str, Any]:
    """As it is written; what has the default value is left out."""
    found = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", **more}
    return found if iters is None else {**found, "iters": iters}


def encode(
    x: Array,
    n_bits: int = 4,
    group: int = 128,
    *,
    kind: str = "BF16",
    reach: float = 0.5025,
    symmetric: bool = True,
    shrink: float = 1.0,
    v2: bool = False,
    seed: int = 0,
) -> dict[str, Array]:
    """The arrays of a module.

    Weights are moved by up to `reach` steps before they are rounded, most of them little, as
    measured with signed gradient descent. Ranges are taken times `shrink`.
    """
    rng = np.random.default_rng(seed)
    seen = rounded(x, kind).reshape(len(x), -1, group)
    low = np.minimum(seen.min(-1), 0) * np.float32(shrink)
    high = np.maximum(seen.max(-1), 0) * np.float32(shrink)
    half, most = 1 << (n_bits - 1), (1 << n_bits) - 1
    if symmetric:
        scale = np.where(high < -low, -low, -high) / half
        zero = np.full(scale.shape, half)
    else:
        scale = (high - low) / most
    scale = scale.astype(np.float16).astype(np.float32)
    tiny = np.float32(np.float16(1e-5))
    scale = np.where(scale < 0, np.minimum(scale, -tiny), np.maximum(scale, tiny))
    if not symmetric:
        zero = np.clip(np.rint(-low / scale), 0, most)
    moves = np.clip(rng.laplace(0, 0.08, seen.shape), -1, 1) if reach else np.zeros(seen.shape)
    moves = np.clip(moves * (reach / 0.5025), -reach, reach).astype(np.float32)
    codes = np.rint(seen / scale[..., None] + moves) + zero[..., None]
    codes = np.clip(codes, 0, most).astype(np.int64).reshape(x.shape)
    groups = np.arange(x.shape[1]) // group
    # a zero point of 0 cannot be stored less one
    stored = np.maximum(zero, 0 if v2 else 1).astype(np.int64)
    return pack(Codes(codes, scale, stored, groups), n_bits, v2=v2)

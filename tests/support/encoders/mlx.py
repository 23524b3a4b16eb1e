"""MLX's affine quantization in NumPy, after mlx/backend/cpu/quantized.cpp."""

import numpy as np

from tests.support.foreign_modules import FLOATS, Array


def pack(codes: Array, n_bits: int) -> Array:
    """Codes (N, K) as a stream of bits, the first in the lowest ones, in uint32 words."""
    bits = (codes[..., None].astype(np.uint8) >> np.arange(n_bits, dtype=np.uint8)) & np.uint8(1)
    stream = np.packbits(bits.reshape(len(codes), -1), axis=1, bitorder="little")
    return stream.view("<u4").astype(np.uint32)


def encode(x: Array, n_bits: int = 4, group: int = 64, kind: str = "BF16") -> dict[str, Array]:
    """Weights (N, K), which are rounded to `kind` before, as a module's arrays."""
    f32 = np.float32
    n = f32((1 << n_bits) - 1)
    grouped = x.astype(FLOATS[kind]).astype(f32).reshape(len(x), -1, group)
    low, high = grouped.min(-1), grouped.max(-1)
    is_low = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / n, f32(1e-7))
    scale = np.where(is_low, scale, -scale)
    edge = np.where(is_low, low, high)
    q0 = np.rint(edge / scale)
    scale = np.where(q0 != 0, edge / np.where(q0 == 0, f32(1), q0), scale)
    bias = np.where(q0 != 0, edge, f32(0))
    codes = np.clip(np.rint((grouped - bias[..., None]) / scale[..., None]), 0, n)
    return {
        "weight": pack(codes.reshape(x.shape), n_bits),
        "scales": scale.astype(FLOATS[kind]),
        "biases": bias.astype(FLOATS[kind]),
    }


def encode_as_early(
    x: Array, n_bits: int = 4, group: int = 64, kind: str = "BF16"
) -> dict[str, Array]:
    """As MLX's first versions: each operation rounded, the least weight as the bias."""
    dtype = FLOATS[kind]
    grouped = x.astype(dtype).reshape(len(x), -1, group)
    low, high = grouped.min(-1), grouped.max(-1)
    scale = (high - low) / np.array((1 << n_bits) - 1, dtype)
    codes = np.rint(((grouped - low[..., None]) / scale[..., None]).astype(np.float32))
    return {"weight": pack(codes.reshape(x.shape), n_bits), "scales": scale, "biases": low}

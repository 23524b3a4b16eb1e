"""NVFP4 and MXFP4 as ModelOpt and compressed-tensors make them."""

import ml_dtypes
import numpy as np

from tests.support.foreign_modules import Array, rounded

_E2M1 = ml_dtypes.float4_e2m1fn
_E4M3 = ml_dtypes.float8_e4m3fn


def _packed(quotients: Array, shape: tuple[int, ...]) -> Array:
    """Nearest codes, two a byte, the first in the lower half."""
    codes = np.clip(quotients, -6, 6).astype(_E2M1).view(np.uint8).reshape(shape) & 15
    return codes[:, 0::2] | codes[:, 1::2] << 4


def encode_nvfp4(
    w: Array,
    *,
    by: str = "modelopt",
    arithmetic: str = "F32",
    seen_as: str = "BF16",
    shrink: float = 1,
) -> dict[str, Array]:
    """The arrays of a module; scales are `shrink` times those that fit the largest weights."""
    x = rounded(w, seen_as).reshape(len(w), -1, 16)
    f32 = np.float32
    common = np.abs(x).max() * f32(max(1, shrink)) / f32(6 * 448)
    largest = rounded(np.abs(x).max(2) / f32(6), arithmetic) * f32(shrink)
    scale = (largest / common).astype(_E4M3)
    scale = np.where(scale == 0, _E4M3(1), scale)
    each = scale.astype(f32) * common
    packed = _packed(rounded(x / each[:, :, None], arithmetic), w.shape)
    if by == "modelopt":
        return {"weight": packed, "weight_scale": scale, "weight_scale_2": common}
    return {
        "weight_packed": packed,
        "weight_scale": scale,
        "weight_global_scale": np.array([1 / common], f32),
    }


def encode_mxfp4(w: Array, *, how: str = "floor", seen_as: str = "BF16") -> dict[str, Array]:
    """The arrays of a module; the exponent is that of the largest weight, less 2.

    It is rounded down (OCP), to even (compressed-tensors), or so that nothing clips ("up").
    """
    x = rounded(w, seen_as).reshape(len(w), -1, 32)
    largest = np.maximum(np.abs(x).max(2), np.float32(2.0**-120))
    if how == "up":
        exponent = np.ceil(np.log2(largest / 6))
    else:
        exponent = np.floor(np.log2(largest * (8 / 7 if how == "even" else 1))) - 2
    packed = _packed(x / np.exp2(exponent)[:, :, None], w.shape)
    return {"weight_packed": packed, "weight_scale": (exponent + 127).astype(np.uint8)}

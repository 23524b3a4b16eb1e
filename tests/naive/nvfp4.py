"""NVFP4 with two levels of scales, as NVIDIA's ModelOpt makes it; knows nothing of the package."""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

F32Array = NDArray[np.float32]

_MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_MIDDLES = (_MAGNITUDES[1:] + _MAGNITUDES[:-1]) / 2
_LARGEST = np.float32(448)


def side_scale(x: F32Array) -> np.float32:
    """One number per matrix: its largest weight gets the largest scale and the largest code."""
    return np.float32(np.abs(x).max() / np.float32(6 * 448))


def encode(x: F32Array, scale: np.float32) -> NDArray[np.uint8]:
    """Rows of weights (n_rows, ne0) to ggml's blocks (n_rows, ne0 / 64 * 36)."""
    blocks = x.reshape(-1, 16)
    wanted = np.abs(blocks).max(1) / np.float32(6) / scale
    stored = np.minimum(wanted, _LARGEST).astype(ml_dtypes.float8_e4m3fn)
    step = (stored.astype(np.float32) * scale)[:, None]
    ratio = np.divide(blocks, step, out=np.zeros_like(blocks), where=step > 0)
    codes = np.searchsorted(_MIDDLES, np.abs(ratio)).astype(np.uint8)
    codes |= np.where(ratio < 0, 8, 0).astype(np.uint8)
    nibbles = codes[:, :8] | codes[:, 8:] << 4
    superblocks = np.concatenate(
        [stored.view(np.uint8).reshape(-1, 4), nibbles.reshape(-1, 32)], axis=1
    )
    return superblocks.reshape(x.shape[0], -1)


def decode(raw: NDArray[np.uint8], scale: np.float32) -> F32Array:
    """The weights (n_rows, ne0): code times scale, times the side scale in one rounding."""
    superblocks = raw.reshape(-1, 36)
    scales = superblocks[:, :4].copy().view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    nibbles = superblocks[:, 4:].reshape(-1, 4, 8)
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=2)
    values = np.where(codes & 8, -1, 1) * _MAGNITUDES[codes & 7]
    products: F32Array = scales[:, :, None] * values.astype(np.float32) * scale
    return products.reshape(raw.shape[0], -1)

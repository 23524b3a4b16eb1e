"""NVFP4: superblocks of 64 weights in 4 sub-blocks with scales of 8 bits, 4-bit floats.

Block: ``d`` 4 bytes (UE4M3, one per sub-block), ``qs`` 32 bytes: 8 per sub-block, whose low nibbles
are its first 8 weights.
"""

import numpy as np

from recover._compiled.across import largest_lane
from recover._compiled.float16 import f32_bits
from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import load
from recover.quants._declared import coded, layout
from recover.quants._fp4 import LEVELS, encode_fp4, nearest_cells, renumber
from recover.quants.base import F32Array, ScalarType, U8Array

_LARGEST = 0x7E  # 448 as UE4M3; the byte above is no number, which is decoded to 0


def _scales() -> F32Array:
    """Half of the number that each byte stands for; see `ggml_ue4m3_to_fp32`."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    significand = np.where(exponent == 0, mantissa, mantissa + 8).astype(np.float32)
    scales = np.ldexp(significand, np.maximum(exponent, 1) - 11)
    scales[_LARGEST + 1] = 0
    return scales


_SCALES = _scales()


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_nvfp4`."""
    for g in range(raw.size // 9):
        block, sub = 36 * (g // 4), g % 4
        scale[g] = _SCALES[raw[block + sub]]
        offset[g] = -0.0
        for j in range(8):
            q = raw[block + 4 + 8 * sub + j]
            codes[16 * g + j] = q & np.uint8(15)
            codes[16 * g + 8 + j] = q >> np.uint8(4)
    renumber(codes)


@inner
def _to_ue4m3(value: np.float32) -> np.uint8:
    """The nearest UE4M3 number, halves up, but from 248 on the largest one.

    Mirrors `ggml_fp32_to_ue4m3`.
    """
    if not value > 0:
        return np.uint8(0)
    if value < np.float32(2.0**-6):
        return np.uint8(min(int(value * np.float32(512) + np.float32(0.5)), 7))
    rounded = (np.int64(f32_bits(value) >> np.uint32(19)) + 1 >> 1) - (120 << 3)
    return np.uint8(rounded if rounded < 15 << 3 else _LARGEST)


@kernel
def _quantize(x: F32Array, _imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_row_nvfp4_ref`; an importance matrix changes nothing."""
    x = x.reshape(x.size)
    codes = np.empty(16, np.uint8)
    for g in range(x.size // 16):
        block, sub = 36 * (g // 4), g % 4
        d = _to_ue4m3(largest_lane(abs(load(x, 16 * g))) / np.float32(6))
        raw[block + sub] = d
        encode_fp4(x[16 * g : 16 * g + 16], _SCALES[d], codes)
        for j in range(8):
            raw[block + 4 + 8 * sub + j] = codes[j] | (codes[j + 8] << np.uint8(4))


# `quantize_row_nvfp4_ref`: nearest level for the stored scale. However the scale is rounded, no
# weight reaches 19 d, so that distances are told apart; but the largest scale is also that of
# weights of any size.
NVFP4 = ScalarType(
    **layout("NVFP4", type_id=40, block_size=64, type_size=36),
    **coded(LEVELS, nearest_cells()),
    scale_limit=float(_SCALES[_LARGEST]),
    scales_are_coarse=True,
    # Half of the smallest scale times 6; others may say twice as much of such weights.
    largest_lost=2 * 6 / 1024,
    unpack=_unpack,
    quantize=_quantize,
    file_types={39: "NVFP4"},
    is_native=True,
    largest_beside=6 * 240,
    noise=0.2866,
    relative_mse=0.009,
)

"""The 12 bytes in which Q4_K and Q5_K store eight 6-bit scales and eight 6-bit minima."""

import numpy as np

from recover._compiled.float16 import read_f16, write_f16
from recover._compiled.jit import inner
from recover.quants._k_affine import Batch
from recover.quants.base import F32Array, U8Array


@inner
def unpack_scales(header: U8Array, scale: F32Array, offset: F32Array) -> None:
    """``d``, ``dmin`` and 12 bytes of scales to 16 scales and offsets; see `get_scale_min_k4`."""
    d = read_f16(header, 0)
    dmin = read_f16(header, 2)
    packed = header[4:16]
    for j in range(8):
        if j < 4:
            sc = packed[j] & 63
            m = packed[j + 4] & 63
        else:
            sc = (packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4)
            m = (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4)
        for g in range(2 * j, 2 * j + 2):
            scale[g] = d * np.float32(sc)
            offset[g] = -(dmin * np.float32(m))


@inner
def pack_scales(batch: Batch, block: int, limit: int, header: U8Array) -> None:
    """``d``, ``dmin`` and 12 bytes of a superblock's scales and minima, clipped to `limit`.

    Mirrors the middle of `quantize_row_q4_K_ref`.
    """
    write_f16(header, 0, batch.d[block])
    write_f16(header, 2, batch.dmin[block])
    packed = header[4:16]
    for j in range(8):
        scale = np.uint8(min(batch.scale_codes[16 * j + block], limit))
        minimum = np.uint8(min(batch.min_codes[16 * j + block], limit))
        if j < 4:
            packed[j] = scale
            packed[j + 4] = minimum
        else:
            packed[j + 4] = (scale & 15) | ((minimum & 15) << 4)
            packed[j - 4] |= (scale >> 4) << 6
            packed[j] |= (minimum >> 4) << 6


@inner
def pack_pairs(codes: U8Array, qs: U8Array) -> None:
    """256 codes of 2 bits to 64 bytes, as Q2_K and Q3_K store them."""
    two, four, six = np.uint8(2), np.uint8(4), np.uint8(6)
    for half in range(2):
        q = codes[128 * half : 128 * half + 128]
        for i in range(32):
            low = q[i] | (q[i + 32] << two)
            qs[32 * half + i] = low | (q[i + 64] << four) | (q[i + 96] << six)

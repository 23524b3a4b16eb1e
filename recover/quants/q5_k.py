"""Q5_K: as Q4_K, with 5-bit codes.

Block: ``d`` f16, ``dmin`` f16, ``scales`` 12 bytes, ``qh`` 32 bytes (fifth bits, sub-block k in bit
k), ``qs`` 128 bytes.
"""

import numpy as np

from recover._compiled.jit import kernel
from recover._compiled.lanes import load_bytes, store_bytes
from recover.quants._k_affine import BATCH, encode_superblock, new_batch, search_batch
from recover.quants._k_scales import pack_scales, unpack_scales
from recover.quants._marks import marks_of_packed_scales
from recover.quants._search import Steps
from recover.quants.base import (
    F32Array,
    Reencoding,
    ScalarType,
    U8Array,
    integer_levels,
    rounding_cells,
)


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q5_K`."""
    for b in range(raw.size // 176):
        block = raw[176 * b : 176 * b + 176]
        unpack_scales(block[:16], scale[16 * b : 16 * b + 16], offset[16 * b : 16 * b + 16])
        for j in range(4):
            for i in range(0, 32, 16):
                q = load_bytes(block, 48 + 32 * j + i)
                fifths = load_bytes(block, 16 + i) >> (2 * j)
                store_bytes(codes, 256 * b + 64 * j + i, (q & 15) | ((fifths & 1) << 4))
                store_bytes(codes, 256 * b + 64 * j + 32 + i, (q >> 4) | ((fifths & 2) << 3))


_STEPS = Steps(32, np.float32(-0.5), np.float32(0.1), 15, False)
_WEIGHTED_STEPS = Steps(32, np.float32(-0.9), np.float32(0.05), 36, False)


@kernel
def pack_codes(codes: U8Array, block: U8Array) -> None:
    """256 codes to the fifth bits and nibbles of a block."""
    qh, qs = block[16:48], block[48:176]
    one, fifteen, four = np.uint8(1), np.uint8(15), np.uint8(4)
    qh[:] = 0
    for j in range(4):
        for i in range(32):
            low, high = codes[64 * j + i], codes[64 * j + 32 + i]
            qs[32 * j + i] = (low & fifteen) | (high << four)
            qh[i] |= ((low >> four) | ((high >> four) << one)) << np.uint8(2 * j)


@kernel
def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_q5_K`."""
    x = x.reshape(x.size)
    batch = new_batch()
    scale, offset = np.empty(16, np.float32), np.empty(16, np.float32)
    codes = np.empty(256, np.uint8)
    steps = _WEIGHTED_STEPS if imatrix.size else _STEPS
    for start in range(0, x.size, BATCH):
        weights = x[start : start + BATCH]
        search_batch(weights, imatrix, start, 32, steps, batch)
        for b in range(weights.size // 256):
            block = raw[176 * (start // 256 + b) :][:176]
            pack_scales(batch, b, 63, block)
            unpack_scales(block[:16], scale, offset)
            values = weights[256 * b : 256 * b + 256]
            encode_superblock(values, scale, offset, batch.found, 8 * b, 32, 31, codes)
            pack_codes(codes, block)


# `quantize_row_q5_K`: code = nearest_int((x + dm) / d) with the stored d and dm, clipped to 0..31.
_LOWER, _UPPER = rounding_cells(32)

Q5_K = ScalarType(
    name="Q5_K",
    type_id=13,
    block_size=256,
    type_size=176,
    levels=integer_levels(),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    unpack=_unpack,
    quantize=_quantize,
    file_type=17,
    file_types={16: "Q5_K_S", 17: "Q5_K_M"},
    fallback="Q5_1",
    marks=marks_of_packed_scales,
    reencoding=Reencoding(slope=0.9, margin=0.05, largest_level=63 * 31 / 2, weighted=0.1),
    noise=0.0712,
    relative_mse=0.0013,
)

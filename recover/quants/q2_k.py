"""Q2_K: superblocks of 256 weights in 16 sub-blocks with 4-bit scales and minima, 2-bit codes.

Block: ``scales`` 16 bytes (scale in the low nibble, minimum in the high one), ``qs`` 64 bytes,
``d`` f16, ``dmin`` f16.
"""

import numpy as np

from recover._compiled.float16 import read_f16, write_f16
from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import load_bytes, store, store_bytes, to_f32
from recover.quants._declared import layout, rounded
from recover.quants._k_affine import BATCH, Batch, encode_superblock, new_batch, search_batch
from recover.quants._k_scales import pack_pairs
from recover.quants._marks import Marks, f16_at
from recover.quants._search import Steps
from recover.quants._sub_blocks import SubBlocks, marks_of_minima
from recover.quants.base import F32Array, Reencoding, ScalarType, U8Array


@inner
def _unpack_scales(block: U8Array, scale: F32Array, offset: F32Array) -> None:
    d = read_f16(block, 80)
    dmin = read_f16(block, 82)
    codes = load_bytes(block, 0)
    store(scale, 0, to_f32(codes & 15) * d)
    store(offset, 0, -(to_f32(codes >> 4) * dmin))


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q2_K`."""
    for b in range(raw.size // 84):
        block = raw[84 * b : 84 * b + 84]
        _unpack_scales(block, scale[16 * b : 16 * b + 16], offset[16 * b : 16 * b + 16])
        for half in range(2):
            for j in range(4):
                for i in range(0, 32, 16):
                    q = load_bytes(block, 16 + 32 * half + i) >> (2 * j)
                    store_bytes(codes, 256 * b + 128 * half + 32 * j + i, q & 3)


_STEPS = Steps(4, np.float32(-0.5), np.float32(0.1), 15, True)
_WEIGHTED_STEPS = Steps(4, np.float32(-0.9), np.float32(0.05), 36, False)


@inner
def _pack_scales(batch: Batch, b: int, block: U8Array) -> None:
    for g in range(16):
        block[g] = batch.scale_codes[16 * g + b] | (batch.min_codes[16 * g + b] << 4)
    write_f16(block, 80, batch.d[b])
    write_f16(block, 82, batch.dmin[b])


@kernel
def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_q2_K`."""
    x = x.reshape(x.size)
    batch = new_batch()
    scale, offset = np.empty(16, np.float32), np.empty(16, np.float32)
    codes = np.empty(256, np.uint8)
    steps = _WEIGHTED_STEPS if imatrix.size else _STEPS
    for start in range(0, x.size, BATCH):
        weights = x[start : start + BATCH]
        search_batch(weights, imatrix, start, 16, steps, batch)
        for b in range(weights.size // 256):
            block = raw[84 * (start // 256 + b) :][:84]
            _pack_scales(batch, b, block)
            _unpack_scales(block, scale, offset)
            values = weights[256 * b : 256 * b + 256]
            encode_superblock(values, scale, offset, batch.found, 16 * b, 16, 3, codes)
            pack_pairs(codes, block[16:80])


def _sub_blocks(blocks: U8Array) -> SubBlocks:
    """See `recover.quants.SubBlocks`."""
    pairs = blocks[:, :16]
    return SubBlocks(f16_at(blocks, 80), f16_at(blocks, 82), pairs & 15, pairs >> 4)


def _marks(blocks: U8Array) -> Marks:
    """`quantize_row_q2_K_ref`: d = max_scale / 15, dmin = max_min / 15."""
    return marks_of_minima(_sub_blocks(blocks), 15)


# `quantize_row_q2_K`: code = nearest_int((x + dm) / d) with the stored d and dm, clipped to 0..3.
Q2_K = ScalarType(
    **layout("Q2_K", type_id=10, block_size=256, type_size=84),
    **rounded(4),
    unpack=_unpack,
    quantize=_quantize,
    file_type=10,
    file_types={10: "Q2_K", 21: "Q2_K_S"},
    fallback="Q4_0",
    sub_blocks=_sub_blocks,
    marks=_marks,
    reencoding=Reencoding(slope=12.0, margin=0.04, largest_level=15 * 3),
    scale_steps=15,
    d_at=80,
    lost_spread=0.5,
    noise=0.0659,
    relative_mse=0.088,
)

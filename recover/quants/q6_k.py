"""Q6_K: superblocks of 256 weights, 16 sub-blocks with signed 8-bit scales, 6-bit codes around 0.

Block: ``ql`` 128 bytes (low four bits), ``qh`` 64 bytes (high two bits), ``scales`` 16 signed
bytes, ``d`` f16.
"""

import numpy as np

from recover._compiled.float16 import read_f16, write_f16
from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import load, load_bytes, splat, store, store_bytes, to_f32
from recover.quants._declared import layout, rounded
from recover.quants._marks import Marks, f16_at
from recover.quants._search import (
    BASE,
    FACTOR,
    SCALE,
    SMALLEST,
    encode,
    encode_found,
    largest_magnitude,
    make_qx_quants,
    nearest,
    transpose,
)
from recover.quants._sub_blocks import SubBlocks, marks_of_scales, without_minima
from recover.quants.base import F32Array, Reencoding, ScalarType, U8Array


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q6_K`."""
    for b in range(raw.size // 210):
        block = raw[210 * b : 210 * b + 210]
        d = read_f16(block, 208)
        signed = (load_bytes(block, 192) ^ 128) - 128
        store(scale, 16 * b, to_f32(signed) * d)
        store(offset, 16 * b, splat(np.float32(-0.0)))
        for half in range(2):
            for j in range(4):
                for i in range(0, 32, 16):
                    low = load_bytes(block, 64 * half + 32 * (j % 2) + i) >> (4 * (j // 2))
                    high = load_bytes(block, 128 + 32 * half + i) >> (2 * j)
                    q = (low & 15) | ((high & 3) << 4)
                    store_bytes(codes, 256 * b + 128 * half + 32 * j + i, q)


@inner
def _search(x: F32Array, importance: F32Array, lanes: F32Array, found: F32Array) -> None:
    """Scales of the sub-blocks of a superblock; `importance` is that of its weights, if any."""
    values, weights = lanes[0], lanes[1]
    transpose(x, 0, 16, values)
    if importance.size:
        transpose(importance, 0, 16, weights)
    else:
        for i in range(0, 256, 16):
            store(weights, i, load(values, i) * load(values, i))
    make_qx_quants(values, weights, 32, found, 0)


@inner
def _pack(codes: U8Array, ql: U8Array, qh: U8Array) -> None:
    """256 codes to their low four and high two bits."""
    fifteen, two, four, six = np.uint8(15), np.uint8(2), np.uint8(4), np.uint8(6)
    for half in range(2):
        q = codes[128 * half : 128 * half + 128]
        for i in range(32):
            a, b, c, d = q[i], q[i + 32], q[i + 64], q[i + 96]
            ql[64 * half + i] = (a & fifteen) | (c << four)
            ql[64 * half + 32 + i] = (b & fifteen) | (d << four)
            high = (a >> four) | ((b >> four) << two)
            qh[32 * half + i] = high | ((c >> four) << four) | ((d >> four) << six)


@inner
def _quantize_block(x: F32Array, found: F32Array, codes: U8Array, block: U8Array) -> None:
    largest = largest_magnitude(found[SCALE])
    if abs(largest) < SMALLEST:
        block[:] = 0
        return
    factor = np.float32(-128) / largest
    write_f16(block, 208, np.float32(1) / factor)
    stored = read_f16(block, 208)
    for g in range(16):
        scale = np.int8(min(nearest(factor * found[SCALE, g]), np.int32(127)))
        block[192 + g] = np.uint8(scale)
        values, out = x[16 * g : 16 * g + 16], codes[16 * g : 16 * g + 16]
        d = stored * np.float32(scale)
        if d != 0:
            encode(values, d, np.float32(0), -32, 31, out)
        else:
            encode_found(values, found[FACTOR, g], found[BASE, g], -32, 31, out)
    _pack(codes, block[:128], block[128:192])


@kernel
def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_q6_K`."""
    x = x.reshape(x.size)
    lanes, found = np.empty((2, 256), np.float32), np.empty((4, 16), np.float32)
    codes = np.empty(256, np.uint8)
    importance = imatrix
    for b in range(x.size // 256):
        if imatrix.size:
            importance = imatrix[256 * b % imatrix.size :][:256]
        weights = x[256 * b : 256 * b + 256]
        _search(weights, importance, lanes, found)
        _quantize_block(weights, found, codes, raw[210 * b : 210 * b + 210])


def _sub_blocks(blocks: U8Array) -> SubBlocks:
    """See `recover.quants.SubBlocks`."""
    return without_minima(f16_at(blocks, 208), blocks[:, 192:208].astype(np.int8))


def _marks(blocks: U8Array) -> Marks:
    """`quantize_row_q6_K_ref`: d = max_scale / -128."""
    return marks_of_scales(_sub_blocks(blocks), -128)


# An integer scale is 0 if that of the sub-block, `sum x^2 x l / sum x^2 l^2`, is at most half the
# superblock's. A weight x has y = |x| f for the factor f of the codes l, at most 32.9 for the
# largest weight, and |l| is y rounded: so the scale is at least 0.9769 / f (of the largest weight
# with 15 that have y = l - 1/2, for any l), and no weight is beyond 32.9 / 0.9769 / 2 = 16.84
# times the superblock's scale.
# `quantize_row_q6_K`: code = nearest_int(x / d) with the stored d, clipped to -32..31.
Q6_K = ScalarType(
    **layout("Q6_K", type_id=14, block_size=256, type_size=210),
    **rounded(64, first=-32),
    unpack=_unpack,
    quantize=_quantize,
    file_type=18,
    fallback="Q8_0",
    sub_blocks=_sub_blocks,
    marks=_marks,
    marks_hold_with_imatrix=True,
    reencoding=Reencoding(slope=0.0, margin=0.08, largest_level=128 * 32, weighted=0.1),
    scale_steps=128,
    d_at=208,
    lost_spread=4.0,
    lost_reach=17.0,
    noise=0.0688,
    relative_mse=0.00031,
)

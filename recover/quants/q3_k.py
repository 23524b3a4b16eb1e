"""Q3_K: superblocks of 256 weights, 16 sub-blocks with signed 6-bit scales, 3-bit codes around 0.

Block: ``hmask`` 32 bytes (high bits), ``qs`` 64 bytes (low bits), ``scales`` 12 bytes, ``d`` f16.
"""

from typing import Any

import numpy as np

from recover._compiled.across import any_lane
from recover._compiled.float16 import read_f16, write_f16
from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import (
    bytes_of_words,
    load,
    load_bytes,
    splat,
    store,
    store_bytes,
    to_f32,
    where,
)
from recover.quants._declared import layout, rounded
from recover.quants._k_scales import four_bytes, pack_pairs
from recover.quants._marks import Marks, f16_at
from recover.quants._search import (
    FACTOR,
    SCALE,
    SMALLEST,
    clipped_nearest,
    encode,
    encode_found,
    largest_in_lanes,
    largest_magnitude,
    make_qx_quants,
    nearest,
    sum_lanes,
    sum_of_squares,
    transpose,
    weigh,
)
from recover.quants._sub_blocks import SubBlocks, marks_of_scales, without_minima
from recover.quants.base import F32Array, Reencoding, ScalarType, U8Array


@inner
def _unpack_scales(block: U8Array, scale: F32Array) -> None:
    """Low four bits: nibbles of bytes 0..7; high two: pairs of bits of bytes 8..11."""
    d = read_f16(block, 108)
    nibbles = four_bytes(block, 96) | (four_bytes(block, 100) << np.uint64(32))
    pairs, fours = four_bytes(block, 104), np.uint64(0x0F0F0F0F0F0F0F0F)
    low = (nibbles & fours) | _high_bits(pairs)
    high = ((nibbles >> np.uint64(4)) & fours) | _high_bits(pairs >> np.uint64(4))
    store(scale, 0, to_f32(bytes_of_words(low, high) - 32) * d)


@inner
def _high_bits(pairs: np.uint64) -> np.uint64:
    """The lowest two bits of four bytes, and the next two behind them, where codes have them."""
    twos, two = np.uint64(0x03030303), np.uint64(2)
    both = (pairs & twos) | (((pairs >> two) & twos) << np.uint64(32))
    return both << np.uint64(4)


@inner
def _pack_scales(d: np.float32, scales: U8Array, block: U8Array) -> None:
    """The inverse of `_unpack_scales`."""
    write_f16(block, 108, d)
    packed = block[96:108]
    for g in range(8):
        packed[g] = (scales[g] & 15) | ((scales[g + 8] & 15) << 4)
    for g in range(4):
        low = (scales[g] >> 4) | ((scales[g + 4] >> 4) << 2)
        packed[8 + g] = low | ((scales[g + 8] >> 4) << 4) | ((scales[g + 12] >> 4) << 6)


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q3_K`."""
    for b in range(raw.size // 110):
        block = raw[110 * b : 110 * b + 110]
        _unpack_scales(block, scale[16 * b : 16 * b + 16])
        store(offset, 16 * b, splat(np.float32(-0.0)))
        for half in range(2):
            for j in range(4):
                for i in range(0, 32, 16):
                    low = load_bytes(block, 32 + 32 * half + i) >> (2 * j)
                    high = load_bytes(block, i) >> (4 * half + j)
                    q = (low & 3) | ((high & 1) << 2)
                    store_bytes(codes, 256 * b + 128 * half + 32 * j + i, q)


@inner
def _refine(x: F32Array, codes: F32Array, sum_xl: Any, sum_l2: Any) -> Any:
    """Changes one code after the other where that lowers the error; weights are ``x * x``."""
    zero = splat(np.float32(0))
    changed = zero > zero
    for i in range(0, x.size, 16):
        value, code = load(x, i), load(codes, i)
        weight = value * value
        xl = sum_xl - weight * value * code
        l2 = sum_l2 - weight * code * code
        new = to_f32(clipped_nearest(value * l2 / xl, -4, 3))
        better = (xl > zero) & (new != code)
        xl = xl + weight * value * new
        l2 = l2 + weight * new * new
        better = better & (l2 > zero) & (xl * xl * sum_l2 > sum_xl * sum_xl * l2)
        store(codes, i, where(better, new, code))
        sum_xl = where(better, xl, sum_xl)
        sum_l2 = where(better, l2, sum_l2)
        changed = changed | better
    return sum_xl, sum_l2, any_lane(changed)


@inner
def _make_q3_quants(x: F32Array, codes: F32Array, scales: F32Array) -> None:
    """Scales of sixteen sub-blocks, and their codes, counted from 0.

    Mirrors `make_q3_quants` with `do_rmse`.
    """
    zero = splat(np.float32(0))
    largest = largest_in_lanes(x)
    factor = np.float32(-4) / largest
    sum_xl = sum_l2 = zero
    for i in range(0, x.size, 16):
        value = load(x, i)
        weight = value * value
        code = to_f32(clipped_nearest(factor * value, -4, 3))
        store(codes, i, code)
        sum_xl = sum_xl + weight * value * code
        sum_l2 = sum_l2 + weight * code * code
    for _ in range(5):
        sum_xl, sum_l2, changed = _refine(x, codes, sum_xl, sum_l2)
        if not changed:
            break
    zeros = abs(largest) < SMALLEST
    for i in range(0, x.size, 16):
        store(codes, i, where(zeros, zero, load(codes, i) + np.float32(4)))
    store(scales, 0, where(~zeros & (sum_l2 > zero), sum_xl / sum_l2, zero))


@inner
def _search(x: F32Array, lanes: F32Array, found: F32Array, scales: U8Array) -> np.float32:
    """Integer scales of a superblock, and their unit; see `quantize_row_q3_K_ref`.

    The codes of the search stay in the third row of `lanes`, transposed.
    """
    transpose(x, 0, 16, lanes[0])
    _make_q3_quants(lanes[0], lanes[2], found[SCALE])
    largest = largest_magnitude(found[SCALE, :16])
    if largest == 0:
        scales[:] = 0
        return np.float32(0)
    factor = np.float32(-32) / largest
    for g in range(16):
        code = np.int32(np.int8(nearest(factor * found[SCALE, g])))
        scales[g] = min(max(code, np.int32(-32)), np.int32(31)) + np.int32(32)
    return np.float32(1) / factor


@inner
def _search_weighted(
    x: F32Array, importance: F32Array, lanes: F32Array, found: F32Array, scales: U8Array
) -> np.float32:
    """As `_search`, with importances; see `quantize_row_q3_K_impl`."""
    values, weights, codes, sums = lanes[0], lanes[1], lanes[2], lanes[3, :16]
    transpose(x, 0, 16, values)
    transpose(importance, 0, 16, weights)
    weigh(values, splat(np.float32(2) * sum_of_squares(x) / np.float32(256)), weights)
    sum_lanes(weights, sums)
    make_qx_quants(values, weights, 4, found, 0)
    factor = load(found[FACTOR], 0)
    half = where(factor == factor, splat(np.float32(4)), np.float32(0))  # 0 where it is NaN
    for i in range(0, 256, 16):
        store(codes, i, to_f32(clipped_nearest(factor * load(values, i), -4, 3)) + half)
    # The same search makes the scales integers; all its lanes hold this superblock.
    transpose(found[SCALE, :16], 0, 16, values)
    transpose(sums, 0, 16, weights)
    make_qx_quants(values, weights, 32, found, 16)
    encode_found(found[SCALE, :16], found[FACTOR, 16], np.float32(0), -32, 31, scales)
    return found[SCALE, 16]


@inner
def _pack(codes: U8Array, block: U8Array) -> None:
    """256 codes to their high bits and low two bits."""
    for i in range(32):
        mask = np.uint8(0)
        for k in range(8):
            mask |= (codes[32 * k + i] >> np.uint8(2)) << np.uint8(k)
        block[i] = mask
    for i in range(256):
        codes[i] &= np.uint8(3)
    pack_pairs(codes, block[32:96])


@kernel
def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_q3_K`."""
    x = x.reshape(x.size)
    lanes, found = np.empty((4, 256), np.float32), np.empty((4, 32), np.float32)
    codes, scales, scale = np.empty(256, np.uint8), np.empty(16, np.uint8), np.empty(16, np.float32)
    for b in range(x.size // 256):
        weights = x[256 * b : 256 * b + 256]
        block = raw[110 * b : 110 * b + 110]
        if imatrix.size:
            importance = imatrix[256 * b % imatrix.size :][:256]
            d = _search_weighted(weights, importance, lanes, found, scales)
        else:
            d = _search(weights, lanes, found, scales)
        _pack_scales(d, scales, block)
        _unpack_scales(block, scale)
        for g in range(16):
            out = codes[16 * g : 16 * g + 16]
            if scale[g] != 0:
                encode(weights[16 * g : 16 * g + 16], scale[g], np.float32(0), -4, 3, out)
            else:
                for i in range(16):
                    out[i] = np.uint8(lanes[2, 16 * i + g])
        _pack(codes, block)


def _sub_blocks(blocks: U8Array) -> SubBlocks:
    """See `recover.quants.SubBlocks`."""
    low = np.concatenate([blocks[:, 96:104] & 15, blocks[:, 96:104] >> 4], 1)
    packed = blocks[:, 104:108]
    high = np.concatenate([(packed >> shift) & 3 for shift in (0, 2, 4, 6)], 1)
    return without_minima(f16_at(blocks, 108), (low | (high << 4)).astype(np.int8) - np.int8(32))


def _marks(blocks: U8Array) -> Marks:
    """`quantize_row_q3_K_ref`: d = max_scale / -32."""
    return marks_of_scales(_sub_blocks(blocks), -32)


# An integer scale is 0 if that of the sub-block is at most half the superblock's. As for Q6_K it is
# first at least 0.872 / f, the largest weight being 4 / f. Refining the codes l only adds to
# (sum x^2 x l)^2 / sum x^2 l^2, and the sum below is at most 16 times what it was (16 weights with
# the largest code): so the scale is at least a quarter of that at the end, and no weight is beyond
# 4 / 0.872 * 4 / 2 = 9.18 times the superblock's scale.
# `quantize_row_q3_K`: code = nearest_int(x / d) with the stored d, clipped to -4..3.
Q3_K = ScalarType(
    **layout("Q3_K", type_id=11, block_size=256, type_size=110),
    **rounded(8, first=-4),
    unpack=_unpack,
    quantize=_quantize,
    file_type=12,
    file_types={11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L"},
    fallback="Q4_0",
    sub_blocks=_sub_blocks,
    marks=_marks,
    reencoding=Reencoding(slope=0.0, margin=0.42, largest_level=32 * 4),
    scale_steps=32,
    d_at=108,
    lost_spread=0.5,
    lost_reach=10.0,
    noise=0.0775,
    relative_mse=0.023,
)

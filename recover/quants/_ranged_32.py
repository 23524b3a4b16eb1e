"""Q4_1 and Q5_1: 32 weights, f16 scale and minimum, codes from the minimum on.

A block is ``d``, ``m`` and the codes of `n_bits` bits as `recover.quants._legacy.store_codes` puts
them.
"""

import numpy as np

from recover._compiled.float16 import read_f16, write_f16
from recover._compiled.jit import inlined, kernel, sized
from recover.quants._declared import layout
from recover.quants._legacy import (
    codes_of_32,
    encode_32,
    inverse,
    load_codes,
    range_coded,
    range_of_32,
    row_mean_squares,
    store_codes,
    weigh_blocks,
    write_u16,
)
from recover.quants._marks import Marks, code_mark, marks_of_codes
from recover.quants._search import BASE, FACTOR, MIN, SCALE, Steps, encode_found, make_qkx_quants
from recover.quants.base import (
    F32Array,
    FromWeight,
    I8Array,
    Integers,
    ScalarType,
    U8Array,
    U16Array,
)


@inlined
def _unpack(raw: U8Array, n_bits: int, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Blocks to codes, scales and offsets."""
    size = 4 + 4 * n_bits
    for b in range(raw.size // size):
        block = raw[size * b : size * b + size]
        d, m = read_f16(block, 0), read_f16(block, 2)
        for g in range(2 * b, 2 * b + 2):
            scale[g] = d
            offset[g] = m
        load_codes(block[4:], n_bits, codes[32 * b : 32 * b + 32])


@sized
def _quantize_plain(x: F32Array, n_bits: int, raw: U8Array) -> None:
    """D = (max - min) / highest, code = int((x - min) / d + 0.5).

    Mirrors `quantize_row_q4_1_ref` and `quantize_row_q5_1_ref`.
    """
    codes, size, highest = np.empty(32, np.uint8), 4 + 4 * n_bits, (1 << n_bits) - 1
    for b in range(x.size // 32):
        weights, block = x[32 * b : 32 * b + 32], raw[size * b : size * b + size]
        low, high = range_of_32(weights)
        d = (high - low) / np.float32(highest)
        write_f16(block, 0, d)
        write_f16(block, 2, low)
        encode_32(weights, low, inverse(d), np.float32(0.5), highest, codes)
        store_codes(codes, n_bits, block[4:])


@sized
def _quantize_weighted(
    x: F32Array, imatrix: F32Array, steps: Steps, n_bits: int, raw: U8Array
) -> None:
    """Scale and minimum are searched for.

    Mirrors `quantize_row_q4_1_impl` and `quantize_row_q5_1_impl`.
    """
    means, x = row_mean_squares(x), x.reshape(x.size)
    lanes, found = np.empty((3, 512), np.float32), np.empty((4, 16), np.float32)
    codes, size, highest = np.empty(32, np.uint8), 4 + 4 * n_bits, (1 << n_bits) - 1
    for b in range(x.size // 32):
        k = b % 16
        if k == 0:
            weigh_blocks(x, imatrix, means, 32 * b, lanes)
            make_qkx_quants(lanes[0], lanes[1], lanes[2], steps, found, 0)
        weights, block = x[32 * b : 32 * b + 32], raw[size * b : size * b + size]
        write_f16(block, 0, found[SCALE, k])
        write_f16(block, 2, -found[MIN, k])
        encode_found(weights, found[FACTOR, k], found[BASE, k], 0, highest, codes)
        store_codes(codes, n_bits, block[4:])


@sized
def _quantize(x: F32Array, imatrix: F32Array, steps: Steps, n_bits: int, raw: U8Array) -> None:
    """Mirrors `quantize_q4_1` and `quantize_q5_1`."""
    if imatrix.size:
        _quantize_weighted(x, imatrix, steps, n_bits, raw)
    else:
        _quantize_plain(x.reshape(x.size), n_bits, raw)


@inlined
def _pack(
    integers: I8Array, d: U16Array, m: U16Array, group: int, n_bits: int, raw: U8Array
) -> None:
    """Integers from 0 on: d = scale, m = offset, q = integer."""
    codes, size = np.empty(32, np.uint8), 4 + 4 * n_bits
    for b in range(integers.size // 32):
        block = raw[size * b : size * b + size]
        write_u16(block, 0, d[32 * b // group])
        write_u16(block, 2, m[32 * b // group])
        codes_of_32(integers[32 * b : 32 * b + 32], 0, codes)
        store_codes(codes, n_bits, block[4:])


def ranged_type(
    name: str,
    n_bits: int,
    *,
    holds_integers: bool,
    type_id: int,
    file_type: int,
    noise: float,
    relative_mse: float,
) -> ScalarType:
    """The type with codes of `n_bits` bits; the other parameters are as of `ScalarType`.

    ``d = (max - min) / highest``, ``code = min(highest, int((x - min) / d + 0.5))``, so that min is
    given code 0 and max the highest; d and min are rounded to f16 last.
    """
    highest = (1 << n_bits) - 1
    steps = Steps(highest + 1, np.float32(-0.9), np.float32(0.05), 36, False)
    mark = code_mark((0,), (highest,), positive=True)

    @kernel
    def unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
        _unpack(raw, n_bits, codes, scale, offset)

    @kernel
    def quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
        _quantize(x, imatrix, steps, n_bits, raw)

    @kernel
    def pack(integers: I8Array, d: U16Array, m: U16Array, group: int, raw: U8Array) -> None:
        _pack(integers, d, m, group, n_bits, raw)

    def marks(blocks: U8Array) -> Marks:
        return marks_of_codes(blocks, unpack, mark)

    integers = Integers(lowest=0, highest=highest, has_offset=True, pack=pack)
    return ScalarType(
        **layout(name, type_id=type_id, block_size=32, type_size=4 + 4 * n_bits),
        **range_coded(highest + 1),
        rounds_scale_last=True,
        rounds_offset_last=True,
        refits_scale_with_imatrix=True,
        extremes=((0, 0), (highest, highest)),
        unpack=unpack,
        quantize=quantize,
        integers=integers if holds_integers else None,
        file_type=file_type,
        marks=marks,
        cells_need_marks=True,
        from_weight=FromWeight(at=2, divisor=1),
        comes_back=True,
        weighs_whole_rows=True,
        noise=noise,
        relative_mse=relative_mse,
    )

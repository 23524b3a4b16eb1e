"""Q4_0 and Q5_0: 32 weights, one f16 scale, codes around zero.

The weight of largest magnitude gets the lowest code, whatever its sign. A block is ``d`` and the
codes of `n_bits` bits as `recover.quants._legacy.store_codes` puts them.
"""

import numpy as np

from recover._compiled.float16 import read_f16, write_f16
from recover._compiled.jit import inlined, kernel, sized
from recover.quants._declared import layout
from recover.quants._legacy import (
    codes_of_32,
    encode_32,
    extreme_coded,
    inverse,
    largest_magnitude_of_32,
    load_codes,
    row_mean_squares,
    store_codes,
    weigh_blocks,
    write_u16,
)
from recover.quants._marks import Marks, code_mark, marks_of_codes
from recover.quants._search import BASE, FACTOR, SCALE, encode_found, make_qx_quants
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
def unpack_signed(
    raw: U8Array, n_bits: int, codes: U8Array, scale: F32Array, offset: F32Array
) -> None:
    """Blocks to codes, scales and no offsets."""
    size = 2 + 4 * n_bits
    for b in range(raw.size // size):
        block = raw[size * b : size * b + size]
        d = read_f16(block, 0)
        for g in range(2 * b, 2 * b + 2):
            scale[g] = d
            offset[g] = -0.0
        load_codes(block[2:], n_bits, codes[32 * b : 32 * b + 32])


@sized
def _quantize_plain(x: F32Array, n_bits: int, raw: U8Array) -> None:
    """D = the weight of largest magnitude / -half, code = min(2 half - 1, int(x / d + half + 0.5)).

    Mirrors `quantize_row_q4_0_ref` and `quantize_row_q5_0_ref`.
    """
    codes, size, half = np.empty(32, np.uint8), 2 + 4 * n_bits, 1 << (n_bits - 1)
    for b in range(x.size // 32):
        weights, block = x[32 * b : 32 * b + 32], raw[size * b : size * b + size]
        d = largest_magnitude_of_32(weights) / np.float32(-half)
        write_f16(block, 0, d)
        zero, middle = np.float32(0), np.float32(half + 0.5)
        encode_32(weights, zero, inverse(d), middle, 2 * half - 1, codes)
        store_codes(codes, n_bits, block[2:])


@sized
def _quantize_weighted(x: F32Array, imatrix: F32Array, n_bits: int, raw: U8Array) -> None:
    """The scale is searched for; mirrors `quantize_row_q4_0_impl` and `quantize_row_q5_0_impl`."""
    means, x = row_mean_squares(x), x.reshape(x.size)
    lanes, found = np.empty((3, 512), np.float32), np.empty((4, 16), np.float32)
    codes, size, half = np.empty(32, np.uint8), 2 + 4 * n_bits, 1 << (n_bits - 1)
    for b in range(x.size // 32):
        k = b % 16
        if k == 0:
            weigh_blocks(x, imatrix, means, 32 * b, lanes)
            make_qx_quants(lanes[0], lanes[1], half, found, 0)
        weights, block = x[32 * b : 32 * b + 32], raw[size * b : size * b + size]
        write_f16(block, 0, found[SCALE, k])
        encode_found(weights, found[FACTOR, k], found[BASE, k], -half, half - 1, codes)
        store_codes(codes, n_bits, block[2:])


@sized
def _quantize(x: F32Array, imatrix: F32Array, n_bits: int, raw: U8Array) -> None:
    """Mirrors `quantize_q4_0` and `quantize_q5_0`."""
    if imatrix.size:
        _quantize_weighted(x, imatrix, n_bits, raw)
    else:
        _quantize_plain(x.reshape(x.size), n_bits, raw)


@inlined
def _pack(integers: I8Array, d: U16Array, group: int, n_bits: int, raw: U8Array) -> None:
    """Integers from -half on: d = scale, q = integer + half."""
    codes, size, half = np.empty(32, np.uint8), 2 + 4 * n_bits, 1 << (n_bits - 1)
    for b in range(integers.size // 32):
        block = raw[size * b : size * b + size]
        write_u16(block, 0, d[32 * b // group])
        codes_of_32(integers[32 * b : 32 * b + 32], -half, codes)
        store_codes(codes, n_bits, block[2:])


_MARK = code_mark((0,), positive=False)


def signed_type(
    name: str, n_bits: int, *, type_id: int, file_type: int, noise: float, relative_mse: float
) -> ScalarType:
    """The type with codes of `n_bits` bits; the other parameters are as of `ScalarType`.

    ``d = max / -half``, so that max is given code 0; ``code = min(2 half - 1, int(x / d + half +
    0.5))``, and d is rounded to f16 last.
    """
    half = 1 << (n_bits - 1)

    @kernel
    def unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
        unpack_signed(raw, n_bits, codes, scale, offset)

    @kernel
    def quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
        _quantize(x, imatrix, n_bits, raw)

    @kernel
    def pack(integers: I8Array, d: U16Array, _m: U16Array, group: int, raw: U8Array) -> None:
        _pack(integers, d, group, n_bits, raw)

    def marks(blocks: U8Array) -> Marks:
        return marks_of_codes(blocks, unpack, _MARK)

    return ScalarType(
        **layout(name, type_id=type_id, block_size=32, type_size=2 + 4 * n_bits),
        **extreme_coded(2 * half),
        rounds_scale_last=True,
        refits_scale_with_imatrix=True,
        extremes=((0, 0),),
        unpack=unpack,
        quantize=quantize,
        integers=Integers(lowest=-half, highest=half - 1, pack=pack),
        file_type=file_type,
        marks=marks,
        cells_need_marks=True,
        from_weight=FromWeight(at=0, divisor=-half),
        comes_back=True,
        weighs_whole_rows=True,
        noise=noise,
        relative_mse=relative_mse,
    )

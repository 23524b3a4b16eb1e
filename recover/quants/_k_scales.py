"""The 12 bytes in which Q4_K and Q5_K store eight 6-bit scales and eight 6-bit minima."""

import numpy as np

from recover._compiled.float16 import read_f16, write_f16
from recover._compiled.jit import inner
from recover._compiled.lanes import bytes_of_words, store, to_f32
from recover.quants._k_affine import Batch
from recover.quants.base import F32Array, U8Array


@inner
def unpack_scales(header: U8Array, scale: F32Array, offset: F32Array) -> None:
    """``d``, ``dmin`` and 12 bytes of scales to 16 scales and offsets; see `get_scale_min_k4`.

    Four bytes are worked on at once, as ggml does it.
    """
    d = read_f16(header, 0)
    dmin = read_f16(header, 2)
    first, second, third = four_bytes(header, 4), four_bytes(header, 8), four_bytes(header, 12)
    sixes, fours, twos = np.uint64(0x3F3F3F3F), np.uint64(0x0F0F0F0F), np.uint64(0x03030303)
    four, six = np.uint64(4), np.uint64(6)
    high = (third & fours) | (((first >> six) & twos) << four)
    codes = bytes_of_words(_each_twice(first & sixes), _each_twice(high))
    store(scale, 0, to_f32(codes) * d)
    high = ((third >> four) & fours) | (((second >> six) & twos) << four)
    codes = bytes_of_words(_each_twice(second & sixes), _each_twice(high))
    store(offset, 0, -(to_f32(codes) * dmin))


@inner
def four_bytes(block: U8Array, at: int) -> np.uint64:
    """Four bytes as a number, the lowest first."""
    low = np.uint64(block[at]) | (np.uint64(block[at + 1]) << np.uint64(8))
    high = np.uint64(block[at + 2]) | (np.uint64(block[at + 3]) << np.uint64(8))
    return low | (high << np.uint64(16))


@inner
def _each_twice(word: np.uint64) -> np.uint64:
    """Four bytes to eight: each of them twice."""
    word = (word | (word << np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    word = (word | (word << np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
    return word | (word << np.uint64(8))


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

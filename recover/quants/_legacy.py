"""What the 32-weight formats share: nibbles, fifth bits, and the cells of truncating encoders.

Plain encoders work on one block after the other, its halves being two vectors of sixteen weights;
those with an importance matrix work on sixteen blocks at once.
"""

from typing import Any

import numpy as np

from recover._compiled.across import first_lane, largest_lane, mask_bits
from recover._compiled.jit import inlined, inner, kernel
from recover._compiled.lanes import load, load_bytes, store_bytes, truncate, where
from recover.quants._declared import Coded, coded
from recover.quants._search import sum_of_squares, transpose, weigh
from recover.quants.base import F32Array, I8Array, U8Array, integer_levels, table


@inner
def split_nibbles(qs: U8Array, codes: U8Array) -> None:
    """16 bytes to 32 codes: low nibbles first, then high nibbles."""
    q = load_bytes(qs, 0)
    store_bytes(codes, 0, q & 15)
    store_bytes(codes, 16, q >> 4)


@inner
def add_fifth_bits(qh: U8Array, codes: U8Array) -> None:
    """Adds 16 to code j where bit j of the four bytes of `qh` is set."""
    bits = np.uint32(0)
    for j in range(4):
        bits |= np.uint32(qh[j]) << np.uint32(8 * j)
    for j in range(32):
        codes[j] |= np.uint8(((bits >> np.uint32(j)) & np.uint32(1)) << np.uint32(4))


@inner
def join_nibbles(codes: U8Array, qs: U8Array) -> None:
    """32 codes to 16 bytes; the inverse of `split_nibbles`, leaves out fifth bits."""
    low, high = load_bytes(codes, 0), load_bytes(codes, 16)
    store_bytes(qs, 0, (low & 15) | (high << 4))


@inner
def collect_fifth_bits(codes: U8Array, qh: U8Array) -> None:
    """Bit 4 of 32 codes to 4 bytes."""
    word = mask_bits((load_bytes(codes, 0) & 16) != 0, (load_bytes(codes, 16) & 16) != 0)
    for j in range(4):
        qh[j] = np.uint8(word >> np.uint32(8 * j))


@inlined
def load_codes(stored: U8Array, n_bits: int, codes: U8Array) -> None:
    """32 codes of 4 or 5 bits, stored one behind the other: fifth bits, if any, and nibbles."""
    if n_bits == 5:
        split_nibbles(stored[4:], codes)
        add_fifth_bits(stored, codes)
    else:
        split_nibbles(stored, codes)


@inlined
def store_codes(codes: U8Array, n_bits: int, stored: U8Array) -> None:
    """The inverse of `load_codes`."""
    if n_bits == 5:
        collect_fifth_bits(codes, stored)
        join_nibbles(codes, stored[4:])
    else:
        join_nibbles(codes, stored)


@inner
def largest_magnitude_of_32(x: F32Array) -> np.float32:
    """The first of the weights with the largest magnitude; 0 if all are 0."""
    first, second = abs(load(x, 0)), abs(load(x, 16))
    largest = largest_lane(where(second > first, second, first))
    if largest == 0:
        return np.float32(0)
    return x[first_lane(first == largest, second == largest)]


@inner
def range_of_32(x: F32Array) -> Any:
    """Smallest and largest weight; of several zeros the first, as they may differ in sign."""
    first, second = load(x, 0), load(x, 16)
    low = -largest_lane(-where(second < first, second, first))
    high = largest_lane(where(second > first, second, first))
    if low == 0:
        low = x[first_lane(first == low, second == low)]
        high = high if high > 0 else low
    return low, high


@kernel
def inverse(d: np.float32) -> np.float32:
    """``1 / d``, or 0 for 0."""
    return np.float32(1) / d if d != 0 else np.float32(0)


@inner
def encode_32(
    x: F32Array,
    low: np.float32,
    factor: np.float32,
    middle: np.float32,
    highest: int,
    codes: U8Array,
) -> None:
    """Codes ``int8((x - low) * factor + middle)`` up to `highest`; what does not fit becomes 0."""
    for i in range(0, 32, 16):
        code = truncate((load(x, i) - low) * factor + middle)
        store_bytes(codes, i, where(code > highest, highest, code))


@inner
def row_mean_squares(x: F32Array) -> F32Array:
    """Mean square of every row, the squares added up in order."""
    means = np.empty(x.shape[0], np.float32)
    for row in range(x.shape[0]):
        means[row] = sum_of_squares(x[row]) / np.float32(x.shape[1])
    return means


@inner
def weigh_blocks(
    x: F32Array, imatrix: F32Array, means: F32Array, start: int, lanes: F32Array
) -> None:
    """Sixteen blocks from ``x[start]`` on, transposed, and the importances of their weights."""
    transpose(x, start, 32, lanes[0])
    transpose(imatrix, start % imatrix.size, 32, lanes[1])
    mean = lanes[2, :16]
    for k in range(16):
        mean[k] = means[(start + 32 * k) // imatrix.size % means.size]
    weigh(lanes[0], load(mean, 0), lanes[1])


@inner
def write_u16(raw: U8Array, at: int, word: np.uint16) -> None:
    """Two bytes, the lower one first."""
    raw[at] = np.uint8(word & np.uint16(255))
    raw[at + 1] = np.uint8(word >> np.uint16(8))


@inner
def codes_of_32(integers: I8Array, lowest: int, codes: U8Array) -> None:
    """32 integers to codes, of which 0 stands for the lowest integer."""
    for j in range(32):
        codes[j] = np.uint8(integers[j] - lowest)


def extreme_coded(n_codes: int) -> Coded:
    """Levels and cells where the block's weight of largest magnitude is given the lowest code.

    The encoder divides by ``d = max / -half`` with ``half = n_codes / 2`` and rounds; no weight is
    beyond ``half * d`` in magnitude, which bounds both end cells.
    """
    half = n_codes // 2
    level = np.arange(-half, half)
    lower, upper = level - 0.5, level + 0.5
    lower[0], upper[-1] = -half, half
    edges = table(lower, fill=-np.inf), table(upper, fill=np.inf)
    return coded(integer_levels(first=-half), edges)


def range_coded(n_codes: int) -> Coded:
    """Levels and cells where the codes span from the block's minimum (code 0) to its maximum."""
    level = np.arange(n_codes)
    lower, upper = level - 0.5, level + 0.5
    lower[0], upper[-1] = 0, n_codes - 1
    return coded(integer_levels(), (table(lower, fill=-np.inf), table(upper, fill=np.inf)))

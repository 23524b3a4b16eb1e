"""Codes of a few bits that are packed into bytes: to one byte each."""

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import inner, kernel
from recover.quants import U8Array


@kernel
def unpack_rows(
    packed: NDArray[np.uint8], n_bits: int, row_length: int, start: int, codes: U8Array
) -> None:
    """Codes of up to 8 bits along the rows of a matrix, the first code in the lowest bits.

    Parameters
    ----------
    packed : uint8 (n_rows, n_bytes)
        Each row begins with a byte of its own.
    n_bits, row_length : int
        Bits of a code, and codes of a row.
    start : int
        The first code to unpack, counted over all rows.
    codes : uint8 (n,)
        To be filled.
    """
    n, i = codes.size, 0
    row, column = start // row_length, start % row_length
    while i < n:
        m = min(n - i, row_length - column)
        line, out = packed[row], codes[i : i + m]
        if n_bits == 8:
            out[:] = line[column : column + m]
        elif n_bits == 4:
            _split_nibbles(line, column, out)
        else:
            mask = np.uint32((1 << n_bits) - 1)
            for k in range(m):
                bit = (column + k) * n_bits
                word, shift = np.uint32(line[bit >> 3]), bit & 7
                if shift + n_bits > 8:
                    word |= np.uint32(line[(bit >> 3) + 1]) << np.uint32(8)
                out[k] = np.uint8((word >> np.uint32(shift)) & mask)
        i, row, column = i + m, row + 1, 0


@inner
def _split_nibbles(line: U8Array, column: int, out: U8Array) -> None:
    """Codes of 4 bits from a column on: two of each byte, the first in the lower half."""
    odd, m = column & 1, out.size
    if odd and m:
        out[0] = line[column >> 1] >> np.uint8(4)
    n_pairs, first = (m - odd) // 2, (column + odd) >> 1
    pairs, packed = out[odd : odd + 2 * n_pairs].view(np.uint16), line[first : first + n_pairs]
    for j in range(n_pairs):
        byte = np.uint16(packed[j])
        pairs[j] = (byte & np.uint16(15)) | ((byte & np.uint16(0xF0)) << np.uint16(4))
    if odd + 2 * n_pairs < m:
        out[m - 1] = line[first + n_pairs] & np.uint8(15)


@kernel
def unpack_fields(
    packed: NDArray[np.uint8], n_bits: int, highest: int, span: int, start: int, codes: U8Array
) -> None:
    """Codes in words, of which the first part of all codes has the highest bits.

    Parameters
    ----------
    packed : uint8 (span, bytes of a word)
        Little-endian words.
    n_bits : int
        Bits of a code.
    highest : int
        Where the codes of the first part are: so many bits from the lowest.
    span : int
        Codes of a part, one in each word.
    start : int
        The first code to unpack.
    codes : uint8 (n,)
        To be filled.
    """
    n, i = codes.size, 0
    n_bytes, mask = packed.shape[1], np.uint32((1 << n_bits) - 1)
    part, at = start // span, start % span
    while i < n:
        m = min(n - i, span - at)
        shift = highest - part * n_bits
        first, rest = shift >> 3, np.uint32(shift & 7)
        line, out = packed[at : at + m], codes[i : i + m]
        if first + 1 < n_bytes:
            for k in range(m):
                word = np.uint32(line[k, first]) | np.uint32(line[k, first + 1]) << np.uint32(8)
                out[k] = np.uint8((word >> rest) & mask)
        else:
            for k in range(m):
                out[k] = np.uint8((np.uint32(line[k, first]) >> rest) & mask)
        i, part, at = i + m, part + 1, 0

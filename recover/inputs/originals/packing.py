"""Integers as other programs pack them, to rows."""

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import kernel

I8Array = NDArray[np.int8]

_STRIP = 64


@kernel
def transpose(source: I8Array, column: int, out: I8Array) -> None:
    """Columns of `source` (K, N) from `column` on to the rows of `out` (n, K).

    `source` must be contiguous, so that each strip of a row is copied at once.
    """
    n_rows, row_length = out.shape
    strip = np.empty((_STRIP, _STRIP), np.int8)
    for start in range(0, row_length, _STRIP):
        n_k = min(_STRIP, row_length - start)
        for first in range(0, n_rows, _STRIP):
            n = min(_STRIP, n_rows - first)
            for k in range(n_k):
                begin = column + first
                copied, line = strip[k], source[start + k, begin : begin + n]
                for i in range(n):
                    copied[i] = line[i]
            for i in range(n):
                line = out[first + i, start : start + n_k]
                for k in range(n_k):
                    line[k] = strip[k, i]


@kernel
def nibbles_along_rows(words: NDArray[np.uint32], offset: int, out: I8Array) -> None:
    """Words (n, K / 8), the lowest nibble first, to codes (n, K) less `offset`."""
    n_rows, n_words = words.shape
    for row in range(n_rows):
        for w in range(n_words):
            word = words[row, w]
            for j in range(8):
                nibble = np.int32((word >> np.uint32(4 * j)) & np.uint32(15))
                out[row, 8 * w + j] = np.int8(nibble - offset)


@kernel
def nibbles_along_columns(
    words: NDArray[np.uint32], zeros: I8Array, group: int, out: I8Array
) -> None:
    """Words (K / 8, n), each with eight codes of one column, to codes less zeros (K / group, n).

    `out` is (n, K).
    """
    n_words, n_rows = words.shape
    for start in range(0, n_words, 8):
        end = min(start + 8, n_words)
        for row in range(n_rows):
            for w in range(start, end):
                word = words[w, row]
                zero = np.int32(zeros[8 * w // group, row])
                for j in range(8):
                    nibble = np.int32((word >> np.uint32(4 * j)) & np.uint32(15))
                    out[row, 8 * w + j] = np.int8(nibble - zero)


@kernel
def bytes_along_columns(words: NDArray[np.uint32], zero: int, out: I8Array) -> None:
    """Words (K / 4, n), each with four codes of one column, to codes less `zero`."""
    n_words, n_rows = words.shape
    for start in range(0, n_words, 16):
        end = min(start + 16, n_words)
        for row in range(n_rows):
            for w in range(start, end):
                word = words[w, row]
                for j in range(4):
                    byte = np.int32((word >> np.uint32(8 * j)) & np.uint32(255))
                    out[row, 4 * w + j] = np.int8(byte - zero)


@kernel
def interleaved_nibbles(
    words: NDArray[np.uint32], zeros: I8Array, group: int, out: I8Array
) -> None:
    """AWQ: words (K, n / 8) of eight columns in the order 0, 2, 4, 6, 1, 3, 5, 7, less zeros.

    `zeros` is (K / group, n), `out` is (n, K); groups are multiples of 32.
    """
    row_length, n_words = words.shape
    column = np.empty(32, np.uint32)
    for start in range(0, row_length, 32):
        for w in range(n_words):
            for k in range(32):
                column[k] = words[start + k, w]
            for i in range(8):
                # nibble i belongs to column 2 i, or 2 (i - 4) + 1
                row = 8 * w + (2 * i if i < 4 else 2 * i - 7)
                shift, zero = np.uint32(4 * i), np.int32(zeros[start // group, row])
                line = out[row, start : start + 32]
                for k in range(32):
                    nibble = np.int32((column[k] >> shift) & np.uint32(15))
                    line[k] = np.int8(nibble - zero)

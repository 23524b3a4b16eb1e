"""Codes in words along columns, as GPTQ, EXL2 and AWQ store them, and what they say row by row.

A matrix of ``n_rows`` outputs and ``row_length`` inputs is stored transposed: the words of one row
lie a stored row apart. A range of weights is stated in two steps: the codes of the rows that it
touches are unpacked, one byte each, and are then gone through row by row.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import inner, kernel
from recover.quants import F32Array, U8Array

WORDS = ("I32", "U32")

Words = NDArray[np.uint32]
_STRIP = 8
_FAR = np.float32(np.inf)
_ZERO = np.float32(0)


def fields(words: NDArray[Any], n_bits: int, first: int, last: int) -> NDArray[np.int32]:
    """Numbers `first` to `last` of each row of words (m, n_words), which hold them end to end.

    The lowest bits come first; a number may begin in one word and end in the next.
    """
    bit = np.arange(first, last, dtype=np.int64) * n_bits
    word, shift = bit // 32, (bit % 32).astype(np.uint32)
    found = words[:, word].astype(np.uint32) >> shift
    split = np.flatnonzero(shift + n_bits > 32)
    found[:, split] |= words[:, word[split] + 1].astype(np.uint32) << (32 - shift[split])
    return (found & np.uint32((1 << n_bits) - 1)).astype(np.int32)


@kernel
def unpack_columns(words: Words, n_bits: int, column: int, codes: U8Array) -> None:
    """Words (n_words, n), each column a stream of codes, to ``codes[:, column:]`` (n, n_codes).

    The stream of a column holds codes of `n_bits` end to end, the lowest bits first; as many are
    taken as there are words.
    """
    n_words, n_rows = words.shape
    # as many words as fill a cache line; or after which a code begins with a word again
    whole = _STRIP if 32 % n_bits == 0 else n_bits
    for start in range(0, n_words, whole):
        first = column + 32 * start // n_bits
        for row in range(n_rows):
            if whole == _STRIP:
                _split_word(words, start, row, n_bits, codes[row], first)
            else:
                _split_words(words, start, row, n_bits, codes[row], first)


@inner
def _split_word(words: Words, start: int, row: int, n_bits: int, codes: U8Array, at: int) -> None:
    """The codes of some words, each with whole codes."""
    n_each, mask = 32 // n_bits, np.uint32((1 << n_bits) - 1)
    end = min(start + _STRIP, words.shape[0])
    if n_bits == 4 and at + 8 * (end - start) <= codes.size:
        eights = codes[at : at + 8 * (end - start)].view(np.uint64)
        for w in range(start, end):
            eights[w - start] = _spread(words[w, row])
        return
    if n_bits == 8 and at + 4 * (end - start) <= codes.size:
        codes[at : at + 4 * (end - start)].view(np.uint32)[:] = words[start:end, row]
        return
    for w in range(start, end):
        word, n = words[w, row], min(n_each, codes.size - at)
        for k in range(n):
            codes[at + k] = np.uint8((word >> np.uint32(n_bits * k)) & mask)
        at += n_each


@inner
def _spread(word: np.uint32) -> np.uint64:
    """Eight codes of 4 bits as bytes, in their order."""
    found = np.uint64(word)
    found = (found | found << np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF)
    found = (found | found << np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF)
    return (found | found << np.uint64(4)) & np.uint64(0x0F0F0F0F0F0F0F0F)


@inner
def _split_words(words: Words, start: int, row: int, n_bits: int, codes: U8Array, at: int) -> None:
    """Up to 32 codes, which take `n_bits` words."""
    mask = (np.uint64(1) << np.uint64(n_bits)) - np.uint64(1)
    left, n_left, w = np.uint64(0), 0, start
    for k in range(at, min(at + 32, codes.size)):
        if n_left < n_bits:
            if w == words.shape[0]:
                return
            left |= np.uint64(words[w, row]) << np.uint64(n_left)
            n_left += 32
            w += 1
        codes[k] = np.uint8(left & mask)
        left >>= np.uint64(n_bits)
        n_left -= n_bits


@kernel
def unpack_interleaved(words: Words, codes: U8Array) -> None:
    """Words (row_length, n / 8) to codes (n, row_length).

    A word holds one column of eight rows, in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits.
    """
    row_length, n_words = words.shape
    for start in range(0, row_length, 64):
        end = min(start + 64, row_length)
        for w in range(n_words):
            for half in range(2):
                for j in range(4):
                    shift = np.uint32(16 * half + 4 * j)
                    line = codes[8 * w + 2 * j + half]
                    for k in range(start, end):
                        line[k] = np.uint8((words[k, w] >> shift) & np.uint32(15))


@kernel
def state_groups(
    codes: U8Array,
    scales: F32Array,
    zeros: F32Array,
    group: int,
    noise: np.float32,
    begin: int,
    value: F32Array,
    variance: F32Array,
) -> None:
    """Values of rows (n, row_length) of codes from flat position `begin` on, and their errors.

    `scales` and `zeros` (n, n_groups) belong to so many weights of a row in turn. The variance is
    `noise` times the squared scale; infinite where a scale says nothing.
    """
    row_length = codes.shape[1]
    at, position = 0, begin
    while at < value.size:
        row, k = position // row_length, position % row_length
        g = k // group
        n = min(min((g + 1) * group, row_length) - k, value.size - at)
        s, z = scales[row, g], zeros[row, g]
        error = _error(s, noise)
        line, out = codes[row, k : k + n], value[at : at + n]
        for i in range(n):
            out[i] = (np.float32(line[i]) - z) * s
        variance[at : at + n] = error
        at += n
        position += n


@kernel
def state_scattered(
    codes: U8Array,
    scales: F32Array,
    zeros: F32Array,
    places: NDArray[np.int32],
    noise: np.float32,
    begin: int,
    value: F32Array,
    variance: F32Array,
) -> None:
    """As `state_groups`, of columns in another order.

    `places` (2, row_length): where the code of a column is in its row, and its group.
    """
    row_length = codes.shape[1]
    at, position = 0, begin
    while at < value.size:
        row, k = position // row_length, position % row_length
        n = min(row_length - k, value.size - at)
        line, s, z = codes[row], scales[row], zeros[row]
        for i in range(n):
            g = places[1, k + i]
            value[at + i] = (np.float32(line[places[0, k + i]]) - z[g]) * s[g]
            variance[at + i] = _error(s[g], noise)
        at += n
        position += n


@kernel
def confine_rounded(
    codes: U8Array,
    places: NDArray[np.int32],
    n_codes: NDArray[np.int64],
    scaled: tuple[np.float32, np.float32],
    begin: int,
    value: F32Array,
    variance: F32Array,
    bounds: tuple[F32Array, F32Array],
) -> None:
    """Lower and upper bounds of what `state_scattered` states, were it of rounded weights.

    Half a scale on either side and so much of the value, but for end codes, which are open.
    `scaled` are the variance in units of the squared scale, and that share of the value; `n_codes`
    (n_groups,) are those of each group.
    """
    (noise, slack), (lower, upper) = scaled, bounds
    row_length = codes.shape[1]
    row, k = begin // row_length, begin % row_length
    for i in range(value.size):
        code = codes[row, places[0, k]]
        half = np.sqrt(variance[i] / noise) / np.float32(2) + abs(value[i]) * slack
        lower[i] = value[i] - half if code else -_FAR
        upper[i] = value[i] + half if code != n_codes[places[1, k]] - 1 else _FAR
        k += 1
        if k == row_length:
            row, k = row + 1, 0


def take_codes(
    words: Words, bits: NDArray[np.int64], n_bits: NDArray[np.int64]
) -> Callable[[int, int, U8Array], None]:
    """What gives the codes of some columns, row by row.

    Parameters
    ----------
    words : uint32 (n_words, n_rows)
        Each column a stream of bits.
    bits, n_bits : int64 (n,)
        Where in the stream the code of each column begins, and its bits.

    Returns
    -------
    callable
        ``codes(first, last, out: uint8 (last - first, n))``
    """
    word, shift = bits // 32, (bits % 32).astype(np.uint64)[:, None]
    following = np.minimum(word + 1, len(words) - 1)
    mask = ((1 << n_bits) - 1).astype(np.uint64)[:, None]

    def codes(first: int, last: int, out: U8Array) -> None:
        found = words[word, first:last].astype(np.uint64)
        found |= words[following, first:last].astype(np.uint64) << np.uint64(32)
        out[:] = ((found >> shift) & mask).T

    return codes


@inner
def _error(scale: np.float32, noise: np.float32) -> np.float32:
    error = noise * scale * scale
    return error if _ZERO < error < _FAR else _FAR

"""4-bit floats times a scale, found in stored floats: what can be said of one block.

A level of E2M1 (see `recover.quants._fp4`) is taken twice, so that all are integers; what it is
multiplied by is called a step. Preimages are those of `recover.inputs.originals._fit`.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import inlined, inner, kernel
from recover.inputs.originals._fit import (
    NONE,
    ON_GRID,
    PATCHED,
    ZERO,
    Storage,
    is_rounded_to,
    magnitude,
    preimage,
)

F64Array = NDArray[np.float64]
Words = NDArray[Any]

LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float64)
"""Magnitudes by the lower three bits of a stored code."""

N_LEVELS = 8
OFF_GRID = 255
"""In the place of a stored code."""

_SLACK = 1e-14


class Search(NamedTuple):
    """Which step a block gets where several would do."""

    finest: bool
    """The finest, by which its largest weight has the highest level; else the coarsest."""
    most_off: int
    """Weights that may lie off the grid."""


@inlined
def _level(ratio: float) -> int:
    """Index of the level nearest to a magnitude over the step."""
    low = int(ratio > 0.5) + int(ratio > 1.5) + int(ratio > 2.5) + int(ratio > 3.5)
    return low + int(ratio > 5) + int(ratio > 7) + int(ratio > 10)


@inlined
def level_of(bits: int, step: float, storage: Storage) -> int:
    """Index of the level whose product with a step is stored as magnitude bits; -1 if none is."""
    if bits == 0:
        return 0
    index = _level(magnitude(bits, storage) / step)
    return index if index and is_rounded_to(LEVELS[index] * step, bits, storage) else -1


@inlined
def _bits(word: int, storage: Storage) -> int:
    return int(np.int64(word) & np.int64(storage.sign - 1))


@inner
def _n_missed(words: Words, step: float, most: int, storage: Storage) -> int:
    """Weights of a block that no level times the step is; stops beyond `most`."""
    n = 0
    for i in range(words.size):
        if level_of(_bits(words[i], storage), step, storage) < 0:
            n += 1
            if n > most:
                break
    return n


@inner
def _step_for(
    words: Words, bits: int, how: tuple[bool, int], steps: F64Array, storage: Storage
) -> tuple[int, int]:
    """The step by which a magnitude has some level and the fewest weights are off; and how many.

    how: whether the finest step is wanted, and how many weights may be off; the first of equally
    good steps is taken, and no other is looked for if none is off. The index is -1 if no step will
    do.
    """
    finest, most = how
    low, high = preimage(bits, storage)
    best, n_off = -1, most + 1
    for i in range(1, N_LEVELS):
        level = LEVELS[N_LEVELS - i if finest else i]
        at = np.searchsorted(steps, low / level * (1 - _SLACK))
        while at < steps.size and steps[at] * level <= high * (1 + _SLACK):
            missed = _n_missed(words, steps[at], n_off - 1, storage)
            if missed < n_off:
                best, n_off = at, missed
            if missed == 0:
                return best, 0
            at += 1
    return best, n_off


@inner
def _pick(words: Words, steps: F64Array, search: Search, storage: Storage) -> tuple[int, int]:
    """The step of a block and how many weights are off its grid; -1 and all of them, or 0 zeros."""
    largest, n_nonzero = 0, 0
    for i in range(words.size):
        bits = _bits(words[i], storage)
        largest = max(largest, bits)
        n_nonzero += bits > 0
    if largest == 0:
        return -1, 0
    if largest >= storage.non_finite:
        return -1, words.size
    best, n_off = _step_for(words, largest, (search.finest, 0), steps, storage)
    most = min(search.most_off, n_nonzero // 8)
    if best >= 0 or most == 0:
        return best, n_off if best >= 0 else words.size
    n_off = most + 1
    for i in range(words.size):  # any of which may be on the grid
        bits = _bits(words[i], storage)
        if bits > 0:
            at, missed = _step_for(words, bits, (search.finest, n_off - 1), steps, storage)
            if at >= 0 and missed < n_off:
                best, n_off = at, missed
    return best, n_off if best >= 0 else words.size


@kernel
def read_blocks(
    words: Words,
    storage: Storage,
    steps: F64Array,
    search: Search,
    codes: NDArray[np.uint8],
    fits: tuple[NDArray[np.int8], NDArray[np.int16]],
) -> int:
    """Steps and codes of consecutive blocks; the number of weights off the grid of their block.

    words (n,); steps ascending; codes (n,) with sign, `OFF_GRID` for weights off the grid and all
    weights of blocks without one; fits: status, and index of the step or -1, (n_blocks,) each.
    """
    status, picks = fits
    length, n_failed, n_off = words.size // status.size, 0, 0
    for block in range(status.size):
        part = words[block * length : (block + 1) * length]
        # Where several blocks in a row have none, none is searched for long.
        limited = Search(search.finest, search.most_off if n_failed < 4 else 0)
        pick, missed = _pick(part, steps, limited, storage)
        picks[block] = pick
        if pick >= 0:
            status[block] = PATCHED if missed else ON_GRID
            n_off += missed
        else:
            status[block] = NONE if missed else ZERO
        n_failed = n_failed + 1 if status[block] == NONE else 0
        for i in range(length):
            level = 0
            if status[block] == NONE:
                level = -1
            elif pick >= 0:
                level = level_of(_bits(part[i], storage), steps[pick], storage)
            sign = 8 if np.int64(part[i]) & np.int64(storage.sign) else 0
            codes[block * length + i] = OFF_GRID if level < 0 else level + sign
    return n_off


@kernel
def step_intervals(
    words: Words, storage: Storage, finest: bool, ends: tuple[F64Array, F64Array], top: F64Array
) -> None:
    """Steps of any size that explain each block, its largest weight at the highest level (lowest).

    words (n,); ends: lower and upper end, (n_blocks,) each, 0 if there is none; top (n_blocks,):
    the level of the largest weight.
    """
    low, high = ends
    length = words.size // top.size
    for block in range(top.size):
        part, largest = words[block * length : (block + 1) * length], 0
        low[block], high[block], top[block] = 0, 0, 0
        for i in range(length):
            largest = max(largest, _bits(part[i], storage))
        if largest == 0 or largest >= storage.non_finite:
            continue
        first, last = preimage(largest, storage)
        for i in range(1, N_LEVELS):
            level = LEVELS[N_LEVELS - i if finest else i]
            a, b = _narrowed(part, first / level, last / level, storage)
            if a <= b:
                low[block], high[block], top[block] = a, b, level
                break


@inner
def _narrowed(words: Words, low: float, high: float, storage: Storage) -> tuple[float, float]:
    """What all weights of a block leave of an interval of steps; its ends change places if none."""
    a, b = low, high
    for i in range(words.size):
        bits = _bits(words[i], storage)
        if bits > 0:
            index = _level(2 * magnitude(bits, storage) / (low + high))
            if index == 0:
                return 1.0, 0.0
            first, last = preimage(bits, storage)
            a, b = max(a, first / LEVELS[index]), min(b, last / LEVELS[index])
            if a > b:
                break
    return a, b

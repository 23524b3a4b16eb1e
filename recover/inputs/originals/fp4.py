"""Hidden 4-bit floats: tensors of floats that were MXFP4 or NVFP4 once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover.execution.tiles import Tile, available_cores, for_each_tile, whole_rows
from recover.inputs.originals._fit import NONE, ON_GRID, PATCHED, STORAGES
from recover.inputs.originals._fit_fp4 import LEVELS, Search, read_blocks, step_intervals
from recover.inputs.originals.codes import as_float64, rounded
from recover.inputs.originals.grid import (
    LONGEST_ROW,
    MOST_FAILED_RUNS,
    MOST_OFF_WEIGHTS,
    Floats,
    spread,
)
from recover.quants import TILE

F64Array = NDArray[np.float64]

MXFP4, NVFP4 = "MXFP4", "NVFP4"
GROUPS = {MXFP4: 32, NVFP4: 16}
"""Weights that share a scale."""

_ROWS_OF = {MXFP4: 32, NVFP4: 64}  # weights of a block of GGUF's types
_MOST_OFF = 2  # weights of a block
_N_SAMPLED_ROWS = 256
_SAMPLED_WEIGHTS = 256  # of each row, in one place
_FEWEST_NONZERO = 8
_FEWEST_ON = 0.9
_HIGHEST, _HIGH = 12, 8  # levels
_FEWEST_HIGHEST = 0.1
_LARGEST_SCALE = 448.0
_NEAR = 2.0**-8  # as far as blocks that have another step, too, may lead astray
_OF_LARGEST = 6 * _LARGEST_SCALE  # the largest weight over the scale of the matrix


@dataclass(frozen=True, eq=False)
class Steps:
    """All steps (halves of scales) that blocks can have.

    Attributes
    ----------
    type_name : str
        ``MXFP4`` or ``NVFP4``.
    common : float32
        The scale of the matrix; 1 of MXFP4.
    rounded_to : str or None
        The float type that products of the two scales were rounded to before they met a code; None
        if they were not.
    values : float64 (n,)
        Ascending.
    exact : float64 (n,)
        The same, not rounded.
    bytes : uint8 (n,)
        What GGUF stores for each.
    """

    type_name: str
    common: np.float32
    rounded_to: str | None
    values: F64Array
    exact: F64Array
    bytes: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Fp4Grid:
    """The 4-bit floats behind a tensor.

    Attributes
    ----------
    steps : Steps
        Which scales there are.
    search : Search
        Which of several possible scales a block gets.
    off_rows : int64 (n,)
        Rows with weights off the grid, ascending.
    n_off : int
        Weights off the grid, in blocks that have one.
    n_failed : int
        Blocks without a grid.
    """

    steps: Steps
    search: Search
    off_rows: NDArray[np.int64]
    n_off: int
    n_failed: int

    @property
    def group(self) -> int:
        """Weights that share a scale."""
        return GROUPS[self.steps.type_name]


class Blocks(NamedTuple):
    """Consecutive blocks, read."""

    codes: NDArray[np.uint8]
    """(n,) as stored, sign included; `recover.inputs.originals._fit_fp4.OFF_GRID` off the grid."""
    picks: NDArray[np.int16]
    """(n_blocks,) index of the step; -1 of zeros and where there is none."""
    status: NDArray[np.int8]
    """(n_blocks,) see `recover.inputs.originals._fit`."""
    n_off: int
    """Weights off the grid of their block."""


def power_steps() -> Steps:
    """Those of MXFP4: powers of two; see `recover.quants.mxfp4`."""
    byte = np.arange(255)
    values = np.ldexp(1.0, byte - 128)
    return Steps(MXFP4, np.float32(1), None, values, values, byte.astype(np.uint8))


def scaled_steps(common: np.float32, rounded_to: str | None) -> Steps:
    """Those of NVFP4: positive numbers of E4M3 times the scale of the matrix."""
    byte = np.arange(1, 127)
    exponent, mantissa = byte >> 3, byte & 7
    significand = np.where(exponent == 0, mantissa, mantissa + 8)
    exact = np.ldexp(significand * np.float64(common), np.maximum(exponent, 1) - 11)
    values = exact if rounded_to is None else rounded(2 * exact, rounded_to) / 2
    return Steps(NVFP4, common, rounded_to, values, exact, byte.astype(np.uint8))


def read_fp4(words: NDArray[Any], type_name: str, steps: Steps, search: Search) -> Blocks:
    """Steps and codes of whole blocks.

    Parameters
    ----------
    words : uint32 or uint16 (n,)
        Stored bits.
    type_name : str
        ``F32``, ``F16`` or ``BF16``.
    steps : Steps
        Which there are.
    search : Search
        Which of several is taken.
    """
    n_blocks = words.size // GROUPS[steps.type_name]
    codes = np.empty(words.size, np.uint8)
    status, picks = np.empty(n_blocks, np.int8), np.empty(n_blocks, np.int16)
    fits = status, picks
    missed = read_blocks(words, STORAGES[type_name], steps.values, search, codes, fits)
    return Blocks(codes, picks, status, missed)


def find_fp4(
    floats: Floats, wanted: str | None = None, *, n_threads: int | None = None
) -> Fp4Grid | None:
    """Look for 4-bit floats, and prove them on every weight.

    Parameters
    ----------
    floats : Floats
        Rows that are whole blocks.
    wanted : str, optional
        ``MXFP4`` or ``NVFP4``; default: either.
    n_threads : int, optional
        Default: the cores that this process may use.

    Returns
    -------
    Fp4Grid or None
        None if there is none, or what there is needs no 4-bit floats: integers up to 8 times a
        scale. A tensor without one costs little: some blocks are looked at first.
    """
    if floats.row_length > LONGEST_ROW:
        return None
    for type_name, find in ((MXFP4, _find_powers), (NVFP4, _find_scaled)):
        if wanted not in (None, type_name) or floats.row_length % _ROWS_OF[type_name]:
            continue
        blocks = _sampled(floats, type_name)
        steps = find(blocks, floats)
        if steps is not None:
            finest = _is_finest(blocks, floats.type_name, steps)
            return _prove(floats, steps, Search(finest, _MOST_OFF), n_threads)
    return None


def _sampled(floats: Floats, type_name: str) -> NDArray[Any]:
    """Blocks that tell something, of parts of some rows; (n_blocks, group)."""
    n, length, parts = min(floats.row_length, _SAMPLED_WEIGHTS), floats.row_length, []
    for i, row in enumerate(spread(floats.n_rows, _N_SAMPLED_ROWS)):
        place = (i * 37 % 64) * (length - n) // 64 // _SAMPLED_WEIGHTS * _SAMPLED_WEIGHTS
        start = row * length + place
        parts.append(floats.words(start, start + n))
    blocks = np.concatenate(parts).reshape(-1, GROUPS[type_name])
    sign = STORAGES[floats.type_name].sign
    tells = np.count_nonzero(blocks & blocks.dtype.type(sign - 1), axis=1) >= _FEWEST_NONZERO
    return blocks[tells]


def _find_powers(blocks: NDArray[Any], floats: Floats) -> Steps | None:
    """The steps of MXFP4 if most blocks have one, and not all are small integers."""
    steps = power_steps()
    if not len(blocks):
        return None
    read = read_fp4(blocks.reshape(-1), floats.type_name, steps, Search(False, 0))
    is_on = read.status == ON_GRID
    tops = _tops(read.codes, len(blocks))[is_on]
    return steps if 2 * tops.size > len(blocks) and _are_floats(tops) else None


def _tops(codes: NDArray[np.uint8], n_blocks: int) -> F64Array:
    """The highest level of each block."""
    highest: F64Array = LEVELS[codes & 7].reshape(n_blocks, -1).max(1)
    return highest


def _are_floats(tops: F64Array) -> bool:
    """Whether blocks need the levels of 4-bit floats: not all go up to 8 at most."""
    return bool(np.mean(tops == _HIGHEST) >= _FEWEST_HIGHEST)


def _is_finest(blocks: NDArray[Any], type_name: str, steps: Steps) -> bool:
    """Whether nearly all blocks have one of the two highest levels, whatever their step."""
    read = read_fp4(blocks.reshape(-1), type_name, steps, Search(False, 0))
    tops = _tops(read.codes, len(blocks))[read.status == ON_GRID]
    return bool(np.mean(tops >= _HIGH) >= _FEWEST_ON)


def _find_scaled(blocks: NDArray[Any], floats: Floats) -> Steps | None:
    """The steps of NVFP4 if most blocks have one, for the scale of the matrix that they tell."""
    if not len(blocks):
        return None
    low, high, tops = np.empty((3, len(blocks)))
    words, storage = blocks.reshape(-1), STORAGES[floats.type_name]
    step_intervals(words, storage, False, (low, high), tops)
    is_on = low > 0
    if 2 * np.count_nonzero(is_on) <= len(blocks) or not _are_floats(tops[is_on]):
        return None
    step_intervals(words, storage, True, (low, high), tops)
    told, low, high = words.reshape(blocks.shape)[is_on], low[is_on], high[is_on]
    largest = _largest(floats)
    for rounded_to in (None, floats.type_name):
        best, most = None, float(_FEWEST_ON * len(told))
        for common in _commons(low, high, largest, rounded_to):
            steps = scaled_steps(common, rounded_to)
            read = read_fp4(told.reshape(-1), floats.type_name, steps, Search(True, 0))
            n_on = int(np.count_nonzero(read.status == ON_GRID))
            if n_on > most:
                best, most = steps, n_on
        if best is not None:
            return best
    return None


def _largest(floats: Floats) -> float:
    """The largest magnitude of a tensor, as long as it is finite; by its bits."""
    storage, highest = STORAGES[floats.type_name], 0
    for start in range(0, floats.n_weights, TILE):
        words = floats.words(start, min(start + TILE, floats.n_weights))
        bits = words & words.dtype.type(storage.sign - 1)
        highest = max(highest, int(bits[bits < storage.non_finite].max(initial=0)))
    found = np.array([highest], f"<u{words.itemsize}")
    return float(as_float64(found, floats.type_name)[0])


def _commons(
    low: F64Array, high: F64Array, largest: float, rounded_to: str | None
) -> Iterator[np.float32]:
    """Scales of a matrix that would explain the steps of its blocks, the simplest first.

    Blocks' steps lie between `low` and `high`. What they tell is the scale but for powers of two:
    then the largest block scale is as large as E4M3 allows, unless 1 will do.
    """
    most = 2 * float(high.max())
    if rounded_to is not None:
        low, high = _before_rounding(low, high, rounded_to)
    if not low.size:
        return
    first, last = _most_covered(low, high)
    middle = np.exp2((first + last) / 2)
    limit = _LARGEST_SCALE * (1 + 2.0**-8)
    of_all, of_told = (int(np.ceil(np.log2(each / middle / limit))) for each in (largest / 6, most))
    for power in (of_all, of_told, of_all + 1):  # the largest weight of all may have been touched
        below, above = np.exp2(first + power), np.exp2(last + power)
        nearest, of_largest = np.exp2(np.rint(np.log2(below * above) / 2)), largest / _OF_LARGEST
        if below * (1 - _NEAR) <= nearest <= above * (1 + _NEAR):
            yield from (np.float32(1), np.float32(nearest))
        if below * (1 - _NEAR) <= of_largest <= above * (1 + _NEAR):
            yield from (np.float32(of_largest), _nearest(of_largest, below, above))
        yield _shortest(below, above)


def _before_rounding(low: F64Array, high: F64Array, type_name: str) -> tuple[F64Array, F64Array]:
    """Which numbers are rounded to those between two others, if one number is there at all."""
    middle = rounded(low + high, type_name) / 2
    unit = np.ldexp(1.0, np.frexp(middle)[1] - 1 - STORAGES[type_name].mantissa_bits)
    there = (low <= middle) & (middle <= high)
    return (middle - unit / 2)[there], (middle + unit / 2)[there]


def _most_covered(low: F64Array, high: F64Array) -> tuple[float, float]:
    """Logarithms, but for integers, of the interval that explains the most steps.

    Each step is one of the eight significands of E4M3 times the common scale and a power of two.
    """
    shifts = np.log2(np.arange(8, 16) / 8)
    starts = np.mod(np.log2(low)[:, None] - shifts, 1.0).reshape(-1)
    lengths = np.repeat(np.log2(high / low), shifts.size)
    starts = np.concatenate((starts - 1, starts))  # from the octave below into this one
    ends = starts + np.concatenate((lengths, lengths))
    places = np.concatenate((starts, ends))
    changes = np.repeat((1, -1), starts.size)
    order = np.lexsort((-changes, places))
    covered = np.cumsum(changes[order])
    best = np.flatnonzero(covered[:-1] == covered.max(initial=0))
    widest = best[np.argmax(places[order][best + 1] - places[order][best])]
    return float(places[order][widest]), float(places[order][widest + 1])


def _nearest(number: float, low: float, high: float) -> np.float32:
    """The float32 number between two others that is the nearest to a third; near them if none is.

    Where decoders rounded twice, the true scale does not explain all weights, but its neighbour.
    """
    found = np.float32(min(max(number, low), high))
    if found < low:
        return np.nextafter(found, np.float32(np.inf))
    return np.nextafter(found, np.float32(0)) if found > high else found


def _shortest(low: float, high: float) -> np.float32:
    """The float32 number with the fewest digits between two others; near them if there is none."""
    exponent = np.frexp(low)[1] - 1
    for n_bits in range(24):
        unit = 2.0 ** float(exponent - n_bits)
        number = float(np.ceil(low / unit)) * unit
        if number <= high:
            return np.float32(number)
    return np.float32((low + high) / 2)


def _prove(floats: Floats, steps: Steps, search: Search, n_threads: int | None) -> Fp4Grid | None:
    """Read every block of the tensor, a tile at a time."""
    is_off = np.zeros(floats.n_rows, np.bool_)
    counts: list[tuple[int, int]] = []

    def work(tile: Tile) -> None:
        read = read_fp4(floats.words(tile.start, tile.end), floats.type_name, steps, search)
        first = tile.start // floats.row_length
        n_rows = (tile.end - tile.start) // floats.row_length
        failed = read.status == NONE
        off = (failed | (read.status == PATCHED)).reshape(n_rows, -1).any(1)
        is_off[first : first + n_rows] = off
        counts.append((read.n_off, int(np.count_nonzero(failed))))

    workers = [work] * (n_threads or available_cores())
    for_each_tile([floats.n_weights], workers, steps=[whole_rows(floats.row_length)])
    n_off, n_failed = (sum(each) for each in zip(*counts, strict=True))
    n_blocks = floats.n_weights // GROUPS[steps.type_name]
    if n_failed > MOST_FAILED_RUNS * n_blocks or n_off > MOST_OFF_WEIGHTS * floats.n_weights:
        return None
    return Fp4Grid(steps, search, np.flatnonzero(is_off), n_off, n_failed)

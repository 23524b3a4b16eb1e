"""Codes that stand for levels times a scale: what they say, by tables.

Everything that depends on the code is a table in units of the scale. Several weights share a scale:
those of a run along a row.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import erf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import inner, kernel
from recover.containers.huggingface.formats._coded import Coded, Runs
from recover.containers.huggingface.formats._grid import SOFT
from recover.quants import F32Array, IntervalType, Stated, U8Array

N_CODES = 256

_VALUE, _LOWER, _UPPER, _VARIANCE, _SQUARE = range(5)

# Products of an edge and a scale are rounded to float32, and so may the edge and the scale be.
_ROUNDING = 2.0**-21
# In how many parts cells are cut to integrate over them.
_N_PARTS = 200
HALF_UNIT = 2.0**-8
"""Half a unit in the last place of a bfloat16 number, over the power of two below it."""
_ONE = np.float32(1)
TINY = np.float32(2.0**-126)
"""Encoders may take numbers below it to be 0."""


class Scales(NamedTuple):
    """The scales of a range of weights, one per run of weights; each (n,) float32.

    The encoder's scale lies between `low` and `high`. Weights whose `high` is not above 0, or not
    finite, are told nothing about.
    """

    stored: F32Array
    low: F32Array
    high: F32Array
    table: U8Array
    """Which of the tables holds for the weights."""

    @classmethod
    def exact(cls, stored: F32Array, table: U8Array | None = None) -> "Scales":
        """Scales that the encoder had as they are stored; of the first table if none is given."""
        if table is None:
            table = np.zeros(stored.size, np.uint8)
        return cls(stored, stored, stored, table)


@dataclass(frozen=True, kw_only=True)
class LevelMatrix:
    """A matrix of levels times scales: see `recover.containers.huggingface.formats.base.Matrix`.

    Attributes
    ----------
    tell : callable
        ``tell(start, end, stated)`` fills `stated` for a range of weights, as if its codes had
        cells.
    decode : callable
        ``decode(start, end) -> Coded``
    softness : float
        Mean square error over that of rounding, where codes have no cells.
    beyond : float or None
        Of encoders that may have clipped the largest weights: how much larger the mean square error
        of weights without a bound is than `tell` says, over their squared values. 0 until it is
        measured beside another input; None of encoders that clip nothing.
    may_be_f16 : bool
        See `recover.containers.huggingface.formats.base.may_be_f16`.
    """

    n_rows: int
    row_length: int
    type: IntervalType
    has_cells: bool
    seen_as: str
    leaves: frozenset[str]
    label: str
    tell: Callable[[int, int, Stated], None]
    decode: Callable[[int, int], Coded]
    softness: float = SOFT
    beyond: float | None = None
    may_be_f16: bool = False

    @property
    def noise(self) -> float | None:
        """Mean square error of codes that have no cells, over that of rounding."""
        return None if self.has_cells else self.softness

    def with_noise(self, noise: float) -> "LevelMatrix":
        """The same with errors that were measured beside another input."""
        return replace(self, softness=noise)

    def with_beyond(self, beyond: float) -> "LevelMatrix":
        """The same with the errors of clipped weights that were measured beside another input."""
        return replace(self, beyond=beyond)

    def intervals(self, start: int, end: int, out: Stated) -> None:
        """See `recover.containers.huggingface.formats.base.Matrix`."""
        self.tell(start, end, out)
        if self.beyond:
            _add_beyond(np.float32(self.beyond), out)
        if not self.has_cells:
            out.lower[:], out.upper[:] = -np.inf, np.inf
            out.variance[:] *= np.float32(self.softness)

    def coded(self, start: int, end: int) -> Coded:
        """See `recover.containers.huggingface.formats.base.Matrix`."""
        return self.decode(start, end)


def in_units(levels: NDArray[np.float64]) -> F32Array:
    """Levels of some codes (n,) as `Coded` has them (256,); those of other codes are no number."""
    found = np.full(N_CODES, np.nan, np.float32)
    found[: levels.size] = levels
    found.flags.writeable = False
    return found


def deviation_of(n: int) -> float:
    """The standard deviation of normal weights, over the largest magnitude that is typical of `n`.

    That is the median of the distribution of the largest one, but for terms of the order of 1 / n.
    """
    # It takes as long to load as all formats of this package.
    from statistics import NormalDist

    return 1 / NormalDist().inv_cdf(1 - math.log(2) / (2 * n))


Density = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Of weights, in units of the scale; need not sum to 1."""


def normal(deviation: float) -> Density:
    """The density of normal weights."""
    return lambda x: np.exp(-0.5 * np.square(x / deviation))


def normal_beside(most: float, n: int) -> Density:
    """The density of normal weights of which the largest of each `n` is half of `most` or more.

    Its logarithm is spread evenly up to there, as it is over a scale that is the power of two next
    to it. One of the `n` weights is the largest, the others are smaller.
    """
    largest = most * np.exp2((np.arange(_N_PARTS) + 0.5) / _N_PARTS - 1)
    deviations = largest * deviation_of(n)
    within = np.array([erf(each / 2**0.5) for each in largest / deviations])
    per_one = 2 / np.sqrt(2 * np.pi) / deviations / within

    def density(x: NDArray[np.float64]) -> NDArray[np.float64]:
        size = np.abs(x)[..., None]
        others = np.exp(-0.5 * np.square(size / deviations)) * per_one * (size < largest)
        size = size[..., 0]
        is_one = (size >= most / 2) & (size < most)
        one = np.where(is_one, 1 / np.maximum(size, most / 2) / math.log(2), 0)
        return (others.mean(-1) * (n - 1) + one) / n

    return density


def nearest_cells(levels: NDArray[np.float64], largest: float) -> NDArray[np.float64]:
    """The cells of codes that were given to the weights nearest to their levels.

    Parameters
    ----------
    levels : float64 (256,)
        By code, in units of the scale; NaN where a code is no number or never given.
    largest : float
        The largest magnitude that an encoder rounds to one of the two outermost levels; infinite if
        it clips.

    Returns
    -------
    float64 (2, 256)
        Lower and upper edges in units of the scale; infinite where nothing is known.
    """
    is_known = np.isfinite(levels)
    known = np.unique(levels[is_known])
    edges = np.concatenate(([-largest], (known[1:] + known[:-1]) / 2, [largest]))
    at = np.searchsorted(known, levels[is_known])
    cells = np.full((2, N_CODES), [[-np.inf], [np.inf]])
    cells[:, is_known] = edges[at], edges[at + 1]
    return cells


def rounded_twice(levels: NDArray[np.float64], cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cells of weights whose quotient may have been rounded to bfloat16 before.

    Half-way between two codes a number goes to the even one, so that the cells of even codes are
    wider by half a unit in the last place of a bfloat16 number, and those of odd ones narrower, if
    it was.
    """
    is_inner = np.abs(cells) < np.max(levels[np.isfinite(levels)])
    is_wider = is_inner & (cells != 0) & (np.arange(N_CODES) % 2 == 0)
    exponent = np.floor(np.log2(np.where(is_wider, np.abs(cells), 1)))
    outward = np.where(is_wider, np.exp2(exponent) * HALF_UNIT, 0)
    return cells + outward * [[-1], [1]]


def table_of(
    levels: NDArray[np.float64],
    cells: NDArray[np.float64],
    slack: float = 0.0,
    likely: NDArray[np.float64] | None = None,
    weights: Density | None = None,
) -> F32Array:
    """Everything that the kernel needs of codes, in units of the scale.

    Where a cell is open, it is taken to reach as far beyond its level as before it.

    Parameters
    ----------
    levels : float64 (256,)
        By code.
    cells : float64 (2, 256)
        As of `nearest_cells`.
    slack : float
        How far the encoder's own arithmetic may be off, relative to the weight.
    likely : float64 (2, 256), optional
        What the errors are typical of, if not `cells`.
    weights : Density, optional
        Of the weights. None if they are anywhere in a cell: where cells are small next to them.

    Returns
    -------
    float32 (5, 256)
        Level, lower and upper edge, mean square error, and square of the level.
    """
    near, far = cells if likely is None else likely
    with np.errstate(invalid="ignore"):
        reach = np.array([levels - near, far - levels])
    reach = np.where(np.isfinite(reach), reach, reach[::-1])
    is_known = np.isfinite(reach).all(0)
    below, above = np.where(is_known, reach, 0)
    middles = np.linspace(-below, above, _N_PARTS + 1)
    off = (middles[1:] + middles[:-1]) / 2
    places = off + np.where(is_known, levels, 0)
    density = np.ones_like(places) if weights is None else weights(places)
    variance = np.sum(density * off**2, 0) / np.maximum(np.sum(density, 0), 1e-300)
    variance[~is_known] = np.inf
    outward = np.abs(cells) * (slack + _ROUNDING) * [[-1], [1]]
    squares = np.square(np.where(is_known, levels, 0))
    table = np.stack((levels, *(cells + outward), variance, squares)).astype(np.float32)
    table.flags.writeable = False
    return table


def state(
    codes: U8Array,
    scales: Scales,
    runs: Runs,
    tables: F32Array,
    stated: Stated,
    *,
    factor: np.float32 = _ONE,
    margin: np.float32 = TINY,
) -> None:
    """Fill `stated` for a range of weights.

    Parameters
    ----------
    codes : uint8 (n,)
        Of the range.
    scales : Scales
        Of the runs, from that on which the range's first row begins with.
    runs : Runs
        Which weights share a scale.
    tables : float32 (n_tables, 5, 256)
        See `table_of`.
    stated : Stated
        To be filled, (n,) each.
    factor : float32
        Multiplies the product of level and scale.
    margin : float32
        By how much all bounds are widened.
    """
    _state(codes, scales, runs[:3], tables, stated, (factor, margin))


@kernel
def _state(
    codes: U8Array,
    scales: Scales,
    runs: tuple[int, int, int],
    tables: F32Array,
    stated: Stated,
    settings: tuple[np.float32, np.float32],
) -> None:
    """See `state`."""
    row_length, width, column = runs
    per_row = (row_length + width - 1) // width
    row, begin = 0, 0
    while begin < codes.size:
        run = column // width
        end = min(begin + min((run + 1) * width, row_length) - column, codes.size)
        at = row * per_row + run
        low, high, table = scales.low[at], scales.high[at], tables[scales.table[at]]
        if high > 0 and high < np.float32(np.inf) and low >= 0:
            _state_run(codes, begin, end, (scales.stored[at], low, high, *settings), table, stated)
        else:
            for i in range(begin, end):
                stated.value[i] = table[_VALUE, codes[i]] * scales.stored[at] * settings[0]
                stated.lower[i] = -np.inf
                stated.upper[i] = np.inf
                stated.variance[i] = np.inf
        column += end - begin
        if column == row_length:
            row, column = row + 1, 0
        begin = end


@inner
def _state_run(
    codes: U8Array,
    begin: int,
    end: int,
    scale: tuple[np.float32, np.float32, np.float32, np.float32, np.float32],
    table: F32Array,
    stated: Stated,
) -> None:
    """Weights `begin` to `end`, which share a scale: stored, lowest, highest; factor and margin."""
    value, lower, upper, variance = stated
    stored, low, high, factor, margin = scale
    square = high * high
    if low == high:  # the same with fewer steps
        for i in range(begin, end):
            q = codes[i]
            value[i] = table[_VALUE, q] * stored * factor
            lower[i] = table[_LOWER, q] * low - margin
            upper[i] = table[_UPPER, q] * low + margin
            variance[i] = table[_VARIANCE, q] * square
        return
    spread = (high - low) * (high - low) / np.float32(12)
    for i in range(begin, end):
        q = codes[i]
        value[i] = table[_VALUE, q] * stored * factor
        edge = table[_LOWER, q]
        lower[i] = min(edge * low, edge * high) - margin
        edge = table[_UPPER, q]
        upper[i] = max(edge * low, edge * high) + margin
        variance[i] = table[_VARIANCE, q] * square + table[_SQUARE, q] * spread


def state_largest(
    codes: U8Array,
    block: int,
    place: tuple[int, int],
    ends: tuple[int, int],
    largest: tuple[F32Array, F32Array],
    stated: Stated,
    *,
    is_sure: bool = True,
) -> None:
    """State what follows from one of the weights with an outermost code being the block's largest.

    If there is one, its size is known; of several it is the size of one, whichever.

    Parameters
    ----------
    codes : uint8 (n,)
        Of whole blocks; the last one may be shorter.
    block : int
        Weights of a block.
    place : tuple of 2 int
        The first of these weights that is stated, and one past the last.
    ends : tuple of 2 int
        The lowest and the highest code.
    largest : tuple of 2 float32 (n_blocks,)
        Between which numbers the largest magnitude is, of each block; infinite if it is not known.
        Of damaged blocks, where it would be negative, nothing is said.
    stated : Stated
        What was stated of the weights.
    is_sure : bool
        If not, only the errors to expect are told.
    """
    _state_largest(codes, (block, *place), ends, (*largest, is_sure), stated)


@kernel
def _state_largest(
    codes: U8Array,
    places: tuple[int, int, int],
    ends: tuple[int, int],
    largest: tuple[F32Array, F32Array, bool],
    stated: Stated,
) -> None:
    """See `state_largest`."""
    block, start, end = places
    lows, highs, is_sure = largest
    lowest, highest = np.uint8(ends[0]), np.uint8(ends[1])
    for b in range(lows.size):
        low, high = lows[b], highs[b]
        if not -high <= low <= high < np.float32(np.inf):
            continue
        i, upto, n_found = b * block, min((b + 1) * block, codes.size), np.uint32(0)
        for q in codes[i:upto]:
            n_found += np.uint32((q == lowest) | (q == highest))
        least = low if n_found == 1 else np.float32(0)
        n_left = n_found
        while n_left > 0:
            if (codes[i] == lowest) | (codes[i] == highest):
                n_left -= np.uint32(1)
                if start <= i < end:
                    known = _square_error(low, high, abs(stated.value[i - start]))
                    share = (known - stated.variance[i - start]) / np.float32(n_found)
                    stated.variance[i - start] += share
                    if is_sure:
                        _confine(i - start, codes[i] == lowest, least, high, stated)
            i += 1


@inner
def _confine(at: int, is_low: bool, least: np.float32, most: np.float32, stated: Stated) -> None:
    """Say that the size of a weight is between two numbers."""
    stated.lower[at] = max(stated.lower[at], -most if is_low else least)
    stated.upper[at] = min(stated.upper[at], -least if is_low else most)


@inner
def _square_error(low: np.float32, high: np.float32, value: np.float32) -> np.float32:
    """Mean square error of a value for numbers that are anywhere between two bounds."""
    half, off = (high - low) / np.float32(2), (high + low) / np.float32(2) - value
    return half * half / np.float32(3) + off * off


@kernel
def _add_beyond(beyond: np.float32, stated: Stated) -> None:
    """Errors of weights without a bound become larger, by a share of their squared values."""
    for i in range(stated.value.size):
        if stated.lower[i] == -np.inf or stated.upper[i] == np.inf:
            stated.variance[i] += beyond * stated.value[i] * stated.value[i]


@kernel
def split_pairs(packed: U8Array, high_first: bool, codes: U8Array) -> None:
    """Bytes (n / 2,) to their halves (n,), of 4 bits each."""
    pairs, low = codes[: codes.size // 2 * 2].view(np.uint16), np.uint16(15)
    if high_first:
        for i in range(pairs.size):
            byte = np.uint16(packed[i])
            pairs[i] = (byte >> np.uint16(4)) | ((byte & low) << np.uint16(8))
    else:
        for i in range(pairs.size):
            byte = np.uint16(packed[i])
            pairs[i] = (byte & low) | ((byte >> np.uint16(4)) << np.uint16(8))

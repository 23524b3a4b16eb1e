"""Codes that ik_llama.cpp's encoders chose before they changed the scale.

The encoders of IQ2_K to IQ6_K and of IQ2_KS to IQ5_KS end alike (``quantize_row_iq4_k_impl_bs16``,
for instance): a scale D is fixed for a superblock (of the KS types for a row), the integer scale l
of each sub-block is rounded, and then every weight gets the level nearest to x / (D l). Only then D
is fitted to the weights once more, perhaps multiplied by a constant, and stored as d. So x lies
between ``d l rho e`` for the two edges e of its code's cell, where ``rho = D / d`` is one unknown
number for all of the superblock. How far from 1 it was ever found is measured: on trained weights
with and without importance matrices, and on random ones with light and heavy tails, uneven, sparse
and of one sign. The other inputs narrow it (see `recover.evidence.hidden`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from recover._compiled.across import add_up
from recover._compiled.float16 import f32_from_bits, read_f16
from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import gather, load_bytes, splat, store, where
from recover.quants._fields import double_word
from recover.quants.base import F32Array, U8Array
from recover.quants.interval import BlockIntervals, Hidden, Stated

IK = "ik_llama.cpp"

LEVELS_2 = (-31, -13, 1, 17)
LEVELS_3 = (-63, -40, -23, -10, 1, 13, 28, 47)
LEVELS_4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
LEVELS_5 = (
    -126,
    -114,
    -103,
    -92,
    -83,
    -74,
    -65,
    -57,
    -50,
    -43,
    -36,
    -30,
    -24,
    -18,
    -12,
    -6,
    -1,
    5,
    11,
    17,
    23,
    29,
    36,
    43,
    51,
    59,
    68,
    77,
    87,
    97,
    109,
    121,
)

SUPERBLOCK = 256
_LEVEL, _LOWER, _UPPER, _VARIANCE = range(4)

_ROUNDING = np.float32(2.0**-11)  # of d to f16
_SMALLEST_STEP = np.float32(3.1e-8)  # half a step of the smallest f16 numbers
_RELATIVE = np.float32(2.0**-20)  # the encoder's arithmetic, and this one's
_ABSOLUTE = np.float32(2.0**-12)  # the same around 0, in levels
_FAR = np.float32(np.inf)


class Unit(NamedTuple):
    """Where a superblock has the scale d that its integer scales are multiplied by."""

    at: int
    """Position in the block with the header of its row."""
    is_f16: bool
    """Whether it is f16; otherwise f32."""


class Places(NamedTuple):
    """Where in their cells weights lie: measured on trained weights, in units of a cell's width.

    Of a cell with one edge the width is twice the distance of its level to the edge. There the
    density is normal.
    """

    noise: float = 1 / 12
    """Mean square error where the cell has two edges."""
    curve: float = 0.0
    """Coefficient of the square in the logarithm of the density there. It is what a code alone
    says: the distribution of the weights is taken out."""
    end_noise: float = 1 / 12
    """Mean square error where the cell has one edge."""
    end_growth: float = 0.0
    """That grows as this power of the size of the group's levels."""
    size: float = 1.0
    """Their usual root mean square."""

    @property
    def density(self) -> tuple[tuple[float, ...], ...]:
        """As of an `IntervalType`, whose steps follow from the errors."""
        normal, reach = -0.5 / self.noise, 4 * self.noise**0.5
        return (
            (0.0, self.curve, -np.inf, np.inf),
            (0.0, normal, -reach, np.inf),
            (0.0, normal, -np.inf, reach),
        )


UNIFORM = Places()
_SHIFT = math.pi**2 / 18
_USUAL = 0.7  # the usual integer scale over the largest


class Coarseness(NamedTuple):
    """How coarse the integer scales of sub-blocks are, see `recover.estimators._coarse`."""

    step: float
    """The distance of two of them."""
    half_range: float
    """Of the levels, in units of the steps at their ends."""
    usual: float
    """That over the usual integer scale, in units of `step`: what `Places` were measured at."""
    noise: float
    """Of `Places`, over that of weights anywhere in their cells."""
    end_noise: float
    """Of `Places`."""


def coarseness_of(levels: tuple[int, ...], step: int, largest: int, places: Places) -> Coarseness:
    """How coarse integer scales are that are `step` apart, and at most `largest`."""
    ends = (levels[1] - levels[0] + levels[-1] - levels[-2]) / 2
    half_range = (levels[-1] - levels[0]) / 2 / ends
    usual = half_range * step / (_USUAL * largest)
    return Coarseness(step, half_range, usual, places.noise / UNIFORM.noise, places.end_noise)


def tables_of(levels: tuple[int, ...], shift: int | None, places: Places) -> F32Array:
    """What each code says: level, edges of its cell, mean square error; (4, 256), in levels.

    Parameters
    ----------
    levels : tuple of int
        Of the codes from 0 on.
    shift : int or None
        The same codes above these stand for levels that are greater by so much; None if there are
        none.
    places : Places
        Where in their cells weights lie.
    """
    n = len(levels)
    table = np.zeros((4, 256))
    table[_LOWER], table[_UPPER] = -np.inf, np.inf
    plain = np.array(levels, np.float64)
    middle = (plain[1:] + plain[:-1]) / 2
    outer = [plain[0] - (middle[0] - plain[0]), plain[-1] + (plain[-1] - middle[-1])]
    width = np.diff(np.concatenate(([outer[0]], middle, [outer[1]])))
    for first, more in ((0, 0), (n, shift)) if shift is not None else ((0, 0),):
        table[_LEVEL, first : first + n] = plain + more
        table[_LOWER, first + 1 : first + n] = middle + more
        table[_UPPER, first : first + n - 1] = middle + more
        table[_VARIANCE, first : first + n] = places.noise * width**2
        table[_VARIANCE, [first, first + n - 1]] = places.end_noise * width[[0, -1]] ** 2
    found = table.astype(np.float32)
    found.flags.writeable = False
    return found


@inner
def read_unit(block: U8Array, at: int, is_f16: bool) -> np.float32:
    """The scale d of a superblock."""
    if is_f16:
        return read_f16(block, at)
    return f32_from_bits(np.uint32(double_word(block, at)))


@kernel
def fill_ranges(
    raw: U8Array,
    part_size: int,
    unit: Unit,
    reach: tuple[np.float32, np.float32],
    low: F32Array,
    high: F32Array,
) -> None:
    """The least and the largest D over the stored d, of each superblock.

    A coarse f16 number may be further away.
    """
    for b in range(low.size):
        slack = _RELATIVE
        if unit.is_f16:
            d = abs(read_f16(raw, part_size * b + unit.at))
            slack += _ROUNDING + (_SMALLEST_STEP / d if d > 0 else _FAR)
        low[b] = max(reach[0] * (np.float32(1) - slack), np.float32(0))
        high[b] = reach[1] * (np.float32(1) + slack)


@inner
def _coarse_factors(integer: np.float32, coarseness: Coarseness) -> tuple[np.float32, np.float32]:
    """What multiplies the square errors of codes with both edges, and of those with one.

    The rounding of a small integer scale moves weights in their cells, to anywhere at last. End
    codes are off by up to ``r / 2`` of the half of the scales that were rounded down: the mean
    square of that, ``r^2 / 24``, adds to theirs.
    """
    r = np.float32(coarseness.half_range * coarseness.step) / max(
        integer, np.float32(2 * coarseness.step)
    )
    r, usual = r * r, np.float32(coarseness.usual**2)
    one, shift = np.float32(1), np.float32(_SHIFT)
    left = (one + shift * usual) / (one + shift * r)
    anywhere = one / np.float32(coarseness.noise)
    more = one / np.float32(24 * coarseness.end_noise)
    return anywhere + (one - anywhere) * left, (one + more * r) / (one + more * usual)


@kernel
def fill_units(raw: U8Array, part_size: int, unit: Unit, d: F32Array) -> None:
    """The scale d of each superblock."""
    for b in range(d.size):
        d[b] = read_unit(raw, part_size * b + unit.at, unit.is_f16)


@kernel
def fill_stated(
    codes: U8Array,
    scale: F32Array,
    unit: F32Array,
    tables: F32Array,
    growth: tuple[np.float32, np.float32],
    coarseness: Coarseness,
    stated: Stated,
) -> None:
    """Values ``scale * level``, and the cells if the codes were chosen with these scales.

    A scale whose square is 0 or infinite proves nothing. `unit` has the scale of each superblock,
    `growth` half the power and the square of the size of `Places`.
    """
    value, lower, upper, variance = stated
    for g in range(scale.size):
        s = scale[g]
        q = load_bytes(codes, 16 * g)
        store(value, 16 * g, gather(tables[0], q) * s)
        if not 0 < s * s < _FAR:
            for i in range(16 * g, 16 * g + 16):
                lower[i], upper[i], variance[i] = -_FAR, _FAR, _FAR
            continue
        below, above = gather(tables[1], q) * s, gather(tables[2], q) * s
        if s < 0:
            below, above = above, below
        slack = abs(s) * _ABSOLUTE
        store(lower, 16 * g, below - slack)
        store(upper, 16 * g, above + slack)
        level, error = gather(tables[0], q), gather(tables[3], q) * (s * s)
        size = add_up(level * level) / (np.float32(16) * growth[1])
        factor = min(max(size, np.float32(0.1)), np.float32(10)) ** growth[0]
        closed, opened = _coarse_factors(abs(s / unit[g // 16]), coarseness)
        is_open = (gather(tables[1], q) == -_FAR) | (gather(tables[2], q) == _FAR)
        error = error * where(is_open, splat(opened * factor), splat(closed))
        store(variance, 16 * g, where(error > np.float32(0), error, _FAR))


Unpack = Callable[[U8Array, U8Array, F32Array], None]


def _state(
    unpack: Unpack,
    part_size: int,
    unit: Unit,
    tables: F32Array,
    growth: tuple[np.float32, np.float32],
    coarseness: Coarseness,
    raw: U8Array,
    stated: Stated,
) -> None:
    n = stated.value.size
    codes, scale = np.empty(n, np.uint8), np.empty(n // 16, np.float32)
    unpack(raw, codes, scale)
    d = np.empty(n // SUPERBLOCK, np.float32)
    fill_units(raw, part_size, unit, d)
    fill_stated(codes, scale, d, tables, growth, coarseness, stated)


def _ranges(
    part_size: int,
    unit: Unit,
    reach: tuple[np.float32, np.float32],
    raw: U8Array,
    low: F32Array,
    high: F32Array,
) -> None:
    fill_ranges(raw, part_size, unit, reach, low, high)


def hidden_scale_type(
    name: str,
    type_id: int | None,
    type_size: int,
    *,
    unpack: Unpack,
    levels: tuple[int, ...],
    shift: int | None,
    unit: Unit,
    reach: tuple[float, float],
    usual: tuple[float, float],
    file_types: dict[int, str],
    relative_mse: float,
    row_header: int = 0,
    integers: tuple[int, int] = (0, 1),
    places: Places = UNIFORM,
) -> BlockIntervals:
    """A type whose codes were chosen with a scale that was changed afterwards.

    Parameters
    ----------
    unpack : callable
        ``unpack(raw: uint8, codes: uint8 (n,), scale: float32 (n / 16,))``.
    levels, shift, places
        See `tables_of`.
    unit : Unit
        Where the stored scale is.
    integers : tuple of 2 int
        The distance of two integer scales of sub-blocks, and the largest one. Default: there are no
        sub-blocks.
    reach : tuple of 2 floats
        Between which two ratios of the encoder's scale to the stored one all are that were found,
        with a margin.
    usual : tuple of 2 floats
        The same of trained weights.
    """
    possible, typical = (
        partial(_ranges, row_header + type_size, unit, (np.float32(low), np.float32(high)))
        for low, high in (reach, usual)
    )
    tables = tables_of(levels, shift, places)
    coarseness = coarseness_of(levels, *integers, places)
    growth = np.float32(places.end_growth / 2), np.float32(places.size**2)
    return BlockIntervals(
        name=name,
        type_id=type_id,
        block_size=SUPERBLOCK,
        type_size=type_size,
        row_header=row_header,
        file_types=file_types,
        writer=IK,
        relative_mse=relative_mse,
        noise=places.noise,
        density=places.density,
        state=partial(_state, unpack, row_header + type_size, unit, tables, growth, coarseness),
        hidden=Hidden(possible, typical, reach, usual),
    )

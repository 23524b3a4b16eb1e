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

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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
_LEVEL, _LOWER, _UPPER, _SQUARE = range(4)

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
    """How far weights are from the levels of their codes, in units of a cell's width.

    The encoder's search makes the errors of large weights small. So the precision, one over the
    mean square error, grows with the part that a weight has in the square of its sub-block: alike
    on normal weights, on Laplacian ones and on those of Student's t with 4 degrees of freedom. Of a
    cell with one edge the width is twice the distance of its level to the edge.
    """

    precision: float = 12.0
    """Of weights next to 0 whose cells have two edges."""
    growth: float = 0.0
    """What is added where a level is as large as the root mean square of its sub-block's."""
    undone: float = 0.0
    """How fast the rounding of the scale undoes what the search did; `2 pi^2` if it moved weights
    normally."""
    end_noise: float = 1 / 12
    """Mean square error where the cell has one edge, if the scale was not rounded."""
    end_power: float = 0.0
    """That grows as this power of the size of the sub-block's levels."""
    end_coarse: float = 0.0
    """The part of what the rounding of the scale moves an end by that adds to it."""
    size: float = 1.0
    """The usual root mean square of levels beside ends."""

    @property
    def noise(self) -> float:
        """The mean square error of usual weights."""
        return 1 / (self.precision + self.growth)


UNIFORM = Places()
_ANYWHERE = np.float32(1 / 12)


class Behind(NamedTuple):
    """`Places` for the kernel, and the sub-blocks of the type."""

    precision: np.float32
    growth: np.float32
    undone: np.float32
    end_noise: np.float32
    half_power: np.float32
    end_coarse: np.float32
    square_size: np.float32
    step: np.float32
    """The distance of two integer scales."""
    n_wide: int
    """Groups of 16 weights that share one of them."""


def behind(places: Places, step: int, n_wide: int) -> Behind:
    """What `fill_stated` takes."""
    single = np.float32
    return Behind(
        single(places.precision),
        single(places.growth),
        single(places.undone),
        single(places.end_noise),
        single(places.end_power / 2),
        single(places.end_coarse),
        single(places.size**2),
        single(step),
        n_wide,
    )


def tables_of(levels: tuple[int, ...], shift: int | None) -> F32Array:
    """What each code says: level, edges of its cell, its squared width; (4, 256), in levels.

    Parameters
    ----------
    levels : tuple of int
        Of the codes from 0 on.
    shift : int or None
        The same codes above these stand for levels that are greater by so much; None if there are
        none.
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
        table[_SQUARE, first : first + n] = width**2
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


@kernel
def fill_units(raw: U8Array, part_size: int, unit: Unit, d: F32Array) -> None:
    """The scale d of each superblock."""
    for b in range(d.size):
        d[b] = read_unit(raw, part_size * b + unit.at, unit.is_f16)


@inner
def _mean_square(codes: U8Array, levels: F32Array, g: int, n_wide: int) -> np.float32:
    """Of the levels that share the scale of group `g`."""
    total = np.float32(0)
    first = g // n_wide * n_wide
    for i in range(first, first + n_wide):
        level = gather(levels, load_bytes(codes, 16 * i))
        total += add_up(level * level)
    return max(total / np.float32(16 * n_wide), np.float32(1))


@inner
def _errors(level: Any, square: Any, is_open: Any, size: np.float32, of: Any) -> Any:
    """Mean square errors of a group, in levels.

    The rounding of the integer scale l moves a weight by up to ``level / (2 l)``, with the variance
    ``level^2 / (12 l^2)``. Of the places in a cell that the search made more likely ``1 / (1 +
    undone v)`` is left, v that variance in widths; ends move by as much.
    """
    turned, places = of
    one, twelfth = splat(np.float32(1)), splat(_ANYWHERE)
    squares = level * level
    moved = squares * turned / square
    searched = one / (places.precision + squares * (places.growth / size))
    closed = twelfth - (twelfth - searched) / (one + moved * places.undone)
    relative = min(max(size / places.square_size, np.float32(0.1)), np.float32(10))
    ends = places.end_noise * relative**places.half_power
    return square * where(is_open, splat(ends) + moved * places.end_coarse, closed)


@kernel
def fill_stated(
    codes: U8Array,
    scale: F32Array,
    unit: F32Array,
    tables: F32Array,
    places: Behind,
    stated: Stated,
) -> None:
    """Values ``scale * level``, and the cells if the codes were chosen with these scales.

    A scale whose square is 0 or infinite proves nothing. `unit` has the scale of each superblock.
    Where scales were rounded to the smallest ones many were less: no less than two is assumed.
    """
    value, lower, upper, variance = stated
    for g in range(scale.size):
        s = scale[g]
        q = load_bytes(codes, 16 * g)
        level = gather(tables[0], q)
        store(value, 16 * g, level * s)
        if not 0 < s * s < _FAR:
            for i in range(16 * g, 16 * g + 16):
                lower[i], upper[i], variance[i] = -_FAR, _FAR, _FAR
            continue
        edge, other = gather(tables[1], q), gather(tables[2], q)
        is_open = (edge == -_FAR) | (other == _FAR)
        below, above = edge * s, other * s
        if s < 0:
            below, above = above, below
        slack = abs(s) * _ABSOLUTE
        store(lower, 16 * g, below - slack)
        store(upper, 16 * g, above + slack)
        integer = max(abs(s / unit[g // 16]), np.float32(2) * places.step)
        turned = np.float32(0)
        if integer > 0:
            turned = places.step / integer * (places.step / integer) * _ANYWHERE
        size = _mean_square(codes, tables[0], g, places.n_wide)
        error = _errors(level, gather(tables[3], q), is_open, size, (turned, places)) * (s * s)
        store(variance, 16 * g, where(error > np.float32(0), error, _FAR))


Unpack = Callable[[U8Array, U8Array, F32Array], None]


def _state(
    unpack: Unpack,
    part_size: int,
    unit: Unit,
    tables: F32Array,
    places: Behind,
    raw: U8Array,
    stated: Stated,
) -> None:
    n = stated.value.size
    codes, scale = np.empty(n, np.uint8), np.empty(n // 16, np.float32)
    unpack(raw, codes, scale)
    d = np.empty(n // SUPERBLOCK, np.float32)
    fill_units(raw, part_size, unit, d)
    fill_stated(codes, scale, d, tables, places, stated)


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
    step: int = 0,
    n_wide: int = 1,
    places: Places = UNIFORM,
    weighted: Places | None = None,
) -> BlockIntervals:
    """A type whose codes were chosen with a scale that was changed afterwards.

    Parameters
    ----------
    unpack : callable
        ``unpack(raw: uint8, codes: uint8 (n,), scale: float32 (n / 16,))``.
    levels, shift
        See `tables_of`.
    unit : Unit
        Where the stored scale is.
    step : int
        The distance of two integer scales of sub-blocks; 0 if there are no sub-blocks.
    n_wide : int
        Groups of 16 weights that share such a scale.
    places, weighted : Places
        Where weights lie, if the encoder had no importance matrix, and if it had one (default: the
        same).
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
    tables = tables_of(levels, shift)
    state, state_weighted = (
        partial(_state, unpack, row_header + type_size, unit, tables, behind(each, step, n_wide))
        for each in (places, weighted or places)
    )
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
        is_peaked=True,
        state=state,
        hidden=Hidden(possible, typical, reach, usual, state_weighted),
    )

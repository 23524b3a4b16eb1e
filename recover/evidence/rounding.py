"""How far the scales and offsets that chose the codes may be from the stored ones."""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import largest_lane
from recover._compiled.float16 import read_f16
from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import LANES, load, splat, store, where
from recover.quants import GROUP, F32Array, ScalarType, U8Array

# Relative rounding of our own and the encoders' float32 arithmetic around a cell's edge: a
# division, two products and two sums, generously.
_ARITHMETIC = np.float32(2.0**-21)
# Rounding to float16: relative, and absolute below 2**-14 where the precision ends; a little more
# for the rounding of this bound itself.
_F16_RELATIVE = np.float32(2.0**-11 * 1.001)
_F16_ABSOLUTE = np.float32(2.0**-25 * 1.001)
_F16_SMALLEST_NORMAL = np.float32(2.0**-14)
# ggml's `nearest_int` wraps beyond 2**22. A code's argument is at most about 32, and what is lost
# where the offset is rounded to a multiple of its block's: less than the largest offset there.
_WRAPS = np.float32(2.0**21)
# Of scales beyond the largest one edges of cells overflow; those of scales below the least one may
# be subnormal, or taken for 0: so far off are they then at most.
_LARGEST_PRODUCT, _LEAST_PRODUCT = np.float32(2.0**120), np.float32(2.0**-100)
_SUBNORMAL_ERROR = np.float32(2.0**-120)
_ZERO, _INFINITE = np.float32(0), np.float32(np.inf)


def scale_up(
    factors: F32Array,
    scale: F32Array,
    offset: F32Array,
    scale_error: F32Array,
    offset_error: F32Array,
) -> None:
    """Multiply scales, offsets and their errors (n / 16,) by positive factors.

    The encoder had the product of scale and factor, perhaps by way of reciprocals: it was rounded
    a few times more.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        scale_error += np.abs(scale) * _ARITHMETIC
        offset_error += np.abs(offset) * _ARITHMETIC
        for each in (scale, offset, scale_error, offset_error):
            each *= factors
    size = np.abs(scale)
    offset_error[size < _LEAST_PRODUCT] += _SUBNORMAL_ERROR
    offset_error[~(size <= _LARGEST_PRODUCT)] = np.inf


class Rounding(NamedTuple):
    """What a format's encoder rounds to float16 last, and where its blocks have the scale.

    From `scale_limit` on scales prove nothing. Those of zero do if `zero_tells`; if
    `loses_scales`, in superblocks, they say that weights are small beside the block's scale.
    """

    type_size: int
    d_at: int
    groups_per_block: int
    scale_last: bool
    offset_last: bool
    scale_limit: np.float32
    zero_tells: bool
    loses_scales: bool


@cache
def rounding_of(kind: ScalarType) -> NDArray[np.float64]:
    """What the encoder of a type rounds last: the fields of a `Rounding` (8,).

    A kernel is called for every tile, and finds out of one array faster what it is given.
    """
    groups = kind.block_size // GROUP
    last = kind.rounds_scale_last, kind.rounds_offset_last
    rounding = Rounding(
        kind.type_size,
        kind.d_at,
        groups,
        *last,
        np.float32(kind.scale_limit),
        kind.zero_scale_tells,
        kind.lost_spread > 0 and groups % LANES == 0,
    )
    return np.array(rounding, np.float64)


@inner
def _rounding_from(fields: NDArray[np.float64]) -> Rounding:
    """From what `rounding_of` gave."""
    return Rounding(
        int(fields[0]),
        int(fields[1]),
        int(fields[2]),
        fields[3] != 0,
        fields[4] != 0,
        np.float32(fields[5]),
        fields[6] != 0,
        fields[7] != 0,
    )


@kernel
def bound_errors(
    raw: U8Array,
    fields: NDArray[np.float64],
    scale: F32Array,
    offset: F32Array,
    scale_error: F32Array,
    offset_error: F32Array,
) -> None:
    """How far the encoder's scales and offsets may be from the stored ones.

    ``e_s = a |s| + r |s|`` and ``e_o = a |o| + max(2^-11 |o|, smallest step)``: a is what float32
    arithmetic rounds; the second terms are there where f16 rounds last, r = 2^-11 or, where d is
    subnormal, the smallest step over d. Of scales that were rounded to 0 e_s is half of that step:
    only these have one. Where the integer scale of a sub-block is 0, e_s is minus the most that the
    scale of the block may be. Where codes may have wrapped, e_o is infinite.
    """
    rounding = _rounding_from(fields)
    if rounding.groups_per_block % LANES == 0:
        may_wrap = _bound_superblocks(raw, rounding, scale, offset, scale_error, offset_error)
    else:
        may_wrap = _bound_blocks(raw, rounding, scale, offset, scale_error, offset_error)
    if rounding.offset_last:
        for g in range(offset.size):
            offset_error[g] += max(abs(offset[g]) * _F16_RELATIVE, _F16_ABSOLUTE)
    if rounding.scale_limit < _INFINITE:
        for g in range(scale.size):
            if abs(scale[g]) >= rounding.scale_limit:
                offset_error[g] = np.inf
    if may_wrap:
        _forget_wraps(rounding.groups_per_block, scale, offset, offset_error)


@inner
def _last_rounding(d: np.float32, rounding: Rounding) -> tuple[np.float32, np.float32]:
    """What the size of a scale is rounded by where the block has the scale d: relative, least."""
    relative, least = _F16_RELATIVE, _ZERO
    if not d >= _F16_SMALLEST_NORMAL:
        relative = _F16_ABSOLUTE / d if d > 0 else _ZERO
        least = _F16_ABSOLUTE if rounding.zero_tells and d == 0 else _ZERO
    return relative, least


@inner
def _bound_superblocks(
    raw: U8Array,
    rounding: Rounding,
    scale: F32Array,
    offset: F32Array,
    scale_error: F32Array,
    offset_error: F32Array,
) -> bool:
    """Errors of blocks of whole vectors of groups, in one pass; whether codes may have wrapped."""
    most, least = splat(_ZERO), splat(_INFINITE)
    relative = least_error = largest = _ZERO
    n_groups = rounding.groups_per_block
    for b in range(raw.size // rounding.type_size):
        if rounding.scale_last or rounding.loses_scales:
            d = abs(read_f16(raw, rounding.type_size * b + rounding.d_at))
            relative, least_error = _last_rounding(d, rounding)
            largest = d + max(d * _F16_RELATIVE, _F16_ABSOLUTE)
            largest = largest if d > 0 and d < _INFINITE else _ZERO
        for g in range(n_groups * b, n_groups * (b + 1), LANES):
            own, far = load(scale, g), abs(load(offset, g))
            size = abs(own)
            error = size * _ARITHMETIC
            if rounding.scale_last:
                error = error + (size * relative + least_error)
            if rounding.loses_scales and largest > _ZERO:
                error = where(own == _ZERO, -largest, error)
            store(scale_error, g, error)
            store(offset_error, g, far * _ARITHMETIC)
            most = where(far > most, far, most)
            least = where((size > _ZERO) & (size < least), size, least)
    return largest_lane(most) >= _WRAPS * -largest_lane(-least)


@inner
def _bound_blocks(
    raw: U8Array,
    rounding: Rounding,
    scale: F32Array,
    offset: F32Array,
    scale_error: F32Array,
    offset_error: F32Array,
) -> bool:
    """Errors of small blocks, which lose no scales; whether codes may have wrapped."""
    largest, smallest = _ZERO, _INFINITE
    for g in range(scale.size):
        scale_error[g] = abs(scale[g]) * _ARITHMETIC
        offset_error[g] = abs(offset[g]) * _ARITHMETIC
    if rounding.scale_last:
        n_groups = rounding.groups_per_block
        for b in range(raw.size // rounding.type_size):
            d = abs(read_f16(raw, rounding.type_size * b + rounding.d_at))
            relative, least = _last_rounding(d, rounding)
            for g in range(n_groups * b, n_groups * (b + 1)):
                scale_error[g] += relative * abs(scale[g]) + least
    whole = scale.size // LANES * LANES
    most_far, least_size = splat(_ZERO), splat(_INFINITE)
    for g in range(0, whole, LANES):
        far, size = abs(load(offset, g)), abs(load(scale, g))
        most_far = where(far > most_far, far, most_far)
        least_size = where((size > _ZERO) & (size < least_size), size, least_size)
    for g in range(whole, scale.size):
        largest = max(largest, abs(offset[g]))
        smallest = min(smallest, abs(scale[g]) if scale[g] != _ZERO else _INFINITE)
    largest = max(largest, largest_lane(most_far))
    return largest >= _WRAPS * min(smallest, -largest_lane(-least_size))


@inner
def _forget_wraps(n_groups: int, scale: F32Array, offset: F32Array, offset_error: F32Array) -> None:
    """No bounds for groups whose codes may have wrapped, in blocks of `n_groups`."""
    for start in range(0, scale.size, n_groups):
        largest = np.float32(0)
        for g in range(start, start + n_groups):
            largest = max(largest, abs(offset[g]))
        for g in range(start, start + n_groups if largest > 0 else start):
            if largest >= _WRAPS * abs(scale[g]):
                offset_error[g] = np.inf

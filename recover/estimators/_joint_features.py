"""What the network of the method `joint` is told of a superblock, weight by weight and by group.

Everything is in units of the superblock at hand (the deviation of the posterior, the scale of an
input, the mean square of the estimates), so that weights that are a power of two as large give the
same numbers. A negative scale turns the order of the codes; the numbers follow the order of the
values.

Of each weight: how far its posterior mean is from the bounds, in deviations; the deviation; the
mean; how far it is below the largest and above the smallest mean of its 16 and of its 32 weights.
Of each weight and input: how far the mean is from the decoded value, in steps and in deviations;
where the code lies among all codes; their product and the square; whether it is an end code.

Of each group of 16 weights: the finest step, mean and mean square of the means, the deviation. Of
each group and input: the step, scale and lowest value beside the largest of the superblock; how far
the extreme means of the 16 and of the 32 weights are beyond the end codes (an encoder tries scales
that depend on these); means over the group of what is known by weight.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import largest_lane, sum_lanes
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import (
    gather,
    larger,
    load,
    load_bytes,
    smaller,
    splat,
    store,
    to_f32,
    where,
)
from recover.estimators._rounded_scales import least_scales
from recover.estimators._zeros import FEW, is_common, near_zero
from recover.evidence.buffer import Evidence
from recover.quants import F32Array, U8Array

LAYERS_OF_ROUND = "enter", "gather", "spread", "leave"

PER_WEIGHT, PER_WEIGHT_AND_INPUT = 8, 7
PER_GROUP, PER_GROUP_AND_INPUT = 4, 13


def n_features(n_inputs: int) -> tuple[int, int]:
    """How many numbers the network is told of each weight, and of each group."""
    by_weight = PER_WEIGHT + PER_WEIGHT_AND_INPUT * n_inputs
    return by_weight, PER_GROUP + PER_GROUP_AND_INPUT * n_inputs


def shapes_of_layers(width: int, n_rounds: int, n_inputs: int) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each layer of the network, by name."""
    by_weight, by_group = n_features(n_inputs)
    shapes = {
        "weights": (width, by_weight),
        "groups": (width, by_group),
        "begin": (width, width),
        "end": (2, width),
    }
    of_round = (width, width), (2 * width, 4 * width), (2 * width, 2 * width), (width, width)
    for i in range(n_rounds):
        for name, shape in zip(LAYERS_OF_ROUND, of_round, strict=True):
            shapes[f"rounds.{i}.{name}"] = shape
    return shapes


_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_FAR = np.float32(np.inf)
_LEAST = np.float32(1e-4)  # of a deviation, over the finest step
_TINY = np.float32(1e-30)
_ONE_SIDED = np.float32(0.4)  # of the mean of a superblock, over the root mean square
_SMOOTH, _MANY_SMOOTH = np.float32(0.7), 6  # share of its mean in a group's squares; groups
_MOST_OF_ONE_SIGN = np.float32(0.8)  # so many more than of the other, if they cannot be 0
_SMOOTH_IN_ALL = np.float32(0.5)  # of the squares of the groups that have no outlier
_BLOCK_ONE_SIDED = np.float32(0.8**2)  # of that of 32 weights, squared
_LEAST_SCALE = np.float32(2**-14)  # the smallest float16 with all of its digits
_ROUNDED = 0.325  # steps by which float16 may have moved the levels at the ends
_MOVED = np.float32(0.12)  # steps of the finest input: they are not where the codes were chosen


class Inputs(NamedTuple):
    """The scalar inputs of a tile, as the kernels take them.

    Attributes
    ----------
    codes : uint8 (K * n,)
    scale, offset : float32 (K * n / 16,)
    scale_error : float32 (K * n / 16,)
        How far the scales that chose the codes may be from these.
    levels : float32 (K * 256,)
    ends : int32 (K * 2,)
        The lowest and the highest code.
    farthest : float32 (K,)
        The farthest of their levels from 0.
    step : float32 (K,)
        The mean distance of neighbouring levels.
    even : bool (K,)
        Whether levels are consecutive integers.
    least : float32 (K,)
        Superblocks without larger scales are unlike those that the networks have learned from.
    """

    codes: U8Array
    scale: F32Array
    offset: F32Array
    scale_error: F32Array
    levels: F32Array
    ends: NDArray[np.int32]
    farthest: F32Array
    step: F32Array
    even: NDArray[np.bool_]
    least: F32Array


def inputs_of(evidence: Evidence) -> Inputs:
    """The scalar inputs of a tile."""
    ends = evidence.end_codes
    rows = np.arange(len(ends))
    span = evidence.levels[rows, ends[:, 1]] - evidence.levels[rows, ends[:, 0]]
    n_steps = (ends[:, 1] - ends[:, 0]).astype(np.float32)
    return Inputs(
        evidence.codes.reshape(-1),
        evidence.scale.reshape(-1),
        evidence.offset.reshape(-1),
        evidence.scale_error.reshape(-1),
        evidence.levels.reshape(-1),
        ends.reshape(-1),
        np.abs(evidence.levels[rows[:, None], ends]).max(1),
        np.divide(span, n_steps, dtype=np.float32),
        (np.diff(evidence.levels) == 1).all(1),
        np.maximum(least_scales(evidence, _ROUNDED), _LEAST_SCALE),
    )


class Means(NamedTuple):
    """What the posterior says of a superblock, by group: float32 (16,) each.

    Attributes
    ----------
    low, high, low_32, high_32 : float32 (16,)
        The extreme means of 16, and of 32 weights.
    unit : float32 (16,)
        Step of the first input; 0 if one of the inputs cannot be used.
    total, square : float32 (16,)
        Sums of the means, and of their squares.
    size : float32 (16,)
        The first is the root mean square of the means.
    """

    low: F32Array
    high: F32Array
    low_32: F32Array
    high_32: F32Array
    unit: F32Array
    total: F32Array
    square: F32Array
    size: F32Array


def new_means() -> Means:
    """Scratch memory."""
    return Means(*(np.empty(16, np.float32) for _ in Means._fields))


@bare_inlined
def least_deviation(deviation: Any, unit: np.float32) -> Any:
    """A group's deviations, those of weights that are all but known raised to a little."""
    return larger(deviation, splat(_LEAST * unit))


@bare_inlined
def _level(inputs: Inputs, k: int, q: Any) -> Any:
    """What codes of input `k` stand for."""
    if inputs.even[k]:
        level = to_f32(q) + inputs.levels[256 * k]
    else:
        level = gather(inputs.levels, q + 256 * k)
    return level


@bare_inlined
def decoded(inputs: Inputs, k: int, at: int) -> Any:
    """What input `k` says of the group whose weights begin `at`."""
    place = k * (inputs.codes.size // inputs.step.size) + at
    level = _level(inputs, k, load_bytes(inputs.codes, place))
    return level * inputs.scale[place // 16] + inputs.offset[place // 16]


@bare_inlined
def _clipped(value: np.float32, most: np.float32) -> np.float32:
    return min(max(value, -most), most)


@bare_inner
def survey(inputs: Inputs, mean: F32Array, start: int, means: Means) -> bool:
    """Fill `means` of the superblock whose weights begin at `start`; whether it is of use.

    It is not where the weights are like none that the networks have learned from: of one sign, in
    all or in many groups or in those beside blocks of zeros; with scales that float16 rounded far
    more than others; or with all but one group without a scale.
    """
    n_inputs = inputs.step.size
    n_groups = inputs.codes.size // n_inputs // 16
    square, total = _ZERO, _ZERO
    n_usable, n_smooth, of_means, squares = 0, 0, _ZERO, _ZERO
    for g in range(16):
        m = load(mean, start + 16 * g)
        means.total[g], means.square[g] = sum_lanes(m), sum_lanes(m * m)
        total, square = total + means.total[g], square + means.square[g]
        means.high[g], means.low[g] = largest_lane(m), -largest_lane(-m)
        means.unit[g] = abs(inputs.scale[start // 16 + g]) * inputs.step[0]
        for k in range(n_inputs):
            at = k * n_groups + start // 16 + g
            scale, offset = inputs.scale[at], inputs.offset[at]
            if not (abs(scale) > _TINY and abs(scale) < _FAR and abs(offset) < _FAR):
                means.unit[g] = _ZERO
        of_mean = means.total[g] * means.total[g] * np.float32(1 / 16)
        n_smooth += int(of_mean > _SMOOTH * means.square[g])
        n_usable += int(means.unit[g] > _ZERO)
        largest = max(means.high[g], -means.low[g])
        if largest * largest < _HALF * means.square[g]:  # no outlier
            of_means, squares = of_means + of_mean, squares + means.square[g]
    for g in range(16):
        other = g ^ 1
        means.high_32[g] = max(means.high[g], means.high[other])
        means.low_32[g] = min(means.low[g], means.low[other])
    usable = n_usable > 1
    for k in range(n_inputs):
        largest, at, n_moved = _ZERO, k * n_groups + start // 16, 0
        for g in range(16):
            largest = max(largest, abs(inputs.scale[at + g]))
            moved = inputs.scale_error[at + g] * inputs.farthest[k]
            n_moved += int(moved > _MOVED * means.unit[g] > _ZERO)
        usable = usable and bool(largest >= inputs.least[k]) and 2 * n_moved < n_usable
    size = np.float32(math.sqrt(square / np.float32(256)))
    means.size[0] = size
    is_smooth = abs(total) > _ONE_SIDED * np.float32(256) * size or n_smooth >= _MANY_SMOOTH
    if n_usable < 16:  # beside blocks of zeros, or far outliers
        is_smooth |= of_means > _SMOOTH_IN_ALL * squares
    return usable and bool(size > _TINY) and bool(size < _FAR) and not is_smooth


@bare_inner
def _has_zeros_or_one_sign(bounds: tuple[F32Array, F32Array], start: int) -> bool:
    """Whether many weights of a superblock are likely to be 0, or all but a few may be.

    Or whether all but a few of those that cannot be 0 have one sign.
    """
    zero, one = splat(_ZERO), splat(_ONE)
    n_zero = n_near = n_above = n_below = zero
    for at in range(start, start + 256, 16):
        low, high = load(bounds[0], at), load(bounds[1], at)
        may_be, near = near_zero(low, high)
        n_zero, n_near = n_zero + may_be, n_near + near
        n_above = n_above + where(low > zero, one, zero)
        n_below = n_below + where(high < zero, one, zero)
    above, below = sum_lanes(n_above), sum_lanes(n_below)
    of_one_sign = abs(above - below) > _MOST_OF_ONE_SIGN * (above + below)
    return of_one_sign or above + below <= FEW or is_common(n_zero, n_near, False)


@bare_inlined
def is_like_others(means: Means, g: int) -> bool:
    """Whether all inputs can be used in a group, and its 32 weights are not all of one sign."""
    total = abs(means.total[g] + means.total[g ^ 1])
    square = np.float32(32) * (means.square[g] + means.square[g ^ 1])
    return means.unit[g] > _ZERO and total * total <= _BLOCK_ONE_SIDED * square


@bare_inner
def describe_inputs(
    inputs: Inputs, k: int, start: int, means: Means, by_group: F32Array, at: int
) -> None:
    """What is told of input `k`, by group, but for the means over weights, from row `at` on."""
    n_groups = inputs.codes.size // inputs.step.size // 16
    first = k * n_groups + start // 16
    low_level = inputs.levels[256 * k + inputs.ends[2 * k]]
    high_level = inputs.levels[256 * k + inputs.ends[2 * k + 1]]
    largest = lowest = _TINY
    for g in range(16):
        scale, offset = inputs.scale[first + g], inputs.offset[first + g]
        if means.unit[g] > _ZERO:
            bottom = min(scale * low_level + offset, scale * high_level + offset)
            largest, lowest = max(largest, abs(scale)), max(lowest, abs(bottom))
    for g in range(16):
        scale, offset = inputs.scale[first + g], inputs.offset[first + g]
        one, other = scale * low_level + offset, scale * high_level + offset
        bottom, top = min(one, other), max(one, other)
        row = 16 * at + g
        if not means.unit[g] > _ZERO:
            for f in range(13):
                by_group[row + 16 * f] = _ZERO
            continue
        unit = abs(scale) * inputs.step[k]
        by_group[row] = _ONE
        ratio = np.float32(math.log2(unit / means.unit[g])) * np.float32(0.3)
        by_group[row + 16] = _clipped(ratio, np.float32(3))
        by_group[row + 32] = scale / largest
        by_group[row + 48] = _ONE if abs(scale) == largest else _ZERO
        by_group[row + 64] = bottom / lowest
        by_group[row + 80] = _ONE if abs(bottom) == lowest else _ZERO
        by_group[row + 96] = _clipped((means.high[g] - top) / unit, np.float32(4)) * _HALF
        by_group[row + 112] = _clipped((means.low[g] - bottom) / unit, np.float32(4)) * _HALF
        by_group[row + 128] = _clipped((means.high_32[g] - top) / unit, np.float32(4)) * _HALF
        by_group[row + 144] = _clipped((means.low_32[g] - bottom) / unit, np.float32(4)) * _HALF


@bare_inner
def describe_weights(
    inputs: Inputs,
    k: int,
    place: tuple[int, int],
    mean: F32Array,
    deviation: F32Array,
    unit: np.float32,
    by_weight: F32Array,
    by_group: F32Array,
) -> None:
    """What is told of the weights of group `place[1]` by input `k`, and means of that.

    `place[0]` is where the superblock begins.
    """
    start, g = place
    n = inputs.codes.size // inputs.step.size
    q = load_bytes(inputs.codes, k * n + start + 16 * g)
    scale = inputs.scale[(k * n + start) // 16 + g]
    offset = inputs.offset[(k * n + start) // 16 + g]
    lowest, highest = inputs.ends[2 * k], inputs.ends[2 * k + 1]
    level = _level(inputs, k, q)
    m = load(mean, start + 16 * g)
    off = m - (level * scale + offset)
    s = least_deviation(load(deviation, start + 16 * g), unit)
    two, six = splat(np.float32(2)), splat(np.float32(6))
    u = smaller(larger(off * (_ONE / (abs(scale) * inputs.step[k])), -two), two)
    r = smaller(larger(off / s, -six), six) * _HALF
    low_level = inputs.levels[256 * k + lowest]
    t = (level - low_level) / (inputs.levels[256 * k + highest] - low_level) - _HALF
    at_low, at_high = where(q == lowest, _ONE, _ZERO), where(q == highest, _ONE, _ZERO)
    if scale < _ZERO:
        t, at_low, at_high = -t, at_high, at_low
    product, square = u * t * np.float32(2), u * u
    at = 16 * (PER_WEIGHT + PER_WEIGHT_AND_INPUT * k)
    store(by_weight, at, u)
    store(by_weight, at + 16, r)
    store(by_weight, at + 32, t)
    store(by_weight, at + 48, product)
    store(by_weight, at + 64, square)
    store(by_weight, at + 80, at_low)
    store(by_weight, at + 96, at_high)
    row = 16 * (PER_GROUP + PER_GROUP_AND_INPUT * k + 10) + g
    by_group[row] = sum_lanes(u) * np.float32(1 / 8)
    by_group[row + 16] = sum_lanes(product) * np.float32(1 / 8)
    by_group[row + 32] = sum_lanes(square) * np.float32(1 / 8)


@bare_inner
def describe_group(
    place: tuple[int, int],
    mean: F32Array,
    deviation: F32Array,
    lower: F32Array,
    upper: F32Array,
    means: Means,
    by_weight: F32Array,
    by_group: F32Array,
) -> None:
    """What is told of the weights of a group, whatever the inputs."""
    start, g = place
    at, unit, size = start + 16 * g, means.unit[g], means.size[0]
    m = load(mean, at)
    s = least_deviation(load(deviation, at), unit)
    most, four, two = splat(np.float32(6)), splat(np.float32(4)), splat(np.float32(2))
    third, per_unit = np.float32(1 / 3), _ONE / unit
    wide = smaller(s * (np.float32(4) * per_unit), two)
    relative = m * (_ONE / size)
    store(by_weight, 0, smaller(larger((m - load(lower, at)) / s, splat(_ZERO)), most) * third)
    store(by_weight, 16, smaller(larger((load(upper, at) - m) / s, splat(_ZERO)), most) * third)
    store(by_weight, 32, wide)
    store(by_weight, 48, smaller(larger(relative, -most), most) * _HALF)
    store(by_weight, 64, smaller((means.high[g] - m) * per_unit, four) * _HALF)
    store(by_weight, 80, smaller((m - means.low[g]) * per_unit, four) * _HALF)
    store(by_weight, 96, smaller((means.high_32[g] - m) * per_unit, four) * _HALF)
    store(by_weight, 112, smaller((m - means.low_32[g]) * per_unit, four) * _HALF)
    ratio = np.float32(math.log2(unit / size)) * np.float32(0.3)
    by_group[g] = _clipped(ratio, np.float32(4))
    by_group[16 + g] = sum_lanes(relative) * np.float32(1 / 16)
    spread = np.float32(math.sqrt(sum_lanes(relative * relative) * np.float32(1 / 16)))
    by_group[32 + g] = min(spread, np.float32(4))
    by_group[48 + g] = sum_lanes(wide) * np.float32(1 / 16)


@bare_inner
def describe(
    inputs: Inputs,
    start: int,
    posterior: tuple[F32Array, F32Array],
    bounds: tuple[F32Array, F32Array],
    means: Means,
    by_weight: F32Array,
    by_group: F32Array,
) -> bool:
    """Fill in what is told of the superblock whose weights begin at `start`.

    Parameters
    ----------
    inputs : Inputs
        Of the tile.
    start : int
        The first weight.
    posterior, bounds : tuple of float32 (n,)
        Means and deviations; lower and upper bounds.
    means : Means
        To be filled. Groups whose `unit` is 0 are not told of.
    by_weight : float32 (16 * (8 + 7 * K) * 16,)
        To be filled: group by group, a row of 16 for each number.
    by_group : float32 ((4 + 13 * K) * 16,)
        To be filled: a row for each number.

    Returns
    -------
    bool
        Whether there is something to tell; otherwise nothing was filled in.
    """
    mean, deviation = posterior
    if not survey(inputs, mean, start, means) or _has_zeros_or_one_sign(bounds, start):
        return False
    n_inputs = inputs.step.size
    size = 16 * (PER_WEIGHT + PER_WEIGHT_AND_INPUT * n_inputs)
    for k in range(n_inputs):
        at = PER_GROUP + PER_GROUP_AND_INPUT * k
        describe_inputs(inputs, k, start, means, by_group, at)
    for g in range(16):
        group = by_weight[g * size : (g + 1) * size]
        if not means.unit[g] > _ZERO:
            group[:] = _ZERO
            for f in range(PER_GROUP):
                by_group[16 * f + g] = _ZERO
            continue
        place, unit = (start, g), means.unit[g]
        describe_group(place, mean, deviation, *bounds, means, group, by_group)
        for k in range(n_inputs):
            describe_weights(inputs, k, place, mean, deviation, unit, group, by_group)
    return True

"""What is known of the weights of one superblock, gathered from one input after the other.

The logarithms of the densities are quadratic, so their sum is one quadratic polynomial in the
weight, whatever the number of inputs. Sixteen weights, a group, are worked on at once.
"""

import threading
from typing import Any, NamedTuple

import numpy as np

from recover._compiled.across import add_up, largest_lane
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import (
    fused,
    gather,
    load,
    load_bytes,
    splat,
    store,
    to_f32,
    where,
)
from recover._compiled.memory import aligned
from recover.estimators._coarse import N_ENDS, step_of_minima
from recover.estimators._product_tables import CENTER_UNIT, LEVEL, N_COLUMNS, STEPS, Scalars
from recover.quants import F32Array

_ZERO = np.float32(0)
_ONE = np.float32(1)
_FAR = np.float32(np.inf)
OUTLIER = np.float32(40)
"""The square of a weight over the mean square of its superblock."""
OUTLIER_ERROR = np.float32(1 / 4)  # its square error over that of others


@bare_inlined
def is_finite(scalars: Scalars, at: int) -> bool:
    """Whether the group at this place of `Scalars.scale` is not broken."""
    return np.isfinite(scalars.scale[at]) and np.isfinite(scalars.offset[at])


@bare_inlined
def level_of(scalars: Scalars, k: int, q: Any) -> Any:
    """What codes of input `k` stand for: ``level[q]``, or ``q + level[0]``."""
    if scalars.simple[k]:
        level = to_f32(q) + scalars.rows[N_COLUMNS * k + LEVEL]
    else:
        level = gather(scalars.levels, q + 256 * k)
    return level


@bare_inlined
def value_of(scalars: Scalars, k: int, at: int) -> Any:
    """What input `k` says of the group whose codes begin at `at`: ``v = s level[q] + o``."""
    level = level_of(scalars, k, load_bytes(scalars.codes, at))
    return level * scalars.scale[at // 16] + scalars.offset[at // 16]


@bare_inlined
def first_value(scalars: Scalars, g: int, n: int) -> Any:
    """What the first scalar input that is not broken says."""
    first = 0
    for k in range(scalars.noise.size):
        if is_finite(scalars, k * n // 16 + g):
            first = k
            break
    return value_of(scalars, first, first * n + 16 * g)


class Superblock(NamedTuple):
    """What is known of the (up to 16) groups of one superblock, in scratch memory.

    Attributes
    ----------
    scale, offset, inverse : float32 (K * 16,)
        Those of each input and group, and one over the scale; the latter is 0 where the input
        cannot be used.
    unit, per_unit : float32 (16,)
        Scale of the first usable input, and one over it; 1 if there is none.
    center : float32 (256,)
        What the first usable input says, or 0, in units and `CENTER_UNIT`.
    low, high : float32 (256,)
        Bounds of the weights.
    gradient, curvature : float32 (256,)
        Derivatives of the log density at `center`: the first, which has no share of the prior, and
        the second.
    limit : float32 (16,)
        Squares of weights beyond which they are taken for outliers.
    precision : float32 (16,)
        That of the prior of each group, where there may be outliers.
    fixed_low, fixed_high : float32 (256,)
        Bounds of the weights that are known but for rounding; infinite for the others.
    odds : float32 (K * 16,)
        Of each input, each of two pairs of extreme codes and each block of 32: the odds of a weight
        with such a code to be the one that is extreme.
    zeros : float32 (16,)
        The first says how likely weights are exactly 0 (see `recover.estimators._zeros`).
    may_be_zero : float32 (256,)
        1 for weights that no input proves not to be 0; filled where `zeros` says so.
    kept : float32 (1024,)
        See `keep` and `recover.estimators._means`.
    each : float32 (K * 9 * 16,)
        Of each scalar input and group: what level 0 says and the bounds of that, the scale, the
        curvature of interior codes, the level of weights that are 0, what takes centers to levels
        and derivatives to units. Scratch memory afterwards (`recover.estimators._one_sided.MEANS`).
    ends : float32 (K * 9 * 16,)
        See `recover.estimators._coarse`.
    """

    scale: F32Array
    offset: F32Array
    inverse: F32Array
    unit: F32Array
    per_unit: F32Array
    center: F32Array
    low: F32Array
    high: F32Array
    gradient: F32Array
    curvature: F32Array
    limit: F32Array
    precision: F32Array
    fixed_low: F32Array
    fixed_high: F32Array
    odds: F32Array
    zeros: F32Array
    may_be_zero: F32Array
    kept: F32Array
    each: F32Array
    ends: F32Array


@bare_inlined
def center_value(block: Superblock, i: int) -> Any:
    """What the first usable scalar input says of group `i`, or 0."""
    return load(block.center, 16 * i) * (block.unit[i] / CENTER_UNIT)


@bare_inlined
def squares(block: Superblock, i: int) -> Any:
    """Squares of what the first usable input says of a group."""
    center = center_value(block, i)
    return center * center


@bare_inlined
def steps_of(scalars: Scalars, k: int, block: Superblock) -> Any:
    """What scales and minima of input `k` are multiples of; 0 if it stores no integers."""
    steps = scalars.rows[N_COLUMNS * k + STEPS]
    if not steps > _ZERO:
        return _ZERO, _ZERO
    usable = load(block.inverse, 16 * k) != _ZERO
    d = largest_lane(where(usable, abs(load(block.scale, 16 * k)), splat(_ZERO))) / steps
    minima = where(usable, abs(load(block.offset, 16 * k)), splat(_ZERO))
    return d, step_of_minima(scalars, k, minima)


@bare_inner
def median_of(values: F32Array, n: int) -> np.float32:
    """The median of the first n values, which are put into order; the upper one of two, 0 if none.

    There are at most sixteen.
    """
    for i in range(1, n):
        value, place = values[i], i
        while place > 0 and values[place - 1] > value:
            values[place] = values[place - 1]
            place -= 1
        values[place] = value
    return values[n // 2] if n > 0 else _ZERO


@bare_inlined
def keep(block: Superblock) -> None:
    """Keep the bounds and derivatives of a superblock, for `restore`."""
    for at in range(0, 256, 16):
        store(block.kept, at, load(block.low, at))
        store(block.kept, at + 256, load(block.high, at))
        store(block.kept, at + 512, load(block.gradient, at))
        store(block.kept, at + 768, load(block.curvature, at))


@bare_inlined
def restore(block: Superblock) -> None:
    """Take back what came after `keep`."""
    for at in range(0, 256, 16):
        store(block.low, at, load(block.kept, at))
        store(block.high, at, load(block.kept, at + 256))
        store(block.gradient, at, load(block.kept, at + 512))
        store(block.curvature, at, load(block.kept, at + 768))


N_EACH = 9 * 16
"""See `Superblock.each`; of one input."""


class _Memory(threading.local):
    """Of each thread, by the number of scalar inputs."""

    def __init__(self) -> None:
        self.blocks: dict[int, Superblock] = {}


_memory = _Memory()


def new_superblock(n_scalars: int) -> Superblock:
    """Scratch memory of this thread, as if it were new."""
    block = _memory.blocks.get(n_scalars)
    if block is None:
        sizes = (
            *[16 * n_scalars] * 3,
            16,
            16,
            *[256] * 5,
            16,
            16,
            256,
            256,
            16 * n_scalars,
            16,
            256,
            1024,
        )
        tables = N_EACH * n_scalars, N_ENDS * n_scalars
        block = Superblock(*(aligned(n, np.float32) for n in (*sizes, *tables)))
        _memory.blocks[n_scalars] = block
    block.limit[:], block.fixed_low[:], block.fixed_high[:] = _FAR, -_FAR, _FAR
    return block


@bare_inlined
def open_superblock(scalars: Scalars, block: Superblock, start: int) -> Any:
    """Begin with a superblock: scales and units; the square errors of its first usable inputs."""
    noise = splat(_ZERO)
    unit = per_unit = splat(_ONE)
    n_groups = scalars.codes.size // scalars.noise.size // 16
    for k in range(scalars.noise.size - 1, -1, -1):
        scale = load(scalars.scale, k * n_groups + start)
        offset = load(scalars.offset, k * n_groups + start)
        inverse = splat(_ONE) / scale
        # One condition after the other: masks are taken apart and joined again to be combined.
        inverse = where(abs(inverse) < _FAR, inverse, _ZERO)
        inverse = where(abs(offset) < _FAR, inverse, _ZERO)
        store(block.scale, 16 * k, scale)
        store(block.offset, 16 * k, offset)
        store(block.inverse, 16 * k, inverse)
        unit = where(inverse == _ZERO, unit, scale)
        per_unit = where(inverse == _ZERO, per_unit, inverse)
        noise = where(inverse == _ZERO, noise, scale * scale * scalars.noise[k])
    store(block.unit, 0, unit)
    store(block.per_unit, 0, per_unit)
    return noise


@bare_inner
def replace_first(scalars: Scalars, block: Superblock, start: int) -> np.float32:
    """Begin with the groups whose first input cannot be used; the sum of their squares."""
    total = splat(_ZERO)
    n = scalars.codes.size // scalars.noise.size
    for i in range(16):
        if block.inverse[i] != _ZERO:
            continue
        at, center = 16 * i, splat(_ZERO)
        for k in range(1, scalars.noise.size):
            if block.inverse[16 * k + i] != _ZERO:
                center = value_of(scalars, k, k * n + 16 * start + at)
                break
        total = fused(center, center, total)
        store(block.center, at, center * (CENTER_UNIT * block.per_unit[i]))
        store(block.low, at, splat(-_FAR))
        store(block.high, at, splat(_FAR))
        store(block.gradient, at, splat(_ZERO))
        store(block.curvature, at, splat(_ZERO))
    return add_up(total)

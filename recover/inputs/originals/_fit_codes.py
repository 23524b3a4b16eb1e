"""Whether numbers that are stored as floats have one scale, and perhaps one offset, in common.

A group of decoded weights is ``scale * code + offset``, rounded to the type that stores it. So all
distances from 0, or from the smallest number, are multiples of one step, within the roundings. The
largest distance is some multiple of it: each is tried, and what the others tell of the step narrows
it. Numbers that say nothing, since the type that stores them is no finer than the step, do not
count.
"""

from math import ceil, floor, log2

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import inner, kernel

F64Array = NDArray[np.float64]

MANY_CODES = 128
"""The largest distance from 0 that is tried, in steps."""
MANY_LEVELS = 32
"""The same from the smallest number, and 1 more."""

_FEWEST = 4  # distances from 0
_FEWEST_SHIFTED = 2  # from the smallest number
_SURE = 16.0  # bits: groups of other numbers are on a grid once in so many powers of two
_SLACK = 1.0 + 1e-6


@kernel
def look_at_groups(
    values: F64Array,
    half: F64Array,
    size: int,
    counts: NDArray[np.int16],
    units: F64Array,
    levels: NDArray[np.int16],
) -> None:
    """How many different numbers groups have, and how many levels of a grid.

    Parameters
    ----------
    values, half : float64 (n,)
        Numbers, and half the distance to the next ones that their type has.
    size : int
        Numbers of a group.
    counts : int16 (n / size,)
        Gets how many different numbers a group has, 0 among them.
    units : float64 (n / size,)
        Gets from the smallest to the largest number, in roundings of the larger one.
    levels : int16 (n / size,)
        Gets the levels of the coarsest grid that a group is on; 0 if it is on none.
    """
    distance, off, x, reach = np.empty((4, size))
    for group in range(levels.size):
        own = slice(group * size, (group + 1) * size)
        x[:], reach[:] = values[own], half[own]
        _sort(x, reach)
        n = _distinct(x, reach, x[0], reach[0], distance, off)
        counts[group] = 1
        for i in range(1, size):
            counts[group] += x[i] != x[i - 1]
        units[group] = distance[n - 1] / (2 * reach.max()) if n else 0.0
        shifted = 0
        if n >= _FEWEST_SHIFTED:
            shifted = _fewest_steps(distance, off, n, MANY_LEVELS - 1) + 1
        x[:] = np.abs(x)
        _sort(x, reach)
        n = _distinct(x, reach, 0.0, 0.0, distance, off)
        plain = 2 * _fewest_steps(distance, off, n, MANY_CODES) if n >= _FEWEST else 0
        levels[group] = plain if shifted < 2 else shifted if plain == 0 else min(plain, shifted)


@inner
def _sort(values: F64Array, half: F64Array) -> None:
    """Bring a few numbers into ascending order, and what belongs to them; by insertion."""
    for i in range(1, values.size):
        value, own = values[i], half[i]
        while i > 0 and values[i - 1] > value:
            values[i], half[i] = values[i - 1], half[i - 1]
            i -= 1
        values[i], half[i] = value, own


@inner
def _distinct(
    values: F64Array, half: F64Array, origin: float, more: float, distance: F64Array, off: F64Array
) -> int:
    """The different distances of ascending numbers from an origin, and how far off they may be.

    Distances within the roundings are one. Returns how many there are.
    """
    n = 0
    for i in range(values.size):
        away = values[i] - origin
        reach = (half[i] + more) * _SLACK
        if away > reach and (n == 0 or away - distance[n - 1] > reach):
            distance[n], off[n] = away, reach
            n += 1
    return n


@inner
def _fewest_steps(distance: F64Array, off: F64Array, n: int, most: int) -> int:
    """The largest of n distances in steps, if all are whole numbers of them; 0 if not."""
    chance = log2(most)
    fewest = float(n)
    if distance[0] > off[0]:  # the nearest one is a step at least, but for roundings
        nearest = distance[0] + off[0]
        fewest = max(fewest, min((distance[n - 1] - off[n - 1]) / nearest - 2, float(most)))
    for steps in range(ceil(fewest), most + 1):
        low, high = (distance[n - 1] - off[n - 1]) / steps, (distance[n - 1] + off[n - 1]) / steps
        sure = -chance
        for i in range(n - 1):  # the nearest ones tell best how many steps they are
            first = ceil((distance[i] - off[i]) / high)
            last = floor((distance[i] + off[i]) / low)
            if last < first:
                sure = -1.0
                break
            doubt = 2 * off[i] + distance[i] * (high - low) / low
            sure += log2(max(1.0, low / doubt))
            if first == last and first > 0:
                low = max(low, (distance[i] - off[i]) / first)
                high = min(high, (distance[i] + off[i]) / first)
        if sure >= _SURE:
            return steps
    return 0

"""What two inputs say of each superblock: whether it is related, a multiple, and how different."""

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import inner, kernel
from recover.quants import GROUP, F32Array

SUPERBLOCK = 256
FEWEST = 16  # weights of a superblock that tell anything
# The least correlation. Of two quantizations it is far larger
# (`python -m tests.benchmarks.likeness`), but of ternary types, whose errors are as large as the
# weights; of 256 unrelated weights it is 0.06 typically.
_UNLIKE = 0.25
_LEAST_TOLD = 2.0**-16
"""Scales of superblocks with smaller weights are off by some percent, in float16, or are 0."""
# The slope of one input on the other is 1 but for a share of the root of relative errors: codebooks
# reach too far on purpose (`python -m tests.benchmarks.likeness`).
FLATTER, OF_FIRST = 1.25, 0.5
_STEEPER = 0.12
_VARYING = 4  # errors may be so many times what is typical
_EXPLAINED = 1 / 3  # share of the square difference that is gone if one is taken times the slope


@kernel
def compare_each(
    one: F32Array,
    other: F32Array,
    flatter: float,
    steeper: float,
    is_typical: bool,
    largest_lost: float,
    found: NDArray[np.float64],
) -> None:
    """Fill all but the third column of what is found of tensors of one size (n_tensors, 4).

    Slopes may be so much flatter and steeper where the weights are as large as all of the
    superblock, which errors are in proportion to; smaller ones may have others. Zeros may stand for
    weights of up to `largest_lost`. Of inputs without typical errors only what is lost and what is
    unrelated is told, the latter in the last column.
    """
    n = one.size // found.shape[0]
    for i in range(found.shape[0]):
        found[i, :2] = found[i, 3] = 0
        for start in range(i * n, (i + 1) * n, SUPERBLOCK):
            end = min(start + SUPERBLOCK, (i + 1) * n)
            a, b = one[start:end], other[start:end]
            (aa, ab, bb, n_told), between, difference = _moments(a, b, is_typical)
            whole, largest = _size(a, b)
            is_told = n_told >= FEWEST and aa > 0 and bb > 0 and largest > _LEAST_TOLD
            if _is_lost(a, b, largest_lost):
                found[i, 0] += a.size
            elif is_told and ab < _UNLIKE * np.sqrt(aa * bb):
                found[i, 0 if is_typical else 3] += a.size
            if not max(whole[0], whole[2]) < np.inf:
                found[i, 1] = np.inf
            if not largest > largest_lost or not is_typical:
                continue
            found[i, 1] += difference
            if _is_multiple(whole, a.size, between, difference, flatter, steeper):
                found[i, 3] += a.size


@inner
def _size(one: F32Array, other: F32Array) -> tuple[tuple[float, float, float], float]:
    """Of a superblock the sums of squares and of products, and the largest size."""
    aa = ab = bb = 0.0
    largest = np.float32(0)
    for i in range(one.size):
        x, y = np.float64(one[i]), np.float64(other[i])
        aa, ab, bb = aa + x * x, ab + x * y, bb + y * y
        largest = max(largest, abs(one[i]), abs(other[i]))
    return (aa, ab, bb), float(largest)


@inner
def _is_multiple(
    whole: tuple[float, float, float],
    size: int,
    between: tuple[float, float, int],
    difference: float,
    flatter: float,
    steeper: float,
) -> bool:
    """Whether one input says a multiple of what the other one says of a superblock.

    It says so of all weights as well as of those between the ends, and what is left is what errors
    explain. An importance matrix, or a codebook without a zero, put the weights between the ends
    off, or the ends, but not both by one factor.
    """
    ab, bb, n_between = between
    if n_between < FEWEST or not bb > 0 or not whole[2] > 0:
        return False
    squares = max(whole[0], whole[2])
    side = _side(ab / bb, np.sqrt(squares / size * n_between / bb), flatter, steeper)
    if side == 0 or not _explains(ab / bb, bb, difference):
        return False
    slope = whole[1] / whole[2]
    left = whole[0] - slope * whole[1]
    explained = _VARYING * ((flatter / FLATTER) ** 2 + (steeper / OF_FIRST) ** 2) * squares
    return left <= explained and _side(slope, np.sqrt(squares / whole[2]), flatter, steeper) == side


@inner
def _side(slope: float, ratio: float, flatter: float, steeper: float) -> int:
    """Whether a slope is flatter (-1) or steeper (1) than errors explain; 0 if neither."""
    return int(slope > 1 + _STEEPER + steeper * ratio) - int(slope < 1 - flatter * ratio)


@inner
def _explains(slope: float, bb: float, difference: float) -> bool:
    """Whether a multiple of the other input is nearer to one than the input itself, by far.

    A slope that comes from a few weights that one of them is far off leaves most of the difference.
    """
    return (1 - slope) ** 2 * bb > _EXPLAINED * difference


@inner
def _is_lost(one: F32Array, other: F32Array, largest_lost: float) -> bool:
    """Whether an input has zeros where the other one has weights that no encoder loses."""
    a = b = 0
    for i in range(one.size):
        a, b = a + (one[i] != 0), b + (other[i] != 0)
    if a and b:
        return False
    return _count_large(other if a == 0 else one, largest_lost) >= min(FEWEST, one.size)


@kernel
def find_lost(
    values: F32Array,
    largest_lost: float,
    is_empty: NDArray[np.bool_],
    is_large: NDArray[np.bool_],
) -> None:
    """Which superblocks of an input's weights (n * 256,) are zeros, and which have large ones."""
    for b in range(is_empty.size):
        whole = values[SUPERBLOCK * b : SUPERBLOCK * (b + 1)]
        n_large = _count_large(whole, largest_lost)
        is_large[b] = n_large >= FEWEST
        is_empty[b] = not n_large and not whole.any()


@inner
def _count_large(values: F32Array, size: float) -> int:
    """How many weights of a superblock are larger than that, and not the smallest of their group.

    Codebooks without a zero have nothing else for zeros beside a weight.
    """
    n = 0
    for start in range(0, values.size, GROUP):
        group = values[start : start + GROUP]
        least = ends(group)[2]
        for value in group:
            n += abs(value) > size and abs(value) > least
    return n


@inner
def ends(values: F32Array) -> tuple[float, float, float]:
    """Of a group the smallest number, the largest one, and the smallest size."""
    low = high = values[0]
    smallest = abs(low)
    for value in values:
        low, high, smallest = min(low, value), max(high, value), min(smallest, abs(value))
    return low, high, smallest


@inner
def _moments(
    one: F32Array, other: F32Array, has_ends: bool
) -> tuple[tuple[float, float, float, int], tuple[float, float, int], float]:
    """Sums of squares and products of a superblock, and of how many weights.

    What has ends is cut to those of the other input in each group, as encoders cut what matters
    little; the smallest weights of a group, which may be made of zeros, are left out. Of what has
    ends also, of those that are `is_between`: sums of products and of the other's squares, of how
    many weights; and the sum of their square differences.
    """
    aa = ab = bb = inner_ab = inner_bb = difference = 0.0
    n = n_between = 0
    for start in range(0, one.size, GROUP):
        of_a, of_b = ends(one[start : start + GROUP]), ends(other[start : start + GROUP])
        for i in range(start, min(start + GROUP, one.size)):
            a, b = one[i], other[i]
            if has_ends and is_between(a, b, of_a, of_b):
                x, y = np.float64(a), np.float64(b)
                inner_ab, inner_bb, n_between = inner_ab + x * y, inner_bb + y * y, n_between + 1
                difference += (x - y) ** 2
            if has_ends and (abs(a) == of_a[2] or abs(b) == of_b[2]):
                continue
            if has_ends:
                a, b = min(max(a, of_b[0]), of_b[1]), min(max(b, of_a[0]), of_a[1])
            x, y = np.float64(a), np.float64(b)
            aa, ab, bb, n = aa + x * x, ab + x * y, bb + y * y, n + 1
    return (aa, ab, bb, n), (inner_ab, inner_bb, n_between), difference


@inner
def is_between(
    a: float, b: float, of_a: tuple[float, float, float], of_b: tuple[float, float, float]
) -> bool:
    """Whether weights are neither at the `ends` of a group nor its smallest ones.

    What was cut off there, or has no smaller code, may be off by any multiple.
    """
    is_within = of_a[0] < a < of_a[1] and of_b[0] < b < of_b[1]
    return is_within and abs(a) > of_a[2] and abs(b) > of_b[2]

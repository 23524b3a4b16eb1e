"""Numbers of a source format (BF16, F16): which of them a cell holds, and rounding to them.

Where the original was stored in such a format and the proven interval of a weight holds a single
one of its numbers, that number is the weight. That it was so stored can be refuted, too: by an
interval that holds none, and by a scale that comes from one weight, which no number explains.
"""

from typing import Any, NamedTuple

import numpy as np

from recover._compiled.across import add_up, any_lane
from recover._compiled.doubles import from_bits, n_true
from recover._compiled.float16 import f16_to_f32, f32_bits, f32_from_bits, f32_to_f16
from recover._compiled.jit import inlined, kernel
from recover._compiled.lanes import bits, load, splat, where
from recover.evidence.cells import STRIP, intersect_strip, new_strips
from recover.evidence.tile import Evidence
from recover.quants import F32Array, U8Array

SIGNIFICAND_BITS = {"bf16": 8, "f16": 11}
_F32_BITS = 24
_SMALLEST_NORMAL_F16 = np.float32(2.0**-14)
_LARGEST = np.float32(3e38)


class Snapped(NamedTuple):
    """What `snap` did and found."""

    n_certain: int
    """Weights that are certain."""
    change: float
    """What the expected square error changes by, summed."""
    n_without: int
    """Proven intervals that hold no number of the format."""
    expected: float
    """How many would, on average, if the weights had nothing to do with the format."""


@kernel
def snap(
    lower: F32Array,
    upper: F32Array,
    significand_bits: int,
    decides: bool,
    rounds_all: bool,
    out: F32Array,
    deviation: F32Array,
) -> Snapped:
    """Set weights to numbers of the source's format.

    Parameters
    ----------
    lower, upper : float32 (n,)
        Proven bounds; ``lower > upper`` where the inputs contradict each other.
    significand_bits : int
        Precision of the format, the implicit bit included.
    decides, rounds_all : bool
        Set weights whose bounds hold a single number, and call them certain; round every estimate.
    out, deviation : float32 (n,)
        The estimates, and their standard deviations: 0 where the number is certain.
    """
    n_certain, change, n_without, expected = 0, 0.0, 0, 0.0
    shift = np.uint32(_F32_BITS - significand_bits)
    for i in range(out.size):
        low, high, estimate = lower[i], upper[i], out[i]
        if _is_proven(low, high):
            without, chance = _emptiness(low, high, shift)
            n_without, expected = n_without + without, expected + np.float64(chance)
            single, is_single = _single(low, high, shift)
            if is_single and decides:
                # Not the variance: what is certain are the weights with small errors.
                change -= (np.float64(single) - np.float64(estimate)) ** 2
                out[i] = single
                deviation[i] = 0
                n_certain += 1
                continue
        if rounds_all and np.isfinite(estimate) and _is_regular(estimate, shift):
            out[i] = _rounded(low, high, estimate, shift)
            change += (np.float64(out[i]) - np.float64(estimate)) ** 2
    return Snapped(n_certain, change, n_without, expected)


@inlined
def _is_proven(low: np.float32, high: np.float32) -> bool:
    """Whether an interval is finite and not empty: ``-largest < low <= high < largest``."""
    return bool(low <= high and high < _LARGEST and low > -_LARGEST)


@inlined
def _single(low: np.float32, high: np.float32, shift: np.uint32) -> tuple[np.float32, bool]:
    """The number nearest to the middle of an interval, and whether that holds it and no other."""
    below, nearest, above = _neighbours(np.float32(0.5) * (low + high), shift)
    is_alone = not (low <= below <= high or low <= above <= high)
    return nearest, bool(low <= nearest <= high) and is_alone and _is_regular(nearest, shift)


@inlined
def _rounded(
    low: np.float32, high: np.float32, estimate: np.float32, shift: np.uint32
) -> np.float32:
    """An estimate rounded to the nearest number, or to that on its other side if only it fits."""
    below, chosen, above = _neighbours(estimate, shift)
    if _is_proven(low, high) and not low <= chosen <= high:
        other = above if abs(estimate) > abs(chosen) else below
        chosen = other if low <= other <= high else chosen
    return chosen


@kernel
def count_without(
    lower: F32Array, upper: F32Array, significand_bits: int
) -> tuple[int, int, float, int]:
    """Proven intervals, and what `snap` would find in them; arguments as there.

    Returns
    -------
    int
        Proven intervals.
    int
        Of these, those that hold no number of the format.
    float
        How many would, on average, if the weights had nothing to do with the format.
    int
        Proven intervals that hold a single number.
    """
    n_bounded, n_without, expected, n_single = 0, 0, 0.0, 0
    shift = np.uint32(_F32_BITS - significand_bits)
    for i in range(lower.size):
        low, high = lower[i], upper[i]
        if _is_proven(low, high):
            n_bounded += 1
            without, chance = _emptiness(low, high, shift)
            n_without, expected = n_without + without, expected + np.float64(chance)
            n_single += _single(low, high, shift)[1]
    return n_bounded, n_without, expected, n_single


@kernel
def count_empty(lower: F32Array, upper: F32Array, significand_bits: int) -> tuple[int, float]:
    """Proven intervals (16 n,) that hold no number of the format, and how many would by chance.

    As `count_without` says, sixteen at a time. What is expected is added up in float32 over 256
    intervals, which moves it by less than 1e-6 of itself.
    """
    shift, n_without, expected = _F32_BITS - significand_bits, 0, 0.0
    whole = np.int32(1) << np.int32(shift)
    smallest = _SMALLEST_NORMAL_F16 if significand_bits == 11 else np.float32(1e-37)
    for start in range(0, lower.size, 256):
        sum_chance = splat(np.float32(0))
        for i in range(start, min(start + 256, lower.size), 16):
            low, high = load(lower, i), load(upper, i)
            middle = np.float32(0.5) * (low + high)
            is_one = (low * high > np.float32(0)) & (abs(middle) > smallest)
            is_one = is_one & (high < _LARGEST) & (low > -_LARGEST) & ~(low > high)
            word = bits(middle)
            odd = (word >> shift) & np.int32(1)
            nearest = (word + ((whole >> np.int32(1)) - np.int32(1)) + odd) & (-whole)
            width = high - low
            number, above = from_bits(nearest), from_bits(nearest + whole)
            spacing = abs(above - number)
            is_one = is_one & (width < spacing)
            below = from_bits(nearest - whole)
            without = is_one & (_outside(below, low, high) & _outside(number, low, high))
            n_without += n_true(without & _outside(above, low, high))
            chance = np.float32(1) - width / spacing
            sum_chance = sum_chance + where(is_one, chance, np.float32(0))
        expected += np.float64(add_up(sum_chance))
    return n_without, expected


@kernel
def any_empty(evidence: Evidence, significand_bits: int) -> bool:
    """Whether a proven interval holds no number of the format, in the sense of `count_empty`.

    Neither the intervals nor what is expected of them is kept, and the first such one ends it: that
    costs half as much.
    """
    shift = _F32_BITS - significand_bits
    smallest = _SMALLEST_NORMAL_F16 if significand_bits == 11 else np.float32(1e-37)
    strips, n_groups = new_strips(evidence), evidence.scale.shape[1]
    lower, upper = np.empty(16 * STRIP, np.float32), np.empty(16 * STRIP, np.float32)
    for start in range(0, n_groups, STRIP):
        n = min(STRIP, n_groups - start)
        intersect_strip(evidence, strips, start, lower[: 16 * n], upper[: 16 * n])
        found = splat(np.float32(0)) > np.float32(0)
        for i in range(0, 16 * n, 16):
            low, high = load(lower, i), load(upper, i)
            is_one = (low * high > np.float32(0)) & ~(low > high)
            is_one = is_one & (high < _LARGEST) & (low > -_LARGEST)
            # The next number from the edge that is nearer to 0 on lies beyond the other edge.
            above = low > np.float32(0)
            near, far = where(above, low, -high), where(above, high, -low)
            number = from_bits((bits(near) + np.int32((1 << shift) - 1)) & np.int32(-1 << shift))
            is_one = is_one & (np.float32(0.5) * (near + far) > smallest)
            found = found | (is_one & (number > far))
        if any_lane(found):
            return True
    return False


@inlined
def _outside(number: Any, low: Any, high: Any) -> Any:
    """In which lanes a number is in no interval."""
    return (number < low) | (number > high)


@kernel
def count_scales(raw: U8Array, type_size: int, at: int, divisor: float) -> tuple[int, int]:
    """Scales that come from one weight each, and those that no BF16 weight explains.

    Parameters
    ----------
    raw : uint8 (n_blocks * type_size,)
        Blocks that store f16(weight / divisor), the weight being one of their own.
    type_size : int
        Bytes of a block.
    at : int
        Where in a block that number stands.
    divisor : float
        What the weight was divided by.

    Returns
    -------
    int
        Normal numbers among them.
    int
        Of these, those that are no f16(b / divisor) of any bf16 number b.
    """
    n, n_without = 0, 0
    by = np.float32(divisor)
    for start in range(at, raw.size, type_size):
        word = np.uint16(raw[start]) | np.uint16(np.uint16(raw[start + 1]) << np.uint16(8))
        exponent = word & np.uint16(0x7C00)
        if exponent == np.uint16(0) or exponent == np.uint16(0x7C00):
            continue
        n += 1
        # The BF16 number nearest to the weight, and its neighbours.
        number_bits = f32_bits(f16_to_f32(word) * by)
        nearest = np.uint32(number_bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
        fits = False
        for step in range(-1, 2):
            number = f32_from_bits(np.uint32(np.int64(nearest) + 65536 * step))
            fits |= f32_to_f16(np.float32(number / by)) == word
        n_without += not fits
    return n, n_without


@inlined
def _emptiness(low: np.float32, high: np.float32, shift: np.uint32) -> tuple[bool, np.float32]:
    """Whether an interval holds no number of the format, and the chance that a like one does not.

    The chance is ``1 - (high - low) / spacing``. Intervals around 0, or where numbers lie closer,
    have none.
    """
    middle = np.float32(0.5) * (low + high)
    if low * high <= np.float32(0) or not _is_regular(middle, shift):
        return False, np.float32(0)
    below, nearest, above = _neighbours(middle, shift)
    width, spacing = high - low, abs(above - nearest)
    if width >= spacing:
        return False, np.float32(0)
    without = not (low <= below <= high or low <= nearest <= high or low <= above <= high)
    return without, np.float32(1) - width / spacing


@inlined
def _is_regular(x: np.float32, shift: np.uint32) -> bool:
    """Whether the format's numbers around x are those with fewer bits: not 0, not F16-subnormal."""
    is_f16 = shift == np.uint32(_F32_BITS - 11)
    return bool(abs(x) > (_SMALLEST_NORMAL_F16 if is_f16 else np.float32(1e-37)))


@inlined
def _neighbours(x: np.float32, shift: np.uint32) -> tuple[np.float32, np.float32, np.float32]:
    """The number nearest to x (ties to even) between the next ones in magnitude."""
    word, whole = f32_bits(x), np.uint32(1) << shift
    odd = (word >> shift) & np.uint32(1)
    mask = ~np.uint32(whole - np.uint32(1))
    nearest = np.uint32(word + (whole >> np.uint32(1)) - np.uint32(1) + odd) & mask
    below, above = np.uint32(nearest - whole), np.uint32(nearest + whole)
    return f32_from_bits(below), f32_from_bits(nearest), f32_from_bits(above)

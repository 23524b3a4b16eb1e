"""Numbers of a source format (BF16, F16): which of them a cell holds, and rounding to them.

Where the original was stored in such a format and the proven interval of a weight holds a single
one of its numbers, that number is the weight.
"""

import numpy as np
from numpy.typing import NDArray

from recover._jit import inner, kernel
from recover.quants import F32Array

SIGNIFICAND_BITS = {"bf16": 8, "f16": 11}
_F32_BITS = 24
_SMALLEST_NORMAL_F16 = np.float32(2.0**-14)
_LARGEST = np.float32(3e38)


@kernel
def snap(
    lower: F32Array,
    upper: F32Array,
    significand_bits: int,
    rounds_all: bool,
    out: F32Array,
    deviation: F32Array,
) -> tuple[int, float]:
    """Set weights to numbers of the source's format.

    Parameters
    ----------
    lower, upper : float32 (n,)
        Proven bounds; ``lower > upper`` where the inputs contradict each other.
    significand_bits : int
        Precision of the format, the implicit bit included.
    rounds_all : bool
        Round every estimate; otherwise only weights whose bounds hold a single number are set.
    out : float32 (n,)
        The estimates.
    deviation : float32 (n,)
        Their standard deviations; 0 where the number is certain.

    Returns
    -------
    int
        How many weights are certain.
    float
        What the expected square error changes by, summed.
    """
    n_certain, change = 0, 0.0
    shift = _F32_BITS - significand_bits
    whole = np.int32(1) << np.int32(shift)
    candidates = np.empty(3, np.float32)
    bits = candidates.view(np.int32)
    for i in range(out.size):
        low, high, estimate = lower[i], upper[i], out[i]
        is_proven = low <= high and high < _LARGEST and low > -_LARGEST
        if is_proven:
            _neighbours(np.float32(0.5) * (low + high), whole, candidates, bits)
            inside = (low <= candidates) & (candidates <= high)
            if inside[1] and not inside[0] and not inside[2] and _is_regular(candidates[1], shift):
                # Not the variance: what is certain are the weights with small errors.
                change -= (np.float64(candidates[1]) - np.float64(estimate)) ** 2
                out[i] = candidates[1]
                deviation[i] = 0
                n_certain += 1
                continue
        if rounds_all and np.isfinite(estimate) and _is_regular(estimate, shift):
            _neighbours(estimate, whole, candidates, bits)
            chosen = candidates[1]
            if is_proven and not low <= chosen <= high:
                other = candidates[2] if abs(estimate) > abs(chosen) else candidates[0]
                chosen = other if low <= other <= high else chosen
            change += (np.float64(chosen) - np.float64(estimate)) ** 2
            out[i] = chosen
    return n_certain, change


@kernel
def count_without(lower: F32Array, upper: F32Array, significand_bits: int) -> tuple[int, int]:
    """Proven intervals, and those that hold no number of the format; arguments as of `snap`."""
    n_bounded, n_without = 0, 0
    shift = _F32_BITS - significand_bits
    whole = np.int32(1) << np.int32(shift)
    candidates = np.empty(3, np.float32)
    bits = candidates.view(np.int32)
    for i in range(lower.size):
        low, high = lower[i], upper[i]
        if low <= high and high < _LARGEST and low > -_LARGEST:
            n_bounded += 1
            middle = np.float32(0.5) * (low + high)
            if (low > 0) == (high > 0) and (low < 0) == (high < 0) and _is_regular(middle, shift):
                _neighbours(middle, whole, candidates, bits)
                n_without += not np.any((low <= candidates) & (candidates <= high))
    return n_bounded, n_without


@inner
def _is_regular(x: np.float32, shift: int) -> bool:
    """Whether the format's numbers around x are those with fewer bits: not 0, not F16-subnormal."""
    smallest = _SMALLEST_NORMAL_F16 if shift == _F32_BITS - 11 else np.float32(1e-37)
    return bool(abs(x) > smallest)


@inner
def _neighbours(
    x: np.float32, whole: np.int32, candidates: F32Array, bits: NDArray[np.int32]
) -> None:
    """The number nearest to x (ties to even) between the next ones in magnitude."""
    candidates[1] = x
    odd = (bits[1] // whole) & np.int32(1)
    nearest = (bits[1] + (whole >> np.int32(1)) - np.int32(1) + odd) & ~(whole - np.int32(1))
    bits[0], bits[1], bits[2] = nearest - whole, nearest, nearest + whole

"""Which weights tell whether one input was made from another one: those that it may be off.

What a parent holds without an error, as constant and ternary weights, looks as if everything else
was made from it.
"""

import numpy as np
from numpy.typing import NDArray

from recover._compiled.float16 import f32_bits
from recover._compiled.jit import inner, kernel
from recover.inputs.samples import Sample
from recover.quants import GROUP, F32Array


def telling(parent: Sample, child: Sample) -> NDArray[np.bool_]:
    """Weights (n,) of which the parent would be off if it were another quantization.

    Types that models are published in are taken to hold their weights without an error.
    """
    if (known := parent.told.get(child)) is not None:
        return known
    if parent.type.is_native:
        tells = _varies(parent.values)
    else:
        tells = _may_be_off(parent.values)
        _keep_first(parent.values, child.values, tells)
    parent.told[child] = tells
    return tells


def pairs(parent: Sample, child: Sample) -> NDArray[np.uint64]:
    """What both say of each weight, as one number (n,); zeros of either sign are the same."""
    one, other = (
        np.where(x == 0, np.float32(0), x).view(np.uint32).astype(np.uint64)
        for x in (parent.values, child.values)
    )
    return one << np.uint64(32) | other


@kernel
def _varies(values: F32Array) -> NDArray[np.bool_]:
    """Which decoded weights (n,) are no zeros, in groups that are not constant."""
    found = np.zeros(values.size, np.bool_)
    for start in range(0, values.size, GROUP):
        group = values[start : start + GROUP]
        for i in range(group.size):
            found[start + i] = group[i] != 0 and group.min() < group.max()
    return found


@kernel
def _may_be_off(values: F32Array) -> NDArray[np.bool_]:
    """Which decoded weights (n,) are neither zeros nor at an end of a group, if that has others."""
    found = np.zeros(values.size, np.bool_)
    for start in range(0, values.size, GROUP):
        end = min(start + GROUP, values.size)
        low = high = values[start]
        for value in values[start:end]:
            low, high = min(low, value), max(high, value)
        least, most = high, low  # of those in between
        for value in values[start:end]:
            if low < value < high:
                least, most = min(least, value), max(most, value)
        for i in range(start, end):
            found[i] = least < most and low < values[i] < high and values[i] != 0
    return found


_LOW = np.uint64(0xFFFFFFFF)
_FACTOR = np.uint64(2654435769)  # 2^32 over the golden ratio: Knuth's multiplicative hashing
_OTHER_FACTOR = np.uint64(2246822519)


@kernel
def _keep_first(one: F32Array, other: F32Array, tells: NDArray[np.bool_]) -> None:
    """Of weights (n,) that tell, and of which both inputs say the same, leave the first one.

    A table of twice the size has, at a place that depends on what both say or behind it, the number
    of the first weight.
    """
    n_bits = 1
    while 1 << n_bits < 2 * tells.size:
        n_bits += 1
    mask, shift = (1 << n_bits) - 1, np.uint64(max(32 - n_bits, 0))
    table = np.full(1 << n_bits, -1, np.int64)
    for i in range(tells.size):
        if tells[i]:
            low, high = _bits(one[i]), _bits(other[i])
            mixed = ((low * _FACTOR) & _LOW) ^ ((high * _OTHER_FACTOR) & _LOW)
            at = np.int64(mixed >> shift) & mask
            while table[at] >= 0 and (one[table[at]] != one[i] or other[table[at]] != other[i]):
                at = (at + 1) & mask
            if table[at] < 0:
                table[at] = i
            else:
                tells[i] = False


@inner
def _bits(value: np.float32) -> np.uint64:
    """Those of a number; of zeros of either sign the same."""
    return np.uint64(f32_bits(value)) if value != 0 else np.uint64(0)

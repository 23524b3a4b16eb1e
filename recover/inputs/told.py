"""Which weights tell whether one input was made from another one: those that it may be off.

What a parent holds without an error, as constant and ternary weights, looks as if everything else
was made from it.
"""

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import kernel
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
        places = np.flatnonzero(_may_be_off(parent.values))
        tells = np.zeros(parent.values.size, np.bool_)
        tells[places[np.unique(pairs(parent, child)[places], return_index=True)[1]]] = True
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

"""Codes that confine no weight: a value with an error whose size depends on the value.

Trellis codes and their kin are found by a search that weighs weights against each other, so that a
weight may be far from the value that stands for it. What is stated is the mean square error by the
size of the level, in units of the squared scale, as it was measured.
"""

import numpy as np

from recover._compiled.jit import kernel
from recover.quants.base import F32Array
from recover.quants.interval import Stated

LEVELS = np.float32(1)
"""The unit of levels that are integers."""

_FAR = np.float32(np.inf)


def variances(deviations: tuple[tuple[float, float], ...]) -> F32Array:
    """Squared errors by the size of the level (256,), from deviations at some sizes of it."""
    sizes, at = zip(*deviations, strict=True)
    table: F32Array = np.square(np.interp(np.arange(256), sizes, at)).astype(np.float32)
    table.flags.writeable = False
    return table


@kernel
def fill_soft(
    levels: F32Array,
    scale: F32Array,
    table: F32Array,
    unit: np.float32,
    stated: Stated,
) -> None:
    """Values ``scale * level`` without bounds; `scale` is that of each 16 weights.

    `unit` is that of the table, in units of the levels.
    """
    value, lower, upper, variance = stated
    for g in range(scale.size):
        s = scale[g]
        square = (s * unit) * (s * unit) if s != 0 and abs(s) < _FAR else _FAR
        for i in range(16 * g, 16 * g + 16):
            value[i] = s * levels[i]
            lower[i], upper[i] = -_FAR, _FAR
            size = min(abs(levels[i]) / unit, np.float32(255)) + np.float32(0.5)
            variance[i] = square * table[np.int64(size)] if square < _FAR else _FAR

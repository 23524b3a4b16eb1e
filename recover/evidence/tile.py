"""What K inputs say of the same weights, in one shape for every format: `Evidence`."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover.quants import F32Array, U8Array


class Evidence(NamedTuple):
    """A tile of n weights as K scalar, I interval and V other inputs tell it, in that order.

    The finest input comes first in each. A scalar input says ``scale * levels[code] + offset``;
    scale and offset are given per group of 16 weights, whatever the format's own sub-block is. An
    interval input says a value and bounds for each weight, the others say a value.
    """

    codes: U8Array
    """(K, n)"""
    scale: F32Array
    """(K, n / 16)"""
    offset: F32Array
    """(K, n / 16)"""
    levels: F32Array
    """(K, 256)"""
    lower_levels: F32Array
    """(K, 256); -inf throughout if the codes of this input prove nothing."""
    upper_levels: F32Array
    """(K, 256); inf throughout if the codes of this input prove nothing."""
    scale_error: F32Array
    """(K, n / 16): how far the scale that chose the codes may be from the stored one; where the
    integer scale of a sub-block is 0, minus the scale of its superblock (see `lost`)."""
    offset_error: F32Array
    """(K, n / 16): the same of the offset; infinite where the codes prove nothing."""
    noise: NDArray[np.float64]
    """(K,) mean square error in units of the squared scale."""
    code_errors: F32Array
    """(K, 256): that of each code, over that of all (see
    `recover.evidence.densities.errors_by_code`)."""
    density: F32Array
    """(K, 4, 5): where in their cells weights lie (see `recover.evidence.densities`)."""
    end_codes: NDArray[np.int32]
    """(K, 2): the lowest and the highest code."""
    extremes: NDArray[np.int32]
    """(K, 2, 2): pairs of codes of which one weight in each block of 32 equals its level but for
    rounding (see `ScalarType.extremes`); -1 where there are none."""
    scale_steps: NDArray[np.float64]
    """(K,): the largest integer scale of a sub-block (see `ScalarType.scale_steps`)."""
    lost: NDArray[np.float64]
    """(K, 3): how far weights are, and no weight is, from the offset where the integer scale is 0,
    in units of the superblock's scale (see `ScalarType.lost_spread`): 0 and infinite if unknown;
    whether that counts beside inputs with a scale. (Offsets are rounded: only that of 0 does.)"""
    values: F32Array
    """(V, n): what the other inputs say, decoded."""
    variance: F32Array
    """(V, n / 16): their mean square error, typical of their type."""
    likelihood: F32Array
    """(V, 4): centre of what a value says of the weight, over the value; its variance, over the
    variance above (see `recover.evidence.densities.likelihood`); what it counts beside the other
    inputs (see `recover.evidence.densities.tempering`); its variance, over that of the weights."""
    correlation: NDArray[np.float64]
    """(V, V): how the errors of the other inputs go together (see
    `recover.evidence.densities.correlation`)."""
    weights: NDArray[np.float64]
    """(K + I + V,): what a calibration says that the inputs weigh; (0,) if none."""
    interval_values: F32Array
    """(I, n): what the interval inputs say, decoded."""
    interval_lower: F32Array
    """(I, n): lower bounds of the weights; -inf where there is none."""
    interval_upper: F32Array
    """(I, n): upper bounds of the weights; inf where there is none."""
    interval_variance: F32Array
    """(I, n): the mean square error to expect of each value; infinite where nothing is known."""
    interval_noise: NDArray[np.float64]
    """(I,): that in units of the squared step of a weight."""
    interval_density: F32Array
    """(I, 4, 5): where between their bounds weights lie (see
    `recover.evidence.densities.interval_density`)."""
    finest: int
    """Which input is taken alone where the inputs contradict each other: the first scalar one or,
    if it is finer or there is none of those, the first interval one; otherwise 0."""
    largest_lost: float
    """The largest weights that any of the inputs may have stored as zeros."""

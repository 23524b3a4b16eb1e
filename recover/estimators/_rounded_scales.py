"""Superblocks of weights so small that float16 has few digits for their scales."""

import numpy as np

from recover.evidence.buffer import Evidence
from recover.quants import F32Array

UNIT = 2.0**-24
"""Float16 numbers below 2^-14 are multiples of this."""


def least_scales(evidence: Evidence, most: float) -> F32Array:
    """What the largest scale of a superblock is at least, unless float16 rounded its own by much.

    A scale of n units of float16 is off by up to half a unit, and the levels at the ends by up to
    half their distance from the middle over n.

    Parameters
    ----------
    evidence : Evidence
    most : float
        How far these levels may be off, in steps.

    Returns
    -------
    float32 (n_inputs,)
    """
    half_range = np.abs(evidence.end_codes[:, 1] - evidence.end_codes[:, 0]) / 2
    largest = np.maximum(evidence.scale_steps, 1)
    return (half_range * largest * UNIT / (2 * most)).astype(np.float32)

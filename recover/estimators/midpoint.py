"""The middle of the intersection of all cells.

Consistent reconstruction (Goyal, Vetterli, Thao, IEEE Trans. Inf. Theory 44(1), 1998): no other
point has a smaller worst-case error. Where the intersection is open on a side, the linear estimate
is moved into it; where it is empty, the first (finest) input is taken alone.
"""

import numpy as np
from numpy.typing import NDArray

from recover._jit import kernel
from recover.cells import intersect_cells
from recover.estimators._combine import combine, scalar_variance
from recover.evidence import Evidence
from recover.quants import GROUP, F32Array

SEES_CONFLICTS = True


def estimate(evidence: Evidence, out: F32Array, tally: NDArray[np.float64]) -> None:
    """See `recover.estimators`."""
    variance = np.empty(out.size // GROUP, np.float32)
    combine(evidence, out, variance, tally)
    lower, upper = np.empty_like(out), np.empty_like(out)
    intersect_cells(evidence, lower, upper)
    _move_into_cells(evidence, lower, upper, variance, out, tally)


@kernel
def _expected_variance(evidence: Evidence, g: int, i: int, width: np.float32) -> float:
    """Expected mean square error of the middle of an interval of this width.

    That of the first input, shrunk as much as its own cell was (errors are not uniform in a cell:
    the search for the scale draws them to the middle); uniform where its own cell is open.
    """
    if evidence.codes.shape[0] > 0:
        code = evidence.codes[0, i]
        own = evidence.upper_levels[0, code] - evidence.lower_levels[0, code]
        if own < np.inf:
            shrunk = np.float64(width) / np.float64(own)
            return evidence.noise[0] * shrunk * shrunk
    return np.float64(width) * np.float64(width) / 12


@kernel
def _move_into_cells(
    evidence: Evidence,
    lower: F32Array,
    upper: F32Array,
    variance: F32Array,
    out: F32Array,
    tally: NDArray[np.float64],
) -> None:
    """Replace the linear estimates in `out`; add up the variance to expect, and the conflicts."""
    n_conflicts = 0
    expected = 0.0
    for g in range(variance.size):
        for i in range(16 * g, 16 * g + 16):
            width = upper[i] - lower[i]
            if width < 0:
                n_conflicts += 1
                level = evidence.levels[0, evidence.codes[0, i]]
                out[i] = evidence.scale[0, g] * level + evidence.offset[0, g]
                expected += scalar_variance(evidence, 0, g)
            elif width < np.inf:
                out[i] = np.float32(0.5) * (lower[i] + upper[i])
                expected += _expected_variance(evidence, g, i, width)
            else:
                out[i] = min(max(out[i], lower[i]), upper[i])
                expected += variance[g]
    tally[0] += expected
    tally[1] += n_conflicts

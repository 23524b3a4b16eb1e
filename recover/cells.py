"""What the stored codes prove: the cell of each weight, and the intersection over all inputs.

The encoders choose, for each weight, the code of the cell that the weight lies in (`lower_levels`
and `upper_levels` of a `ScalarType`); so the stored code proves that the original weight lies in
``[scale * lower_level + offset, scale * upper_level + offset]``, widened by what rounding allows.
"""

import numpy as np

from recover._jit import kernel
from recover.evidence import Evidence
from recover.quants import F32Array, U8Array


def intersect_cells(evidence: Evidence, lower: F32Array, upper: F32Array) -> None:
    """Bounds (n,) that all inputs agree on; ``lower > upper`` where they contradict each other."""
    lower[:] = -np.inf
    upper[:] = np.inf
    for k in range(evidence.codes.shape[0]):
        _narrow(
            evidence.codes[k],
            (evidence.scale[k], evidence.scale_error[k]),
            (evidence.offset[k], evidence.offset_error[k]),
            evidence.lower_levels[k],
            evidence.upper_levels[k],
            lower,
            upper,
        )


@kernel
def _narrow(
    codes: U8Array,
    scales: tuple[F32Array, F32Array],
    offsets: tuple[F32Array, F32Array],
    lower_edges: F32Array,
    upper_edges: F32Array,
    lower: F32Array,
    upper: F32Array,
) -> None:
    """Intersect `lower` and `upper` with one input's cells; scales and offsets with their errors."""
    scale, scale_error = scales
    offset, offset_error = offsets
    for g in range(scale.size):
        s = scale[g]
        o = offset[g]
        if s == 0 or not (np.isfinite(s) and np.isfinite(o)):
            continue  # the codes are left over from the encoder's search
        s_error = scale_error[g]
        o_error = offset_error[g]
        for i in range(16 * g, 16 * g + 16):
            low = lower_edges[codes[i]]
            high = upper_edges[codes[i]]
            if s < 0:
                low, high = high, low
            lower[i] = max(lower[i], s * low + o - (s_error * abs(low) + o_error))
            upper[i] = min(upper[i], s * high + o + (s_error * abs(high) + o_error))

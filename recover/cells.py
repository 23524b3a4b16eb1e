"""What the stored codes prove: the cell of each weight, and the intersection over all inputs.

The encoders choose, for each weight, the code of the cell that the weight lies in (`lower_levels`
and `upper_levels` of a `ScalarType`); so the stored code proves that the original weight lies in
``[scale * lower_level + offset, scale * upper_level + offset]``, widened by what rounding allows.
"""

import numpy as np

from recover._jit import kernel
from recover.evidence import Evidence
from recover.quants import F32Array, U8Array

# Half the spacing of the smallest float16 numbers: rounding a scale to float16 is off by this much
# even where its relative precision ends.
_F16_TINY = np.float32(2.0**-25)


def intersect_cells(evidence: Evidence, lower: F32Array, upper: F32Array) -> None:
    """Bounds (n,) that all inputs agree on; ``lower > upper`` where they contradict each other."""
    lower[:] = -np.inf
    upper[:] = np.inf
    for k in range(evidence.codes.shape[0]):
        edges = evidence.lower_levels[k], evidence.upper_levels[k]
        slack = evidence.scale_slack[k], evidence.offset_slack[k]
        _narrow(evidence.codes[k], evidence.scale[k], evidence.offset[k], edges, slack, lower, upper)


@kernel
def _narrow(
    codes: U8Array,
    scale: F32Array,
    offset: F32Array,
    edges: tuple[F32Array, F32Array],
    slack: tuple[np.float32, np.float32],
    lower: F32Array,
    upper: F32Array,
) -> None:
    """Intersect `lower` and `upper` with the cells of one input."""
    lower_edges, upper_edges = edges
    scale_slack, offset_slack = slack
    for g in range(scale.size):
        s = scale[g]
        o = offset[g]
        if s == 0 or not (np.isfinite(s) and np.isfinite(o)):
            continue  # the codes are left over from the encoder's search
        common = offset_slack * abs(o) + _F16_TINY
        for i in range(16 * g, 16 * g + 16):
            a = s * lower_edges[codes[i]]
            b = s * upper_edges[codes[i]]
            low = min(a, b)  # a negative scale swaps them
            high = max(a, b)
            lower[i] = max(lower[i], low + o - (scale_slack * abs(low) + common))
            upper[i] = min(upper[i], high + o + (scale_slack * abs(high) + common))

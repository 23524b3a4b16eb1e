"""What the stored codes prove: the cell of each weight, and the intersection over all inputs.

The encoders choose, for each weight, the code of the cell that the weight lies in (`lower_levels`
and `upper_levels` of a `ScalarType`); so the stored code proves that the original weight lies in
``[scale * lower_level + offset, scale * upper_level + offset]``, widened by what rounding allows.
"""

import numpy as np

from recover._jit import kernel
from recover.evidence import Evidence
from recover.quants import F32Array

# Half the spacing of the smallest float16 numbers: rounding a scale to float16 is off by this much
# even where its relative precision ends.
_F16_TINY = np.float32(2.0**-25)


@kernel
def intersect_cells(evidence: Evidence, lower: F32Array, upper: F32Array) -> None:
    """Bounds (n,) that all inputs agree on; ``lower > upper`` where they contradict each other."""
    lower[:] = -np.inf
    upper[:] = np.inf
    for k in range(evidence.codes.shape[0]):
        codes = evidence.codes[k]
        scale_slack = evidence.scale_slack[k]
        offset_slack = evidence.offset_slack[k]
        for g in range(evidence.scale.shape[1]):
            s = evidence.scale[k, g]
            o = evidence.offset[k, g]
            if s == 0 or not (np.isfinite(s) and np.isfinite(o)):
                continue  # the codes are left over from the encoder's search
            if s > 0:
                low, high = evidence.lower_levels[k], evidence.upper_levels[k]
            else:
                low, high = evidence.upper_levels[k], evidence.lower_levels[k]
            slack = offset_slack * abs(o) + _F16_TINY
            for j in range(16):
                i = 16 * g + j
                a = s * low[codes[i]]
                b = s * high[codes[i]]
                a = a + o - (scale_slack * abs(a) + slack)
                b = b + o + (scale_slack * abs(b) + slack)
                lower[i] = max(lower[i], a)
                upper[i] = min(upper[i], b)

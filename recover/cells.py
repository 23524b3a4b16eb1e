"""What the stored codes prove: the cell of each weight, and the intersection over all inputs.

The encoders choose, for each weight, the code of the cell that the weight lies in (`lower_levels`
and `upper_levels` of a `ScalarType`); so the stored code proves that the original weight lies in
``[scale * lower_level + offset, scale * upper_level + offset]``, widened by what rounding allows.
"""

import numpy as np

from recover._jit import kernel
from recover.evidence import Evidence
from recover.quants import F32Array, U8Array
from recover.quants._lanes import gather, load, load_bytes, store, where


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
    """Intersect `lower` and `upper` with one input's cells; scales, offsets with their errors."""
    scale, scale_error = scales
    offset, offset_error = offsets
    for g in range(scale.size):
        s = scale[g]
        o = offset[g]
        if s == 0 or not (np.isfinite(s) and np.isfinite(o)):
            continue  # the codes are left over from the encoder's search
        q = load_bytes(codes, 16 * g)
        low, high = gather(lower_edges, q), gather(upper_edges, q)
        if s < 0:
            low, high = high, low
        new_lower = low * s + o - (abs(low) * scale_error[g] + offset_error[g])
        new_upper = high * s + o + (abs(high) * scale_error[g] + offset_error[g])
        old_lower, old_upper = load(lower, 16 * g), load(upper, 16 * g)
        store(lower, 16 * g, where(new_lower > old_lower, new_lower, old_lower))
        store(upper, 16 * g, where(new_upper < old_upper, new_upper, old_upper))

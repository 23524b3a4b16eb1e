"""What the stored codes prove: the cell of each weight, and the intersection over all inputs.

The encoders choose, for each weight, the code of the cell that the weight lies in (`lower_levels`
and `upper_levels` of a `ScalarType`); so the stored code proves that the original weight lies in
``[scale * lower_level + offset, scale * upper_level + offset]``, widened by what rounding allows.
"""

import numpy as np

from recover._jit import kernel
from recover.evidence import Evidence
from recover.quants import F32Array, U8Array
from recover.quants._lanes import gather, load, load_bytes, store, to_f32, where


def intersect_cells(evidence: Evidence, lower: F32Array, upper: F32Array) -> None:
    """Bounds (n,) that all inputs agree on; ``lower > upper`` where they contradict each other."""
    lower[:] = -np.inf
    upper[:] = np.inf
    for k in range(evidence.codes.shape[0]):
        _narrow(
            evidence.codes[k],
            (evidence.scale[k], evidence.scale_error[k]),
            (evidence.offset[k], evidence.offset_error[k]),
            (evidence.lower_levels[k], evidence.upper_levels[k]),
            _uniform(evidence, k),
            lower,
            upper,
        )


def _uniform(evidence: Evidence, k: int) -> tuple[np.float32, int]:
    """Level of code 0 and last code, if all cells but those of the ends are one wide; else NaN."""
    first, last = evidence.end_codes[k]
    levels = evidence.levels[k, : last + 1]
    lower, upper = evidence.lower_levels[k, : last + 1], evidence.upper_levels[k, : last + 1]
    half = np.float32(0.5)
    simple = (
        first == 0
        and np.array_equal(lower[1:], levels[1:] - half)
        and np.array_equal(upper[:-1], levels[:-1] + half)
    )
    return levels[0] if simple else np.float32(np.nan), int(last)


@kernel
def _narrow(
    codes: U8Array,
    scales: tuple[F32Array, F32Array],
    offsets: tuple[F32Array, F32Array],
    edges: tuple[F32Array, F32Array],
    uniform: tuple[np.float32, int],
    lower: F32Array,
    upper: F32Array,
) -> None:
    """Intersect `lower` and `upper` with one input's cells; scales, offsets with their errors."""
    scale, scale_error = scales
    offset, offset_error = offsets
    lower_edges, upper_edges = edges
    first_level, last = uniform
    simple = not np.isnan(first_level)
    half = np.float32(0.5)
    for g in range(scale.size):
        s = scale[g]
        o = offset[g]
        if s == 0 or not (np.isfinite(s) and np.isfinite(o)):
            continue  # the codes are left over from the encoder's search
        q = load_bytes(codes, 16 * g)
        if simple:
            level = to_f32(q) + first_level
            low = where(q == 0, lower_edges[0], level - half)
            high = where(q == last, upper_edges[last], level + half)
        else:
            low, high = gather(lower_edges, q), gather(upper_edges, q)
        if s < 0:
            low, high = high, low
        new_lower = low * s + o - (abs(low) * scale_error[g] + offset_error[g])
        new_upper = high * s + o + (abs(high) * scale_error[g] + offset_error[g])
        old_lower, old_upper = load(lower, 16 * g), load(upper, 16 * g)
        store(lower, 16 * g, where(new_lower > old_lower, new_lower, old_lower))
        store(upper, 16 * g, where(new_upper < old_upper, new_upper, old_upper))

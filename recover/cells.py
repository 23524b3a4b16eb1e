"""What the stored codes prove: the cell of each weight, and the intersection over all inputs.

The encoders choose, for each weight, the code of the cell that the weight lies in (`lower_levels`
and `upper_levels` of a `ScalarType`); so the stored code proves that the original weight lies in
``[scale * lower_level + offset, scale * upper_level + offset]``, widened by what rounding allows.
"""

import numpy as np
from numpy.typing import NDArray

from recover._jit import kernel
from recover.evidence import Evidence
from recover.quants import F32Array, U8Array
from recover.quants._lanes import gather, load, load_bytes, store, to_f32, where

_STRIP = 256  # groups whose bounds stay in the first-level cache
_HALF = np.float32(0.5)
_FAR = np.float32(np.inf)
_ZERO = np.float32(0)


@kernel
def intersect_cells(evidence: Evidence, lower: F32Array, upper: F32Array) -> None:
    """Bounds (n,) that all inputs agree on; ``lower > upper`` where they contradict each other."""
    n_groups = evidence.scale.shape[1]
    is_uniform = np.empty(evidence.scale.shape[0], np.bool_)
    for k in range(is_uniform.size):
        is_uniform[k] = _is_uniform(evidence, k)
    uniform, others = np.flatnonzero(is_uniform), np.flatnonzero(~is_uniform)
    places = np.empty((uniform.size, 7, _STRIP), np.float32)
    ends = np.empty((uniform.size, 2, _STRIP), np.int32)
    lower[:] = -_FAR
    upper[:] = _FAR
    for j in range(others.size):
        scales = evidence.scale[others[j]], evidence.scale_error[others[j]]
        offsets = evidence.offset[others[j]], evidence.offset_error[others[j]]
        edges = evidence.lower_levels[others[j]], evidence.upper_levels[others[j]]
        _narrow(evidence.codes[others[j]], scales, offsets, edges, lower, upper)
    for start in range(0, n_groups, _STRIP):
        end = min(start + _STRIP, n_groups)
        for j in range(uniform.size):
            _place_cells(evidence, uniform[j], start, end, places[j], ends[j])
        part = slice(16 * start, 16 * end)
        _narrow_uniform(evidence, uniform, start, places, ends, lower[part], upper[part])


@kernel
def _is_uniform(evidence: Evidence, k: int) -> bool:
    """Whether all cells but those of the ends reach half a level to both sides."""
    first, last = evidence.end_codes[k]
    for q in range(first, last + 1):
        level = evidence.levels[k, 0] + np.float32(q)
        if evidence.levels[k, q] != level:
            return False
        if q > first and evidence.lower_levels[k, q] != level - _HALF:
            return False
        if q < last and evidence.upper_levels[k, q] != level + _HALF:
            return False
    return True


@kernel
def _place_cells(
    evidence: Evidence, k: int, start: int, end: int, places: F32Array, ends: NDArray[np.int32]
) -> None:
    """What `_narrow_uniform` needs to know of groups `start` to `end` of an input.

    Fills `places` (7, n_groups): scale, offset, half with the sign of the scale, error of the
    scale, half the width of a cell, lower edge of the lowest cell, upper edge of the highest; and
    `ends` (2, n_groups), the codes of these two. A group whose codes are left over from the
    encoder's search gets an infinite width.
    """
    scale, scale_error = evidence.scale[k, start:end], evidence.scale_error[k, start:end]
    offset, offset_error = evidence.offset[k, start:end], evidence.offset_error[k, start:end]
    first, last = evidence.end_codes[k]
    lowest, highest = evidence.lower_levels[k, first], evidence.upper_levels[k, last]
    for g in range(scale.size):
        s, o = scale[g], offset[g]
        known = (s != 0) & (abs(s) < _FAR) & (abs(o) < _FAR)
        s, o = (s, o) if known else (_ZERO, _ZERO)
        s_error, o_error = (scale_error[g], offset_error[g]) if known else (_ZERO, _FAR)
        at_lower, at_upper = (highest, lowest) if s < 0 else (lowest, highest)
        places[0, g], places[1, g] = s, o
        places[2, g] = -_HALF if s < 0 else _HALF
        places[3, g], places[4, g] = s_error, _HALF * abs(s) + o_error
        places[5, g] = at_lower * s + o - (abs(at_lower) * s_error + o_error)
        places[6, g] = at_upper * s + o + (abs(at_upper) * s_error + o_error)
        ends[0, g] = last if s < 0 else first
        ends[1, g] = first if s < 0 else last


@kernel
def _narrow_uniform(
    evidence: Evidence,
    inputs: NDArray[np.int64],
    start: int,
    places: F32Array,
    ends: NDArray[np.int32],
    lower: F32Array,
    upper: F32Array,
) -> None:
    """Intersect bounds of groups from `start` on with the uniform cells of some inputs."""
    codes = evidence.codes.reshape(-1)
    first_codes, first_levels = evidence.end_codes[inputs, 0], evidence.levels[inputs, 0]
    positions = inputs * evidence.codes.shape[1] + 16 * start
    for g in range(lower.size // 16):
        low, high = load(lower, 16 * g), load(upper, 16 * g)
        for j in range(inputs.size):
            q = load_bytes(codes, positions[j] + 16 * g)
            level = to_f32(q) + first_levels[j]
            value = level * places[j, 0, g] + places[j, 1, g]
            half, error, reach = places[j, 2, g], places[j, 3, g], places[j, 4, g]
            below = value - (abs(level - half) * error + reach)
            above = value + (abs(level + half) * error + reach)
            below = where(q == ends[j, 0, g], places[j, 5, g], below)
            above = where(q == ends[j, 1, g], places[j, 6, g], above)
            if first_codes[j] > 0:  # lower codes are never given
                below = where(q < first_codes[j], -_FAR, below)
                above = where(q < first_codes[j], _FAR, above)
            low = where(below > low, below, low)
            high = where(above < high, above, high)
        store(lower, 16 * g, low)
        store(upper, 16 * g, high)


@kernel
def _narrow(
    codes: U8Array,
    scales: tuple[F32Array, F32Array],
    offsets: tuple[F32Array, F32Array],
    edges: tuple[F32Array, F32Array],
    lower: F32Array,
    upper: F32Array,
) -> None:
    """Intersect bounds with cells whose edges come from tables; scales, offsets with errors."""
    scale, scale_error = scales
    offset, offset_error = offsets
    lower_edges, upper_edges = edges
    for g in range(scale.size):
        s, o = scale[g], offset[g]
        if s == 0 or not (abs(s) < _FAR and abs(o) < _FAR):
            continue  # the codes are left over from the encoder's search
        q = load_bytes(codes, 16 * g)
        low, high = gather(lower_edges, q), gather(upper_edges, q)
        if s < 0:
            low, high = high, low
        below = low * s + o - (abs(low) * scale_error[g] + offset_error[g])
        above = high * s + o + (abs(high) * scale_error[g] + offset_error[g])
        old_lower, old_upper = load(lower, 16 * g), load(upper, 16 * g)
        store(lower, 16 * g, where(below > old_lower, below, old_lower))
        store(upper, 16 * g, where(above < old_upper, above, old_upper))

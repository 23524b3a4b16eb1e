"""What the stored codes prove: the cell of each weight, and the intersection over all inputs.

The encoders choose, for each weight, the code of the cell that the weight lies in (`lower_levels`
and `upper_levels` of a `ScalarType`); so the stored code proves that the original weight lies in
``[scale * lower_level + offset, scale * upper_level + offset]``, widened by what rounding allows.
Interval inputs state such bounds themselves.

The 32-weight formats tell more of the weight that a block's scale was fitted to: it equals the
level of an end code but for rounding (`ScalarType.extremes`). If only one weight of the block has
that code, it is the one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.doubles import n_true
from recover._compiled.jit import bare_inner, inner, kernel
from recover._compiled.lanes import (
    gather,
    load,
    load_bytes,
    splat,
    store,
    store_bytes,
    to_f32,
    where,
)
from recover.evidence.edges import edge_above, edge_below, find_extremes
from recover.evidence.tile import Evidence
from recover.quants import F32Array, U8Array

STRIP = 256
"""Groups of 16 weights whose bounds stay in the first-level cache."""

_HALF = np.float32(0.5)
_FAR = np.float32(np.inf)
_ZERO = np.float32(0)


_TABLE, _SIGNED, _POSITIVE = range(3)  # ways to find the edges of cells


class Strips(NamedTuple):
    """Which inputs find their cells in which way, and memory for a strip of `STRIP` groups."""

    by_table: NDArray[np.int64]
    signed: NDArray[np.int64]
    positive: NDArray[np.int64]
    places: F32Array
    scratch: F32Array


@kernel
def intersect_cells(evidence: Evidence, lower: F32Array, upper: F32Array) -> None:
    """Bounds (n,) that all inputs agree on; ``lower > upper`` where they contradict each other."""
    _intersect_all(evidence, new_strips(evidence), lower, upper)


@bare_inner
def _intersect_all(evidence: Evidence, strips: Strips, lower: F32Array, upper: F32Array) -> None:
    n_groups = evidence.scale.shape[1]
    for start in range(0, n_groups, STRIP):
        end = min(start + STRIP, n_groups)
        part = slice(16 * start, 16 * end)
        intersect_strip(evidence, strips, start, lower[part], upper[part])


@inner
def _strip_of(evidence: Evidence) -> Evidence:
    """Uninitialised memory for the bounds of `STRIP` groups of such evidence; the rest of it."""
    n_scalars, n_intervals = evidence.scale.shape[0], evidence.interval_lower.shape[0]
    groups = np.empty((4, n_scalars, STRIP), np.float32)
    bounds = np.empty((2, n_intervals, 16 * STRIP), np.float32)
    return Evidence(
        codes=np.empty((n_scalars, 16 * STRIP), np.uint8),
        scale=groups[0],
        offset=groups[1],
        levels=evidence.levels,
        lower_levels=evidence.lower_levels,
        upper_levels=evidence.upper_levels,
        scale_error=groups[2],
        offset_error=groups[3],
        noise=evidence.noise,
        code_errors=evidence.code_errors,
        density=evidence.density,
        end_codes=evidence.end_codes,
        extremes=evidence.extremes,
        scale_steps=evidence.scale_steps,
        lost=evidence.lost,
        values=evidence.values,
        variance=evidence.variance,
        likelihood=evidence.likelihood,
        correlation=evidence.correlation,
        weights=evidence.weights,
        interval_values=evidence.interval_values,
        interval_lower=bounds[0],
        interval_upper=bounds[1],
        interval_variance=evidence.interval_variance,
        interval_noise=evidence.interval_noise,
        interval_density=evidence.interval_density,
        finest=evidence.finest,
        largest_lost=evidence.largest_lost,
    )


@kernel
def count_contradictions(evidence: Evidence, step: int, counts: NDArray[np.int64]) -> None:
    """Add weights on which the inputs contradict each other to the counts (n_tensors,).

    Tensors of one size, of whole groups of 16 weights, lie one behind the other. One pair of groups
    in `step` is looked at.
    """
    lower, upper = np.empty(16 * STRIP, np.float32), np.empty(16 * STRIP, np.float32)
    strips = new_strips(evidence)
    _count_all(evidence, _strip_of(evidence), strips, lower, upper, step, counts)


@bare_inner
def _count_all(
    evidence: Evidence,
    strip: Evidence,
    strips: Strips,
    lower: F32Array,
    upper: F32Array,
    step: int,
    counts: NDArray[np.int64],
) -> None:
    n_groups = evidence.scale.shape[1]
    if step > 1:
        n_groups = 2 * -(-(n_groups // 2) // step)
    size = n_groups // counts.size
    for start in range(0, n_groups, STRIP):
        n = min(STRIP, n_groups - start)
        if step > 1:
            _take_pairs(evidence, start * step, n, step, strip)
            intersect_strip(strip, strips, 0, lower[: 16 * n], upper[: 16 * n])
        else:
            intersect_strip(evidence, strips, start, lower[: 16 * n], upper[: 16 * n])
        for g in range(n):
            n_found = n_true(load(lower, 16 * g) > load(upper, 16 * g))
            if n_found:
                counts[(start + g) // size] += n_found


@bare_inner
def _take_pairs(evidence: Evidence, start: int, n: int, step: int, strip: Evidence) -> None:
    """Copy one pair of groups in `step` from group `start` on: `n` groups."""
    for k in range(evidence.scale.shape[0]):
        codes, out = evidence.codes[k], strip.codes[k]
        for g in range(n):
            at = start + g // 2 * 2 * step + g % 2
            store_bytes(out, 16 * g, load_bytes(codes, 16 * at))
            strip.scale[k, g], strip.offset[k, g] = evidence.scale[k, at], evidence.offset[k, at]
            strip.scale_error[k, g] = evidence.scale_error[k, at]
            strip.offset_error[k, g] = evidence.offset_error[k, at]
    for k in range(evidence.interval_lower.shape[0]):
        lower, upper = evidence.interval_lower[k], evidence.interval_upper[k]
        for g in range(n):
            at = start + g // 2 * 2 * step + g % 2
            store(strip.interval_lower[k], 16 * g, load(lower, 16 * at))
            store(strip.interval_upper[k], 16 * g, load(upper, 16 * at))


@inner
def new_strips(evidence: Evidence) -> Strips:
    """What `intersect_strip` needs."""
    n_inputs = evidence.scale.shape[0]
    inputs, n = np.empty((3, n_inputs), np.int64), np.zeros(3, np.int64)
    for k in range(n_inputs):
        way = _way(evidence, k)
        inputs[way, n[way]] = k
        n[way] += 1
    return Strips(
        inputs[_TABLE, : n[_TABLE]],
        inputs[_SIGNED, : n[_SIGNED]],
        inputs[_POSITIVE, : n[_POSITIVE]],
        np.empty((n_inputs, 9, STRIP), np.float32),
        np.zeros((4, STRIP), np.float32),
    )


@bare_inner
def intersect_strip(
    evidence: Evidence, strips: Strips, start: int, lower: F32Array, upper: F32Array
) -> None:
    """Bounds of at most `STRIP` groups of 16 weights, from group `start` on."""
    end = start + lower.size // 16
    places = strips.places
    lower[:] = -_FAR
    upper[:] = _FAR
    for j in range(strips.by_table.size):
        k = strips.by_table[j]
        codes = evidence.codes[k, 16 * start : 16 * end]
        scales = evidence.scale[k, start:end], evidence.scale_error[k, start:end]
        offsets = evidence.offset[k, start:end], evidence.offset_error[k, start:end]
        edges = evidence.lower_levels[k], evidence.upper_levels[k]
        _narrow(codes, scales, offsets, edges, lower, upper)
    for is_signed, inputs in ((True, strips.signed), (False, strips.positive)):
        for j in range(inputs.size):
            _place_cells(evidence, inputs[j], start, end, is_signed, strips.scratch, places[j])
        if inputs.size and is_signed:
            _narrow_signed(evidence, inputs, start, places, lower, upper)
        elif inputs.size:
            _narrow_positive(evidence, inputs, start, places, lower, upper)
    for j in range(evidence.interval_lower.shape[0]):
        below = evidence.interval_lower[j, 16 * start : 16 * end]
        above = evidence.interval_upper[j, 16 * start : 16 * end]
        _meet(below, above, lower, upper)
    for k in range(evidence.extremes.shape[0]):
        for pair in evidence.extremes[k]:
            if pair[0] >= 0:
                _fix(evidence, k, pair, start, lower, upper)


@bare_inner
def _meet(below: F32Array, above: F32Array, lower: F32Array, upper: F32Array) -> None:
    """Intersect bounds with those that an input states: ``[max(low, below), min(high, above)]``.

    NaN states nothing.
    """
    for i in range(0, lower.size, 16):
        old_lower, old_upper = load(lower, i), load(upper, i)
        proven = load(below, i)
        store(lower, i, where(proven > old_lower, proven, old_lower))
        proven = load(above, i)
        store(upper, i, where(proven < old_upper, proven, old_upper))


@bare_inner
def _fix(
    evidence: Evidence,
    k: int,
    pair: NDArray[np.int32],
    start: int,
    lower: F32Array,
    upper: F32Array,
) -> None:
    """Bounds of weights that alone in their block of 32 have one of two extreme codes."""
    codes = evidence.codes[k]
    for g in range(0, lower.size // 16, 2):
        s, o = evidence.scale[k, start + g], evidence.offset[k, start + g]
        if s == _ZERO or not (abs(s) < _FAR and abs(o) < _FAR):
            continue
        n, lane = find_extremes(codes, 16 * (start + g), pair, 0)
        if n == 1:
            i = 16 * g + lane
            level = evidence.levels[k, codes[16 * start + i]]
            s_error, o_error = (
                evidence.scale_error[k, start + g],
                evidence.offset_error[k, start + g],
            )
            lower[i] = max(lower[i], edge_below(level, s, o, s_error, o_error))
            upper[i] = min(upper[i], edge_above(level, s, o, s_error, o_error))


@inner
def _way(evidence: Evidence, k: int) -> int:
    """Whether all cells but those of the ends reach half a level to both sides, and the signs."""
    first, last = evidence.end_codes[k]
    for q in range(first, last + 1):
        level = evidence.levels[k, 0] + np.float32(q)
        if evidence.levels[k, q] != level:
            return _TABLE
        if q > first and evidence.lower_levels[k, q] != level - _HALF:
            return _TABLE
        if q < last and evidence.upper_levels[k, q] != level + _HALF:
            return _TABLE
    return _POSITIVE if first == 0 and evidence.levels[k, 0] == 0 else _SIGNED


@bare_inner
def _place_cells(
    evidence: Evidence,
    k: int,
    start: int,
    end: int,
    is_signed: bool,
    scratch: F32Array,
    places: F32Array,
) -> None:
    """What the kernels below need to know of groups `start` to `end` of an input.

    Fills `places` (9, n_groups), whose last four are the lower edge of the cell at the lower end,
    the upper edge of the one at the upper end, and the levels of these two. A group whose codes are
    left over from the encoder's search gets edges that are infinitely far. Sixteen groups are
    worked on at once.
    """
    scale, offset = evidence.scale[k, start:end], evidence.offset[k, start:end]
    scale_error, offset_error = (
        evidence.scale_error[k, start:end],
        evidence.offset_error[k, start:end],
    )
    if (end - start) % 16:
        _take_groups(evidence, k, start, end, scratch)
        scale, offset, scale_error, offset_error = scratch[0], scratch[1], scratch[2], scratch[3]
    first, last = evidence.end_codes[k]
    lowest, highest = evidence.lower_levels[k, first], evidence.upper_levels[k, last]
    first_level, last_level = evidence.levels[k, first], evidence.levels[k, last]
    reach = np.float32(evidence.lost[k, 1])
    for g in range(0, end - start, 16):
        s, o = load(scale, g), load(offset, g)
        s_error = load(scale_error, g)
        known = ((s != _ZERO) | (s_error > _ZERO)) & (abs(s) < _FAR) & (abs(o) < _FAR)
        lost = (s_error < _ZERO) & (abs(o) < _FAR) & (splat(reach) < _FAR)
        s, o = where(known, s, _ZERO), where(known | lost, o, _ZERO)
        o_error = load(offset_error, g)
        o_error = where(known, o_error, where(lost, o_error - s_error * reach, _FAR))
        s_error = where(known, s_error, _ZERO)
        flipped = s < _ZERO
        half = where(flipped, -_HALF, _HALF)
        if is_signed:
            store(places[0], g, s)
            store(places[1], g, o)
            store(places[2], g, half)
            store(places[3], g, s_error)
            store(places[4], g, half * s + o_error)
        else:
            store(places[0], g, s - s_error)
            store(places[1], g, o - half * s + half * s_error - o_error)
            store(places[2], g, s + s_error)
            store(places[3], g, o + half * s + half * s_error + o_error)
        at_lower, at_upper = where(flipped, highest, lowest), where(flipped, lowest, highest)
        below = edge_below(at_lower, s, o, s_error, o_error)
        above = edge_above(at_upper, s, o, s_error, o_error)
        store(places[5], g, where(lost, o - o_error, below))
        store(places[6], g, where(lost, o + o_error, above))
        store(places[7], g, where(flipped, last_level, first_level))
        store(places[8], g, where(flipped, first_level, last_level))


@bare_inner
def _take_groups(evidence: Evidence, k: int, start: int, end: int, scratch: F32Array) -> None:
    """Scales, offsets and their errors of groups `start` to `end`, and zeros behind them."""
    scratch[:, end - start :] = 0
    for g in range(end - start):
        scratch[0, g], scratch[1, g] = evidence.scale[k, start + g], evidence.offset[k, start + g]
        scratch[2, g] = evidence.scale_error[k, start + g]
        scratch[3, g] = evidence.offset_error[k, start + g]


@bare_inner
def _narrow_signed(
    evidence: Evidence,
    inputs: NDArray[np.int64],
    start: int,
    places: F32Array,
    lower: F32Array,
    upper: F32Array,
) -> None:
    """Intersect bounds of groups from `start` on with cells around levels of both signs.

    The edges of `recover.evidence.edges` at ``L - 1/2`` and ``L + 1/2``; half has the sign of s.

    `places` begins with scale, offset, half with the sign of the scale, error of the scale, and
    half the width of a cell, widened by the error of the offset.
    """
    codes, n = evidence.codes.reshape(-1), evidence.codes.shape[1]
    for g in range(lower.size // 16):
        low, high = load(lower, 16 * g), load(upper, 16 * g)
        for j in range(inputs.size):
            k = inputs[j]
            q, first_code = load_bytes(codes, k * n + 16 * (start + g)), evidence.end_codes[k, 0]
            level = to_f32(q) + evidence.levels[k, 0]
            value = level * places[j, 0, g] + places[j, 1, g]
            half, error, reach = places[j, 2, g], places[j, 3, g], places[j, 4, g]
            below = value - (abs(level - half) * error + reach)
            above = value + (abs(level + half) * error + reach)
            below = where(level == places[j, 7, g], places[j, 5, g], below)
            above = where(level == places[j, 8, g], places[j, 6, g], above)
            if first_code > 0:  # lower codes are never given
                below = where(q < first_code, -_FAR, below)
                above = where(q < first_code, _FAR, above)
            low = where(below > low, below, low)
            high = where(above < high, above, high)
        store(lower, 16 * g, low)
        store(upper, 16 * g, high)


@bare_inner
def _narrow_positive(
    evidence: Evidence,
    inputs: NDArray[np.int64],
    start: int,
    places: F32Array,
    lower: F32Array,
    upper: F32Array,
) -> None:
    """Intersect bounds of groups from `start` on with cells around the levels 0, 1, 2...

    The edges of `recover.evidence.edges` at ``q - 1/2`` and ``q + 1/2``, as multiples of q.

    `places` begins with what the lower edge rises by from level to level, the lower edge of level
    0, and the same of the upper edge: errors are in proportion to edges, too. (That is wrong only
    for the edge below level 0, which is an end.)
    """
    codes, n = evidence.codes.reshape(-1), evidence.codes.shape[1]
    for g in range(lower.size // 16):
        low, high = load(lower, 16 * g), load(upper, 16 * g)
        for j in range(inputs.size):
            level = to_f32(load_bytes(codes, inputs[j] * n + 16 * (start + g)))
            below = level * places[j, 0, g] + places[j, 1, g]
            above = level * places[j, 2, g] + places[j, 3, g]
            below = where(level == places[j, 7, g], places[j, 5, g], below)
            above = where(level == places[j, 8, g], places[j, 6, g], above)
            low = where(below > low, below, low)
            high = where(above < high, above, high)
        store(lower, 16 * g, low)
        store(upper, 16 * g, high)


@bare_inner
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
        below = edge_below(low, s, o, scale_error[g], offset_error[g])
        above = edge_above(high, s, o, scale_error[g], offset_error[g])
        old_lower, old_upper = load(lower, 16 * g), load(upper, 16 * g)
        store(lower, 16 * g, where(below > old_lower, below, old_lower))
        store(upper, 16 * g, where(above < old_upper, above, old_upper))

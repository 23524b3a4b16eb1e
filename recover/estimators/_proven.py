"""The bounds of a superblock's weights that its inputs prove, as `recover.evidence.cells` has them.

The posterior integrates between narrower ones: an open cell ends where weights were seen.
"""

from typing import Any

import numpy as np

from recover._compiled.across import any_lane
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import (
    gather,
    larger,
    load,
    load_bytes,
    smaller,
    splat,
    store,
    where,
)
from recover.estimators._lost import prove_lost
from recover.estimators._product_tables import Scalars, Spans
from recover.estimators._spans import prove_spans
from recover.estimators._superblock import Superblock, is_finite, steps_of, value_of
from recover.evidence.edges import edge_above, edge_below

_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_FAR = np.float32(np.inf)
_BEYOND = np.float32(3)  # steps
FEWEST_STEPS = 15
"""With fewer (Q2_K) absolute errors are fitted, in which zeros have no weight."""


@bare_inlined
def _prove(low: Any, high: Any, scalars: Scalars, k: int, at: int) -> Any:
    """Intersect bounds with the cells of input `k`, as `recover.evidence.cells` does."""
    q = load_bytes(scalars.codes, at)
    below = gather(scalars.lower_levels, q + 256 * k)
    above = gather(scalars.upper_levels, q + 256 * k)
    s, o = scalars.scale[at // 16], scalars.offset[at // 16]
    if s < _ZERO:
        below, above = above, below
    error, slack = scalars.scale_error[at // 16], scalars.offset_error[at // 16]
    proven = edge_below(below, s, o, error, slack)
    low = where(proven > low, proven, low)  # not NaN, which infinite levels may give
    proven = edge_above(above, s, o, error, slack)
    return low, where(proven < high, proven, high)


@bare_inlined
def _prove_any(low: Any, high: Any, scalars: Scalars, k: int, g: int) -> Any:
    """Intersect bounds with all that input `k` proves; `g` as in `scale`.

    A scale that float16 rounded to 0 has an error, and cells of that size.
    """
    if is_finite(scalars, g):
        if scalars.scale[g] != _ZERO or scalars.scale_error[g] > _ZERO:
            low, high = _prove(low, high, scalars, k, 16 * g)
        else:
            low, high = prove_lost(scalars, k, g, low, high)
    return low, high


@bare_inlined
def _proven(scalars: Scalars, spans: Spans | None, start: int, i: int) -> Any:
    """The proven bounds of group `i` of a superblock, but for weights that alone are extreme."""
    low, high = splat(-_FAR), splat(_FAR)
    for k in range(scalars.noise.size):
        at = k * (scalars.codes.size // scalars.noise.size // 16) + start + i
        low, high = _prove_any(low, high, scalars, k, at)
    if spans is not None:
        low, high = prove_spans(spans, 16 * (start + i), low, high)
    return low, high


@bare_inlined
def proven_bounds(
    scalars: Scalars, spans: Spans | None, block: Superblock, start: int, i: int
) -> Any:
    """The proven bounds of group `i` of a superblock."""
    low, high = _proven(scalars, spans, start, i)
    fixed_low, fixed_high = load(block.fixed_low, 16 * i), load(block.fixed_high, 16 * i)
    return larger(low, fixed_low), smaller(high, fixed_high)


@bare_inner
def confine_by_others(scalars: Scalars, block: Superblock, start: int) -> None:
    """Narrow the bounds of groups by inputs that have no density there, and yet have cells."""
    n_groups = scalars.codes.size // scalars.noise.size // 16
    for k in range(scalars.noise.size):
        if not any_lane(load(block.inverse, 16 * k) == _ZERO):
            continue
        for i in range(16):
            if block.inverse[16 * k + i] == _ZERO:
                low, high = load(block.low, 16 * i), load(block.high, 16 * i)
                low, high = _prove_any(low, high, scalars, k, k * n_groups + start + i)
                store(block.low, 16 * i, low)
                store(block.high, 16 * i, high)


@bare_inner
def find_possible_zeros(
    scalars: Scalars, spans: Spans | None, block: Superblock, start: int
) -> None:
    """Fill `Superblock.may_be_zero`; bounds that are likely by what is stated count as proven.

    An end cell is open, but where zeros count in the fit of scale and minimum, none is farther
    beyond the last level than these may be rounded by, and some steps.
    """
    n = scalars.codes.size // scalars.noise.size
    for i in range(16):
        low, high = _proven(scalars, spans, start, i)
        store(block.may_be_zero, 16 * i, where((low < _ZERO) & (high > _ZERO), _ONE, _ZERO))
    for k in range(scalars.noise.size):
        n_steps = scalars.ends[2 * k + 1] - scalars.ends[2 * k]
        if scalars.simple[k] and n_steps >= FEWEST_STEPS:
            d, dmin = steps_of(scalars, k, block)
            rounded = _HALF * (np.float32(n_steps) * d + dmin)
            for i in range(16):
                if block.inverse[16 * k + i] != _ZERO:
                    value = value_of(scalars, k, k * n + 16 * (start + i))
                    reach = _BEYOND * abs(block.scale[16 * k + i]) + rounded
                    known = load(block.may_be_zero, 16 * i)
                    store(block.may_be_zero, 16 * i, where(abs(value) < reach, known, _ZERO))
    if spans is not None:
        for i in range(16):
            low, high = load(block.low, 16 * i), load(block.high, 16 * i)
            known = load(block.may_be_zero, 16 * i)
            store(block.may_be_zero, 16 * i, where((low > _ZERO) | (high < _ZERO), _ZERO, known))

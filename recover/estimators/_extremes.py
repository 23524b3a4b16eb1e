"""Weights that a block of 32 was fitted to, which equal a level but for rounding.

One that alone has an extreme code must be the one: its bounds are those of its level
(`recover.evidence.edges`). Of n that have such a code each may be, with odds 1 to n - 1: there the
posterior has an atom.
"""

import numpy as np

from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import larger, load, smaller, splat, store, where
from recover.estimators._product_tables import Scalars
from recover.estimators._superblock import Superblock
from recover.evidence.edges import edge_above, edge_below, find_extremes

_ZERO = np.float32(0)
_ONE = np.float32(1)
_FAR = np.float32(np.inf)


@bare_inner
def fix_extremes(scalars: Scalars, block: Superblock, start: int) -> None:
    """Narrow the bounds of weights that alone in their block have an extreme code.

    See `recover.evidence.cells`. Fills in `odds` and what is `fixed`.
    """
    n = scalars.codes.size // scalars.noise.size
    for at in range(0, 256, 16):
        store(block.fixed_low, at, splat(-_FAR))
        store(block.fixed_high, at, splat(_FAR))
    for pair in range(0, 4 * scalars.noise.size, 2):
        for b in range(8 if scalars.extremes[pair] >= 0 else 0):
            at = pair // 4 * n + 16 * start + 32 * b
            n_found, i = find_extremes(scalars.codes, at, scalars.extremes, pair)
            others = n_found - 1
            block.odds[4 * pair + b] = _ONE / np.float32(others) if others > 0 else _ZERO
            if others == 0 and block.inverse[pair // 4 * 16 + 2 * b] != _ZERO:
                _fix_one(scalars, pair // 4, at + i, block, 32 * b + i)
    for at in range(0, 256, 16):
        low, high = load(block.fixed_low, at), load(block.fixed_high, at)
        store(block.low, at, larger(load(block.low, at), low))
        store(block.high, at, smaller(load(block.high, at), high))
        may_be = (low < _ZERO) & (high > _ZERO)
        store(block.may_be_zero, at, where(may_be, load(block.may_be_zero, at), splat(_ZERO)))


@bare_inlined
def _fix_one(scalars: Scalars, k: int, at: int, block: Superblock, i: int) -> None:
    """See `fix_extremes`; weight `i`, of which input `k` says the code at `at`."""
    level, g = scalars.levels[256 * k + scalars.codes[at]], at // 16
    s, o, s_error = scalars.scale[g], scalars.offset[g], scalars.scale_error[g]
    o_error = scalars.offset_error[g]
    block.fixed_low[i] = max(block.fixed_low[i], edge_below(level, s, o, s_error, o_error))
    block.fixed_high[i] = min(block.fixed_high[i], edge_above(level, s, o, s_error, o_error))

"""Weights that a block of 32 was fitted to, which equal a level but for rounding.

See `recover.evidence.cells`. One that alone has an extreme code must be the one; of several, each
may be.
"""

from typing import Any

import numpy as np

from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import (
    first_lane,
    larger,
    load,
    load_bytes,
    mask_bits,
    smaller,
    splat,
    store,
)
from recover.estimators._product_tables import Scalars
from recover.estimators._superblock import Superblock

_ZERO = np.float32(0)
_ONE = np.float32(1)
_FAR = np.float32(np.inf)


@bare_inlined
def has_extreme(q: Any, scalars: Scalars, pair: int) -> Any:
    """Which codes are of a pair of `Scalars.extremes`."""
    return (q == scalars.extremes[pair]) | (q == scalars.extremes[pair + 1])


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
            first = has_extreme(load_bytes(scalars.codes, at), scalars, pair)
            second = has_extreme(load_bytes(scalars.codes, at + 16), scalars, pair)
            bits = mask_bits(first, second)
            others = _n_bits(bits) - 1
            block.odds[4 * pair + b] = _ONE / np.float32(others) if others > 0 else _ZERO
            if others == 0 and block.inverse[pair // 4 * 16 + 2 * b] != _ZERO:
                i = first_lane(first, second)
                _pin_one(scalars, pair // 4, at + i, block, 32 * b + i)
    for at in range(0, 256, 16):
        store(block.low, at, larger(load(block.low, at), load(block.fixed_low, at)))
        store(block.high, at, smaller(load(block.high, at), load(block.fixed_high, at)))


@bare_inlined
def _n_bits(bits: Any) -> int:
    n = 0
    while bits != 0:
        bits &= bits - np.uint32(1)
        n += 1
    return n


@bare_inlined
def _pin_one(scalars: Scalars, k: int, at: int, block: Superblock, i: int) -> None:
    """See `fix_extremes`; weight `i`, of which input `k` says the code at `at`."""
    level, g = scalars.levels[256 * k + scalars.codes[at]], at // 16
    value = level * scalars.scale[g] + scalars.offset[g]
    error = abs(level) * scalars.scale_error[g] + scalars.offset_error[g]
    block.fixed_low[i] = max(block.fixed_low[i], value - error)
    block.fixed_high[i] = min(block.fixed_high[i], value + error)

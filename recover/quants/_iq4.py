"""The code book that IQ4_NL and IQ4_XS share, and the search for its scale."""

from typing import Any

import numpy as np

from recover._compiled.jit import inner
from recover._compiled.lanes import load, splat, store, store_bytes, truncate, where
from recover.quants._search import SCALE, SMALLEST, largest_in_lanes
from recover.quants.base import F32Array, U8Array, table

_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float64
)

LEVELS = table(_VALUES)
"""`kvalues_iq4nl` of ggml."""


_EDGES = np.concatenate(([-np.inf], (_VALUES[1:] + _VALUES[:-1]) / 2)).astype(np.float32)


def codebook_cells() -> tuple[F32Array, F32Array]:
    """Edges half-way between neighbours, open at both ends; see `best_index_int8`."""
    middle = (_VALUES[1:] + _VALUES[:-1]) / 2
    lower = np.concatenate(([-np.inf], middle))
    upper = np.concatenate((middle, [np.inf]))
    return table(lower, fill=-np.inf), table(upper, fill=np.inf)


@inner
def _nearest_levels(value: Any) -> Any:
    """The level nearest to each number, the upper one of two equally near."""
    level = splat(LEVELS[0])
    for k in range(1, 16):
        level = where(value < _EDGES[k], level, LEVELS[k])
    return level


@inner
def encode_levels(x: F32Array, factor: np.float32, codes: U8Array) -> None:
    """Codes of 32 weights: the levels nearest to ``factor * x``. Mirrors `best_index_int8`.

    That compares the distances to two neighbours; rounded as they are, they are equal only
    half-way.
    """
    for i in range(0, 32, 16):
        value = factor * load(x, i)
        code = truncate(splat(np.float32(0)))
        for k in range(1, 16):
            code = where(value < _EDGES[k], code, k)
        store_bytes(codes, i, code)


@inner
def _level_sums(x: F32Array, weights: F32Array, factor: Any) -> Any:
    """The weighted sums of level * x and of level**2."""
    sum_lx = sum_l2 = splat(np.float32(0))
    for i in range(0, x.size, 16):
        level = _nearest_levels(factor * load(x, i))
        weighted = load(weights, i) * level
        sum_lx = sum_lx + weighted * load(x, i)
        sum_l2 = sum_l2 + weighted * level
    return sum_lx, sum_l2


@inner
def search_levels(x: F32Array, weights: F32Array, found: F32Array) -> None:
    """Scales of sixteen blocks; see `quantize_row_iq4_nl_impl`."""
    zero = splat(np.float32(0))
    largest = largest_in_lanes(x)
    sum_lx, sum_l2 = _level_sums(x, weights, np.float32(1) / (-largest / LEVELS[0]))
    scale = where(sum_l2 > zero, sum_lx / sum_l2, zero)
    best = scale * sum_lx
    for k in range(-7, 8):
        sum_lx, sum_l2 = _level_sums(x, weights, (np.float32(k) + LEVELS[0]) / largest)
        better = (sum_l2 > zero) & (sum_lx * sum_lx > best * sum_l2)
        scale = where(better, sum_lx / sum_l2, scale)
        best = where(better, scale * sum_lx, best)
    store(found[SCALE], 0, where(abs(largest) < SMALLEST, zero, scale))

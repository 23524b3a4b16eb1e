"""Edges of cells, and the weight that a block was fitted to; bounds and densities use the same.

With the scale s and the offset o that are stored, and what these may be off by (e_s, e_o), the edge
of a cell at level L lies at

    s L + o - (|L| e_s + e_o)    if it is the lower one,
    s L + o + (|L| e_s + e_o)    if it is the upper one.

A weight that equals its level L lies between the two. Arguments are numbers, or lanes of 16.
"""

from typing import Any

import numpy as np

from recover._compiled.across import first_lane, mask_bits
from recover._compiled.jit import bare_inlined
from recover._compiled.lanes import load_bytes


@bare_inlined
def edge_below(level: Any, scale: Any, offset: Any, scale_error: Any, offset_error: Any) -> Any:
    """The lower edge at a level: ``s L + o - (|L| e_s + e_o)``."""
    return level * scale + offset - (abs(level) * scale_error + offset_error)


@bare_inlined
def edge_above(level: Any, scale: Any, offset: Any, scale_error: Any, offset_error: Any) -> Any:
    """The upper edge at a level: ``s L + o + (|L| e_s + e_o)``."""
    return level * scale + offset + (abs(level) * scale_error + offset_error)


@bare_inlined
def has_extreme(q: Any, pair: Any, at: int) -> Any:
    """Which of 16 codes are one of the two at a place of `pair`."""
    return (q == pair[at]) | (q == pair[at + 1])


@bare_inlined
def find_extremes(codes: Any, start: int, pair: Any, at: int) -> Any:
    """How many weights of a block of 32 have one of two extreme codes, and where the first is.

    The codes of the block begin at `start`, the extreme codes are at a place of `pair`. Where one
    weight alone has such a code, it is the one that the scale was fitted to: it equals its level
    (`recover.quants.base.ScalarType.extremes`).
    """
    first = has_extreme(load_bytes(codes, start), pair, at)
    second = has_extreme(load_bytes(codes, start + 16), pair, at)
    bits, n = mask_bits(first, second), 0
    while bits != 0:
        bits &= bits - np.uint32(1)
        n += 1
    return n, first_lane(first, second)

"""The mark that our encoder leaves in the scales of rows, and the errors that it stands for.

Its errors are smaller than those of ik_llama.cpp's, and of another kind: that program weighs large
weights more, ours looks for the least squares. So that a file's errors are known, wherever its
tensors end up, the last 12 bits of the scale (a float32, of which 12 others remain) are a fixed
number. Of other encoders one row in 4096 has it by chance, which does no harm.
"""

from itertools import pairwise

import numpy as np

from recover._compiled.float16 import f32_bits, f32_from_bits
from recover._compiled.jit import inner
from recover.quants._soft import Errors, fill_soft
from recover.quants.base import GROUP, F32Array, U8Array
from recover.quants.interval import SUPERBLOCK, Stated

N_BITS = 12
MARK = 0x5A5
LEAST = np.float32(2.0**-125)
"""Smaller scales are not marked: they have less than 24 bits."""


@inner
def marked(scale: np.float32) -> np.float32:
    """The nearest scale with the mark."""
    if not scale > LEAST:
        return scale
    above = (np.int64(f32_bits(scale)) - MARK + (1 << (N_BITS - 1))) >> N_BITS
    return f32_from_bits(np.uint32((above << N_BITS) + MARK))


def fill_by_encoder(
    blocks: U8Array,
    levels: F32Array,
    scale: F32Array,
    errors: tuple[Errors, Errors],
    unit: np.float32,
    stated: Stated,
) -> None:
    """As `fill_soft`, of rows that ik_llama.cpp encoded, or we.

    Parameters
    ----------
    blocks : uint8 (n_blocks, part_size)
        The blocks, with the headers of their rows in front.
    levels, scale, unit, stated
        As of `fill_soft`.
    errors : tuple of two Errors
        To expect of that program's rows, and of ours.
    """
    is_ours = (blocks[:, 0] == MARK & 255) & (blocks[:, 1] & 15 == MARK >> 8)
    ends = [0, *(np.flatnonzero(np.diff(is_ours)) + 1).tolist(), len(blocks)]
    for first, end in pairwise(ends):
        if first < end:
            part = slice(first * SUPERBLOCK, end * SUPERBLOCK)
            groups = slice(part.start // GROUP, part.stop // GROUP)
            expected = errors[int(is_ours[first])]
            some = stated.part(part.start, part.stop)
            fill_soft(levels[part], scale[groups], expected, unit, some)

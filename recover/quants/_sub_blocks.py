"""What a file says of the sub-blocks of superblocks, and the marks that encoders leave there."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover.quants._marks import Marks, f16_at, is_scale
from recover.quants.base import F32Array, U8Array

Codes = NDArray[np.uint8] | NDArray[np.int8]


class SubBlocks(NamedTuple):
    """What blocks say of their sub-blocks, which have as many weights each.

    The scale of a sub-block is ``d * scale_code``, rounded to float32; its offset is ``-(dmin *
    min_code)``.

    Attributes
    ----------
    d, dmin : float32 (n_blocks,)
        What the codes are multiplied by. `dmin` is 0 in types without minima.
    scale_codes, min_codes : int8 or uint8 (n_blocks, n_sub_blocks)
        Integers. Those of the minima are 0 in types without them.
    """

    d: F32Array
    dmin: F32Array
    scale_codes: Codes
    min_codes: Codes


def without_minima(d: F32Array, scale_codes: Codes) -> SubBlocks:
    """Sub-blocks of a type that has no minima."""
    return SubBlocks(d, np.zeros_like(d), scale_codes, np.zeros_like(scale_codes))


def packed_sub_blocks(blocks: U8Array) -> SubBlocks:
    """Those of Q4_K and Q5_K; see `get_scale_min_k4`."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], 1)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], 1)
    return SubBlocks(f16_at(blocks, 0), f16_at(blocks, 2), scales, minima)


def marks_of_scales(found: SubBlocks, extreme: int) -> Marks:
    """The mark of types without minima: the largest scale has an extreme code."""
    return is_scale(found.d), (found.scale_codes == extreme).any(1)


def marks_of_minima(found: SubBlocks, largest: int) -> Marks:
    """The mark of types with minima: the largest codes of scales and of minima, unless 0."""
    d, dmin, scales, minima = found
    full, full_min = (scales == largest).any(1), (minima == largest).any(1)
    usable = np.isfinite(d) & np.isfinite(dmin) & ((d != 0) | (dmin != 0))
    return usable, (full | (d == 0)) & (full_min | (dmin == 0))


def marks_of_packed_scales(blocks: U8Array) -> Marks:
    """The mark of Q4_K and Q5_K: d is the largest scale / 63, dmin the largest minimum / 63."""
    return marks_of_minima(packed_sub_blocks(blocks), 63)

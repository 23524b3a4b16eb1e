"""Where the blocks of trellis types have what the encoder found, and the sub-blocks of rows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover.quants._trellis_encode import Found
from recover.quants.base import F32Array, U8Array

SUB_BLOCKS = 8
"""Sub-blocks of a superblock."""


def blocks_of_rows(raw: U8Array, scales: F32Array, type_size: int) -> U8Array:
    """Store the scales of rows in their headers; a view (n_rows, n_blocks, type_size) of the rest.

    Parameters
    ----------
    raw : uint8 (n_rows * row_bytes,)
        Rows, of four bytes of header and their blocks.
    scales : float32 (n_rows,)
        Their scales.
    type_size : int
        Bytes of a block.
    """
    n_rows = scales.size
    rows = raw.reshape(n_rows, -1)
    rows[:, :4] = scales.astype("<f4").view(np.uint8).reshape(n_rows, 4)
    return rows[:, 4:].reshape(n_rows, -1, type_size)


def by_block(found: NDArray[Any], blocks: U8Array) -> NDArray[Any]:
    """What was found of sub-blocks, (n, ...), as (n_rows, n_blocks, 8, ...)."""
    return found.reshape(*blocks.shape[:2], SUB_BLOCKS, *found.shape[1:])


def pack_scales_and_words(found: Found, blocks: U8Array) -> None:
    """Scales of 4 bits, the low nibbles of four bytes first, and 32 seeds of 16 bits."""
    codes = by_block(found.codes, blocks)
    blocks[..., :4] = codes[..., :4] | codes[..., 4:] << 4
    seeds = np.ascontiguousarray(found.seeds, "<u2").view(np.uint8)
    blocks[..., 4:68] = seeds.reshape(*blocks.shape[:2], 64)

"""Marks that ggml's encoders leave in blocks: what types share."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from recover._compiled.jit import kernel
from recover.quants.base import GROUP, F32Array, Mask, U8Array

Marks = tuple[Mask, Mask]
"""Which blocks have a scale that is neither 0 nor broken, and which have the mark."""

Unpack = Callable[[U8Array, U8Array, F32Array, F32Array], None]


def f16_at(blocks: U8Array, at: int) -> F32Array:
    """The f16 numbers (n_blocks,) at a position of blocks (n_blocks, type_size)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")[:, 0].astype(np.float32)


def is_scale(d: F32Array) -> Mask:
    """Which scales are neither 0 nor broken."""
    usable: Mask = np.isfinite(d) & (d != 0)
    return usable


class CodeMark(NamedTuple):
    """The mark of a type of 32 weights a block, as the codes in a block tell."""

    roles: U8Array
    """(256,) a bit, or none, that each code sets in the sum of its block."""
    wanted: int
    """All bits that are set, and no others, in a block with the mark."""
    is_positive: bool
    """Whether the scale is positive besides."""


def code_mark(*required: tuple[int, ...], never: int | None = None, positive: bool) -> CodeMark:
    """One code of each group is there, and one code never is."""
    roles = np.zeros(256, np.uint8)
    for bit, codes in enumerate(required):
        roles[list(codes)] = 1 << bit
    if never is not None:
        roles[never] = 1 << len(required)
    return CodeMark(roles, (1 << len(required)) - 1, positive)


def marks_of_codes(blocks: U8Array, unpack: Unpack, mark: CodeMark) -> Marks:
    """The marks of blocks (n_blocks, type_size) of 32 weights."""
    n_blocks = len(blocks)
    codes = np.empty(32 * n_blocks, np.uint8)
    scale, offset = np.empty((2, 32 * n_blocks // GROUP), np.float32)
    unpack(np.ascontiguousarray(blocks).reshape(-1), codes, scale, offset)
    usable, marked = np.empty((2, n_blocks), np.bool_)
    _find_codes(codes, scale, mark, usable, marked)
    return usable, marked


@kernel
def _find_codes(
    codes: U8Array, scale: F32Array, mark: CodeMark, usable: Mask, marked: Mask
) -> None:
    """Fill `usable` and `marked` (n_blocks,); a block has 32 codes, and its scale twice."""
    for b in range(usable.size):
        d, found = scale[2 * b], np.uint8(0)
        for i in range(32 * b, 32 * b + 32):
            found |= mark.roles[codes[i]]
        usable[b] = np.isfinite(d) and d != 0
        marked[b] = found == mark.wanted and (d > 0 or not mark.is_positive)

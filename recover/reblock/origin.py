"""Tensors of a model whose integer original is found, as if they were stored exactly."""

from dataclasses import replace
from typing import Any, cast

import numpy as np

from recover.gguf.reader import Tensor
from recover.quants import U8Array, type_by_name
from recover.reblock._codes import BLOCK, HALVES, n_bits, pack_codes
from recover.reblock.second_hand import SecondHand, find_second_hand, read_second_hand


class _RecoveredBlocks:
    """Exact Q8_0 blocks in the place of naive ones: made when a range of bytes is asked for.

    Parameters
    ----------
    raw : uint8 (n_bytes,)
        The naive blocks.
    found : SecondHand
        What they were made from.
    """

    def __init__(self, raw: U8Array, found: SecondHand) -> None:
        self._raw = raw
        self._found = found
        self.size = raw.size

    def __getitem__(self, wanted: slice) -> U8Array:
        start, end, step = wanted.indices(self.size)
        if step != 1:
            raise IndexError("only ranges of bytes can be taken")
        group_bytes = self._found.group // BLOCK * 34
        first, last = start // group_bytes, -(-end // group_bytes)
        groups = read_second_hand(
            self._raw[first * group_bytes : last * group_bytes].copy(), self._found
        )
        out = np.empty((last - first) * group_bytes, np.uint8)
        codes = groups.codes.reshape(-1, self._found.group)
        pack_codes(codes, groups.scales, type_by_name("Q8_0"), out)
        return out[start - first * group_bytes : end - first * group_bytes]


def find_original(tensor: Tensor) -> tuple[Tensor, str] | None:
    """The integers that a naive Q8_0 tensor was made from.

    Parameters
    ----------
    tensor : Tensor
        Of any type. One that has no such origin costs little: a few rows are read.

    Returns
    -------
    Tensor
        The same with the original codes and scales, to be read in ranges.
    str
        What was found, for people.
    """
    if tensor.type.name != "Q8_0":
        return None
    found = find_second_hand(tensor.raw, tensor.dims[0])
    if found is None or found.reach > HALVES["Q8_0"]:
        return None
    blocks: Any = _RecoveredBlocks(tensor.raw, found)
    share = 1 - found.n_unproven / tensor.n_weights
    what = (
        f"{n_bits(found.reach)}-bit integers times a BF16 scale per {found.group} weights, stored"
        f" as Q8_0 through {found.chain} ({share:.2%} of them proven)"
    )
    return replace(tensor, raw=cast(U8Array, blocks)), what


def is_original(tensor: Tensor) -> bool:
    """Whether a tensor is one that `find_original` made."""
    raw: object = tensor.raw
    return isinstance(raw, _RecoveredBlocks)

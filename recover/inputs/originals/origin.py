"""Tensors of a model that were made from integers, as if these were stored.

The integers may be the original itself, or codes that llama.cpp's encoder of Q4_0 or Q5_0 gave: it
fits the scale of each block of 32 to the largest weight, which gets the lowest code. Where every
block has that mark, somebody quantized a Q4_0 file again, and the integers are no original.
"""

from dataclasses import replace
from typing import Any, cast

import numpy as np

from recover.containers.gguf.reader import Tensor
from recover.inputs.originals.codes import BLOCK, HALVES, n_bits, pack_codes
from recover.inputs.originals.requantized import SecondHand, find_second_hand, read_second_hand
from recover.quants import TensorType, U8Array, type_by_name

_N_LOOKED_AT = 64  # runs of rows in which the encoder's mark is looked for


class _RecoveredBlocks:
    """Exact blocks in the place of naive ones: made when a range of bytes is asked for.

    Parameters
    ----------
    raw : uint8 (n_bytes,)
        The naive Q8_0 blocks.
    found : SecondHand
        What they were made from.
    kind : TensorType
        How the integers are stored.
    """

    def __init__(self, raw: U8Array, found: SecondHand, kind: TensorType) -> None:
        self.kind = kind
        self._raw = raw
        self._found = found
        self.size = raw.size // 34 * kind.type_size

    def __getitem__(self, wanted: slice) -> U8Array:
        start, end, step = wanted.indices(self.size)
        if step != 1:
            raise IndexError("only ranges of bytes can be taken")
        n_blocks = self._found.group // BLOCK
        group_bytes = n_blocks * self.kind.type_size
        first, last = start // group_bytes, -(-end // group_bytes)
        groups = read_second_hand(
            self._raw[first * n_blocks * 34 : last * n_blocks * 34].copy(), self._found
        )
        out = np.empty((last - first) * group_bytes, np.uint8)
        codes = groups.codes.reshape(-1, self._found.group)
        pack_codes(codes, groups.scales, self.kind, out)
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
        The same with the original codes and scales, to be read in ranges: Q8_0 if they are the
        original (see `is_original`), Q4_0 or Q5_0 if llama.cpp made them.
    str
        What was found, for people.
    """
    if tensor.type.name != "Q8_0":
        return None
    found = find_second_hand(tensor.raw, tensor.dims[0])
    if found is None or found.reach > HALVES["Q8_0"]:
        return None
    if (encoded := _encoded_as(tensor.raw, found)) is not None:
        blocks: Any = _RecoveredBlocks(tensor.raw, found, encoded)
        info = replace(tensor.info, type=encoded)
        return replace(tensor, info=info, raw=cast(U8Array, blocks)), encoded.name
    blocks = _RecoveredBlocks(tensor.raw, found, tensor.type)
    share = 1 - found.n_unproven / tensor.n_weights
    what = (
        f"{n_bits(found.reach)}-bit integers times a BF16 scale per {found.group} weights, stored"
        f" as Q8_0 through {found.chain} ({share:.2%} of them proven)"
    )
    return replace(tensor, raw=cast(U8Array, blocks)), what


def is_original(tensor: Tensor) -> bool:
    """Whether a tensor is an original that `find_original` found."""
    raw: object = tensor.raw
    return isinstance(raw, _RecoveredBlocks) and raw.kind.name == "Q8_0"


def _encoded_as(raw: U8Array, found: SecondHand) -> TensorType | None:
    """The type whose encoder made the integers; None if some block lacks its mark."""
    names = [name for name in ("Q4_0", "Q5_0") if found.reach <= HALVES[name]]
    if found.group != BLOCK or not names:
        return None
    n_blocks = raw.size // 34
    for start in np.unique(np.linspace(0, n_blocks - 1, _N_LOOKED_AT).astype(int)) // 64 * 64:
        codes = read_second_hand(raw[start * 34 : (start + 64) * 34].copy(), found).codes
        blocks = codes.reshape(-1, BLOCK)
        largest = np.abs(blocks).max(1)
        if np.any((largest != HALVES[names[0]]) & (largest > 0)):
            return None
    return type_by_name(names[0])

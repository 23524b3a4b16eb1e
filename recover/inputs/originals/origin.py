"""Tensors of a model that were made from integers, as if these were stored.

The integers may be the original itself, or codes that llama.cpp's encoder of Q4_0 or Q5_0 gave: it
fits the scale of each block of 32 to the largest weight, which gets the lowest code. Where every
block has that mark, somebody quantized a Q4_0 file again, and the integers are no original.
"""

from dataclasses import dataclass

import numpy as np

from recover.containers.model import BlockTensor, StoredTensor
from recover.inputs.originals.codes import BLOCK, holds, n_bits, pack_codes
from recover.inputs.originals.requantized import SecondHand, find_second_hand, read_second_hand
from recover.quants import TensorType, U8Array, type_by_name, types_of_integers

MADE_FROM_INTEGERS = "Q8_0"
"""The type whose tensors are looked at."""

_N_LOOKED_AT = 64  # runs of rows in which the encoder's mark is looked for


@dataclass(frozen=True, eq=False)
class RecoveredTensor(BlockTensor):
    """Exact blocks in the place of naive ones: made when a range of weights is asked for.

    Attributes
    ----------
    naive : StoredTensor
        The naive Q8_0 blocks; name and shape are theirs.
    found : SecondHand
        What they were made from.
    type : TensorType
        How the integers are stored: Q8_0 if they are the original, Q4_0 or Q5_0 if llama.cpp made
        them.
    """

    naive: StoredTensor
    found: SecondHand
    type: TensorType

    @property
    def name(self) -> str:
        """Name of the tensor."""
        return self.naive.name

    @property
    def dims(self) -> tuple[int, ...]:
        """Sizes, row length first."""
        return self.naive.dims

    @property
    def is_original(self) -> bool:
        """Whether the integers are the original."""
        return self.type.name == "Q8_0"

    def part(self, start: int, end: int) -> U8Array:
        """The exact blocks of weights `start` to `end`."""
        group = self.found.group
        first, last = start // group * group, -(-end // group) * group
        groups = read_second_hand(self.naive.part(first, last).copy(), self.found)
        out = np.empty(self.type.n_bytes(last - first), np.uint8)
        pack_codes(groups.codes.reshape(-1, group), groups.scales, self.type, out)
        return out[self.type.n_bytes(start - first) : self.type.n_bytes(end - first)]


def find_original(tensor: StoredTensor) -> tuple[RecoveredTensor, str] | None:
    """The integers that a naive Q8_0 tensor was made from.

    Parameters
    ----------
    tensor : StoredTensor
        Of any type. One that has no such origin costs little: a few rows are read.

    Returns
    -------
    RecoveredTensor
        The same with the original codes and scales, to be read in ranges: Q8_0 if they are the
        original (`is_original`), Q4_0 or Q5_0 if llama.cpp made them.
    str
        What was found, for people.
    """
    if tensor.type.name != MADE_FROM_INTEGERS:
        return None
    found = find_second_hand(tensor)
    if found is None or not holds(tensor.type.name, found.reach, found.reach, BLOCK):
        return None
    if (encoded := _encoded_as(tensor, found)) is not None:
        return RecoveredTensor(tensor, found, encoded), encoded.name
    share = 1 - found.n_unproven / tensor.n_weights
    what = (
        f"{n_bits(found.reach)}-bit integers times a BF16 scale per {found.group} weights, stored"
        f" as Q8_0 through {found.chain} ({share:.2%} of them proven)"
    )
    return RecoveredTensor(tensor, found, tensor.type), what


def _encoded_as(tensor: StoredTensor, found: SecondHand) -> TensorType | None:
    """The type whose encoder made the integers; None if some block lacks its mark."""
    names = [name for name in ("Q4_0", "Q5_0") if holds(name, found.reach, found.reach, BLOCK)]
    if found.group != BLOCK or not names:
        return None
    n_blocks, lowest = tensor.n_weights // BLOCK, types_of_integers()[names[0]].reach
    for start in np.unique(np.linspace(0, n_blocks - 1, _N_LOOKED_AT).astype(int)) // 64 * 64:
        end = min(int(start) + 64, n_blocks)
        raw = tensor.part(int(start) * BLOCK, end * BLOCK).copy()
        codes = read_second_hand(raw, found).codes
        blocks = codes.reshape(-1, BLOCK)
        largest = np.abs(blocks).max(1)
        if np.any((largest != lowest) & (largest > 0)):
            return None
    return type_by_name(names[0])

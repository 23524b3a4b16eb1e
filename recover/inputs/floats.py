"""Unquantized copies of one tensor: which of them is what another one rounds to."""

from collections.abc import Mapping

import numpy as np

from recover.containers.model import StoredTensor
from recover.inputs.descent import FLOATS, Descent
from recover.inputs.samples import rounded
from recover.quants import TILE, F32Array, FloatType

_SMALLEST_NORMAL_F16 = np.float32(2.0**-14)


def float_descents(tensors: Mapping[int, StoredTensor]) -> tuple[Descent, ...]:
    """Float tensors whose numbers are those of another one, rounded to a float type.

    Where an original is BF16, its F16 copy loses small and large weights, though F16 has more
    significand bits; the numbers tell which of two is the original. All of them are looked at.

    Parameters
    ----------
    tensors : mapping of int to StoredTensor
        By the number of the input, finest first; others than float tensors are passed over.

    Returns
    -------
    tuple of Descent
        For each tensor that tells nothing new the input that it was rounded from.
    """
    left = [i for i, tensor in tensors.items() if isinstance(tensor.type, FloatType)]
    found: list[Descent] = []
    for child in reversed(left.copy()):
        for parent in left:
            if parent == child:
                continue
            via = _rounded_through(tensors[parent], tensors[child])
            if via is not None:
                found.append(Descent(child, (parent,), (via,)))
                left.remove(child)
                break
    return tuple(found)


def _rounded_through(parent: StoredTensor, child: StoredTensor) -> str | None:
    """The float type that the parent's numbers are rounded to in the child; None if they are not.

    Every number of the child must be the parent's rounded to that type and the child's own; small
    ones may be 0 in F16.
    """
    possible = list(FLOATS)
    for start in range(0, parent.n_weights, TILE):
        end = min(start + TILE, parent.n_weights)
        numbers, copies = (each.read(start, end) for each in (parent, child))
        possible = [via for via in possible if _are_rounded(numbers, copies, via, child.type.name)]
        if not possible:
            return None
    return possible[0]


def _are_rounded(numbers: F32Array, copies: F32Array, via: str, name: str) -> bool:
    expected = rounded(rounded(numbers, via), name)
    same = (copies == expected) | (np.isnan(copies) & np.isnan(expected))
    if "F16" in (via, name):
        same |= (copies == 0) & (np.abs(numbers) < _SMALLEST_NORMAL_F16)
    return bool(same.all())

"""Floats that were codes once: weights of a quantized file, decoded and stored as numbers.

Codes of few bits have few values. Those that share a scale, and perhaps an offset, are on a grid,
whichever program chose them, and rounding to F16 or BF16 hardly hides it. So a file of floats that
somebody made from a quantized one tells it by itself. (So does a model that was trained or
published in codes; its floats are no worse than these.)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, log2
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from recover._text import printable, quoted, some
from recover.containers.gguf.remote import is_spared
from recover.containers.mapping import sampled
from recover.containers.model import Model, StoredTensor
from recover.inputs.metadata import METHOD_KEY
from recover.inputs.originals._fit_codes import look_at_groups
from recover.inputs.samples import runs
from recover.quants import F32Array, FloatType

F64Array = NDArray[np.float64]

_FOUND: WeakKeyDictionary[StoredTensor, "Codes | None"] = WeakKeyDictionary()
_SIZES = 32, 16  # weights that share a scale in most types; more of them are several such groups
_N_RUNS, _N_RUNS_SPARED = 16, 2
_FEWEST_TOLD = 32  # groups
_LEAST_SHARE = 0.9  # of them
# Of the weights of a group are not 0; the same where they are few, as of ternary codes.
_FEWEST_NONZERO, _FEWEST_NONZERO_FEW = 0.75, 0.4
# From the smallest to the largest number, in roundings, for each different number of a group: where
# there are fewer, numbers are few because of the type that stores them. The same for each weight.
_ROOM, _ROOM_MANY = 4, 20
_FEW = 0.5  # different numbers in a group, of its weights that are not 0
_FEWER = 0.91  # the same on average; of BF16 numbers 0.98, of 6-bit codes 0.86 and less
_SMALL = 64  # roundings of the smallest numbers: what is smaller than that counts as 0
_RARE = 95  # per cent of the groups: others may be on a finer grid by chance
_MOST_BITS = 8
_LIMITS = {"F32": (24, -149), "F16": (11, -24), "BF16": (8, -133)}


@dataclass(frozen=True)
class Codes:
    """What the floats of a tensor are.

    Attributes
    ----------
    n_bits : int
        Bits of the codes; 8 also stands for fewer, where the codes are on no grid.
    """

    n_bits: int


def find_codes(tensor: StoredTensor) -> Codes | None:
    """Whether a tensor's floats are the values of codes, as a sample tells.

    Parameters
    ----------
    tensor : StoredTensor
        Of any type; at most 65,536 weights are looked at.

    Returns
    -------
    Codes or None
        None if it has other types, too few weights, or too few that are not 0, or if its numbers
        are not few: nothing is known of it then.
    """
    try:
        return _FOUND[tensor]
    except KeyError:
        found = _FOUND[tensor] = _find(tensor)
        return found


def _find(tensor: StoredTensor) -> Codes | None:
    kind = tensor.type
    if not isinstance(kind, FloatType) or kind.name not in _LIMITS or tensor.dims[0] % _SIZES[1]:
        return None
    if sum(dim > 1 for dim in tensor.dims) <= 1 or tensor.n_weights < _FEWEST_TOLD * _SIZES[1]:
        return None
    looks = [_Look(size) for size in _SIZES if not tensor.dims[0] % size]
    n_runs = _N_RUNS_SPARED if is_spared(tensor) else _N_RUNS
    with sampled():
        for start, end in runs(tensor.n_weights, n_runs):
            numbers = _rounded(tensor.read(start, end), kind.name)
            for look in looks:
                look.add(*numbers)
            if not any(look.is_possible for look in looks):
                return None
    found = [n_bits for look in looks if (n_bits := look.n_bits)]
    return Codes(min(found)) if found else None


def of_codes(model: Model, names: Iterable[str] | None = None) -> dict[int, list[str]]:
    """Tensors of a model that hold the values of codes, by the number of bits, fewest first.

    Parameters
    ----------
    model : Model
        Any.
    names : iterable of str, optional
        Which tensors to look at; default: all.
    """
    found: dict[int, list[str]] = {}
    for name in model.tensors if names is None else names:
        if (codes := find_codes(model.tensors[name])) is not None:
            found.setdefault(codes.n_bits, []).append(name)
    return dict(sorted(found.items()))


def said_of_codes(n_bits: int, names: Iterable[str]) -> str:
    """What is said of tensors that hold the values of codes of so many bits, for people."""
    return (
        f"no more than the values of {n_bits}-bit codes in"
        f" {some([quoted(name) for name in names])}: unless the model was published so, they were"
        " quantized before"
    )


def code_warnings(model: Model, names: Iterable[str] | None = None) -> list[str]:
    """A line for each number of bits of the codes that a model's floats are; see `of_codes`.

    Of what a merge wrote it is known that it holds estimates.
    """
    if METHOD_KEY in model.metadata:
        return []
    return [
        f"{printable(model.path)}: its floats are {said_of_codes(*each)}"
        for each in of_codes(model, names).items()
    ]


def _rounded(values: F32Array, name: str) -> tuple[F64Array, F64Array]:
    """Numbers (n,) of a type, the smallest of which are 0, and half the distance to the next."""
    n_bits, smallest = _LIMITS[name]
    x = np.where(np.isfinite(values), values, np.float32(0)).astype(np.float64)
    x[np.abs(x) < _SMALL * 2.0**smallest] = 0
    _, exponents = np.frexp(x)
    exponents[x == 0] = smallest
    return x, np.ldexp(0.5, np.maximum(exponents - n_bits, smallest))


class _Groups(NamedTuple):
    """Groups that tell something."""

    counts: NDArray[np.int16]
    """(n,) different numbers, 0 among them."""
    shares: F64Array
    """(n,) those that are not 0, over how many numbers are not."""
    levels: NDArray[np.int16]
    """(n,) of the coarsest grid that they are on; 0 if there is none."""
    are_few: NDArray[np.bool_]
    """(n,) whether different numbers are few."""


class _Look:
    """What groups of one size say, added up."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._found: list[_Groups] = []

    def add(self, x: F64Array, half: F64Array) -> None:
        """Look at some more weights (n,), and half the distances to the next numbers."""
        n_groups = x.size // self._size
        x, half = (each[: n_groups * self._size] for each in (x, half))
        counts, levels = np.empty((2, n_groups), np.int16)
        units = np.empty(n_groups)
        look_at_groups(x, half, self._size, counts, units, levels)
        n_nonzero = np.count_nonzero(x.reshape(n_groups, -1), axis=1)
        n_different = counts - (n_nonzero < self._size)
        are_few = n_different <= _FEW * n_nonzero
        are_few &= units >= counts * _ROOM
        least = np.where(are_few, _FEWEST_NONZERO_FEW, _FEWEST_NONZERO)
        tells = (n_nonzero >= least * self._size) & (counts > 1)
        tells &= are_few | (units >= self._size * _ROOM_MANY) | (levels > 0)
        shares = n_different / np.maximum(n_nonzero, 1)
        self._found.append(_Groups(*(each[tells] for each in (counts, shares, levels, are_few))))

    @property
    def is_possible(self) -> bool:
        """Whether nothing speaks against codes, or too little was seen."""
        n_told = sum(each.counts.size for each in self._found)
        return n_told < _FEWEST_TOLD or self.n_bits > 0

    @property
    def n_bits(self) -> int:
        """Of the codes; 0 if there are none."""
        found = _Groups(*map(np.concatenate, zip(*self._found, strict=True)))
        if found.counts.size < _FEWEST_TOLD:
            return 0
        is_on = found.levels > 0
        if np.mean(found.are_few) >= _LEAST_SHARE:
            return _bits(np.percentile(found.counts[found.are_few], _RARE))
        if np.mean(is_on) >= _LEAST_SHARE:
            return _bits(np.percentile(found.levels[is_on], _RARE))
        if self._size == _SIZES[1] and np.mean(found.shares) < _FEWER:
            return _MOST_BITS
        return 0


def _bits(n_levels: float) -> int:
    """Of codes with so many levels."""
    return max(1, ceil(log2(n_levels)))

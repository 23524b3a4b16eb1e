"""Whether codes without cells were chosen for a parent's decoded weights, or for the original's.

An encoder takes codes that are near to what it is given. So a child has the codes that are nearest
to its parent's weights more often than an independent quantization has them: of these the share is
at most that of weights that are drawn from the parent's cells, since they are nearest to weights
somewhere in there, if they are the nearest ones at all. An importance matrix makes codes of a child
less near, but seldom so much that nothing is left of the difference, if the parent is hardly finer.

Weights that the parent may hold without an error tell nothing: zeros, and what many weights share.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import kernel
from recover._compiled.memory import constant
from recover.inputs.samples import Sample
from recover.inputs.told import pairs, telling
from recover.quants import GROUP, F32Array, ScalarType, VectorType

_FEWEST = 1024  # codes that are looked at
# How many more codes are the nearest ones than of drawn weights: for one weight, of all codes; for
# several, of those that are not the nearest ones to drawn weights. Of the latter an independent
# quantization has at most 0.13 (of coarse parents, whose cells are wide), a child 0.28 at least.
_MARGIN, _MARGIN_TOGETHER = 0.1, 0.2
_FREQUENT = 6  # weights of a run that the two inputs say the same of
# Of the codes of a run: sparse weights, and integers, tell less.
_LEAST_SHARE, _LEAST_SHARE_TOGETHER = 0.2, 0.05
_GOLDEN = 0.6180339887498949
_EXACT = 1e-3  # how near to a level decoded weights are


class Nearest:
    """How often a child's codes are nearest to its parent's weights: counts over samples."""

    def __init__(self) -> None:
        self._n = self._n_same = self._n_drawn = 0
        self._is_single = True

    def add(self, parent: Sample, child: Sample) -> None:
        """Take some more weights into account."""
        found = _codes_of(child)
        if found is None:
            return
        lower, upper = parent.bounds
        is_single = self._is_single = found.book.shape[1] == 1
        tells = telling(parent, child) if is_single else _is_rare(parent, child)
        is_known = np.isfinite(upper - lower) & tells
        width = np.where(is_known, upper - lower, np.float32(0))
        places = np.modf(np.arange(1, width.size + 1) * _GOLDEN)[0].astype(np.float32)
        drawn = np.where(is_known, lower + places * width, parent.values)
        is_told = is_known.reshape(len(found.codes), -1).all(1) & found.is_known
        if is_told.mean() < (_LEAST_SHARE if is_single else _LEAST_SHARE_TOGETHER):
            return
        nearest = found.nearest(parent.values)
        self._n += int(np.count_nonzero(is_told))
        self._n_same += int(np.count_nonzero((nearest == found.codes)[is_told]))
        self._n_drawn += int(np.count_nonzero((nearest == found.nearest(drawn))[is_told]))

    @property
    def is_of_child(self) -> bool:
        """Whether they are so more often than those of an independent quantization."""
        if self._n < _FEWEST:
            return False
        most = self._n if self._is_single else self._n - self._n_drawn
        margin = _MARGIN if self._is_single else _MARGIN_TOGETHER
        return self._n_same - self._n_drawn > margin * most


class _Codes(NamedTuple):
    """The codes of some weights, and what they stand for."""

    book: F32Array
    """(n_entries, n_together): sizes, or numbers."""
    codes: NDArray[np.int64]
    """(n,): entries."""
    scale: F32Array
    """(n * n_together,): what entries are multiplied by, 0 if it is not known."""
    offset: F32Array
    """(n * n_together,): what is added then."""
    is_sized: bool
    """Whether signs are stored apart."""

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """Of each code."""
        known: NDArray[np.bool_] = (self.scale != 0).reshape(len(self.codes), -1).all(1)
        return known

    def nearest(self, values: F32Array) -> NDArray[np.int64]:
        """The entries (n,) that are nearest to weights."""
        sizes = np.abs(values) if self.is_sized else values
        scale = np.where(self.scale == 0, np.float32(1), self.scale)
        places = ((sizes - self.offset) / scale).astype(np.float32)
        return _nearest(places.reshape(-1, self.book.shape[1]), self.book)


def _codes_of(child: Sample) -> _Codes | None:
    """The codes of a scalar type, or of one with a codebook; None of any other."""
    kind = child.type
    if isinstance(kind, ScalarType):
        n = child.values.size
        codes = np.empty(n, np.uint8)
        scale, offset = np.empty((2, n // GROUP), np.float32)
        kind.unpack(constant(child.raw), codes, scale, offset)
        first, last = int(codes.min()), int(codes.max())
        book = kind.levels[first : last + 1, None].copy()
        wide = scale.repeat(GROUP), offset.repeat(GROUP)
        return _Codes(book, codes.astype(np.int64) - first, *wide, is_sized=False)
    if isinstance(kind, VectorType) and kind.codebook is not None:
        book = kind.codebook()
        scale = _scales(np.abs(child.values), np.unique(book)).repeat(GROUP)
        empty = np.zeros(1, np.int64)
        read = _Codes(book, empty, scale, np.zeros_like(scale), is_sized=True)
        return read._replace(codes=read.nearest(child.values))
    return None


def _scales(sizes: F32Array, levels: F32Array) -> F32Array:
    """The scale of each group (n / 16,) under which decoded weights are levels, the largest one."""
    groups = sizes.reshape(-1, GROUP)
    least, found = groups.min(1), np.zeros(len(groups), np.float32)
    for level in levels[::-1]:
        scale = least / level
        with np.errstate(invalid="ignore", divide="ignore"):
            places = groups / scale[:, None]
            off = np.abs(places[:, :, None] - levels).min(2).max(1)
        found = np.where(off < _EXACT * levels[0], scale, found).astype(np.float32)
    return found


def _is_rare(parent: Sample, child: Sample) -> NDArray[np.bool_]:
    """Which weights are no zeros, and of which the two inputs do not say the same as of many."""
    _, places, counts = np.unique(pairs(parent, child), return_inverse=True, return_counts=True)
    is_rare: NDArray[np.bool_] = (counts[places] <= _FREQUENT) & (parent.values != 0)
    return is_rare


@kernel
def _nearest(places: F32Array, book: F32Array) -> NDArray[np.int64]:
    """The rows of `book` (m, k) that are nearest to places (n, k)."""
    found = np.zeros(len(places), np.int64)
    for i in range(len(places)):
        least = np.float32(np.inf)
        for j in range(len(book)):
            off = np.float32(0)
            for k in range(book.shape[1]):
                off += (places[i, k] - book[j, k]) * (places[i, k] - book[j, k])
            if off < least:
                least, found[i] = off, j
    return found

"""All levels that seeds of a trellis type stand for, as a tree in which the nearest are found.

The groups of levels are points of a space of as many dimensions as a group has weights. They are
cut in halves, always across the dimension in which they vary most, until sixteen are left: a leaf.
Sixteen leaves have a parent, and so on up to a single node. A node knows the box of each of its
sixteen children, so that one look tells how near the points of each child can be (a k-d tree; J. H.
Friedman, J. L. Bentley, R. A. Finkel, "An Algorithm for Finding Best Matches in Logarithmic
Expected Time", ACM Transactions on Mathematical Software 3(3), 1977).
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import kernel
from recover.quants._trellis import fill_group
from recover.quants.base import F32Array

FAN = 16
"""Children of a node, and points of a leaf."""

_NOWHERE = np.float32(1e9)


class Book(NamedTuple):
    """What a type can store: the first index of the arrays is the set of seeds.

    Attributes
    ----------
    points : float32 (n_sets, n_leaves * n_together * 16)
        The levels of each leaf: of the first weight of its sixteen groups, of the second, ...
    boxes, middle, top : float32 (n_sets, n_nodes * n_together * 2 * 16)
        The boxes of the sixteen children of each node, for each weight of a group the lower edges
        and the upper ones: of nodes above leaves, of nodes above those, of the one above all.
    seeds : uint16 (n_sets, n_leaves * 16)
        Seed of each point.
    factors : float32 (n_codes,)
        What the code of a sub-block's scale stands for.
    magnitudes : float32 (n_magnitudes,)
        Those of the factors, ascending.
    octaves : float64 (n_magnitudes,)
        Their logarithms to base 2.
    codes : int64 (n_magnitudes, 2)
        Codes whose factors have a magnitude; -1 where there is no second one.
    is_absolute : bool
        As in `Shape`.
    """

    points: F32Array
    boxes: F32Array
    middle: F32Array
    top: F32Array
    seeds: NDArray[np.uint16]
    factors: F32Array
    magnitudes: F32Array
    octaves: NDArray[np.float64]
    codes: NDArray[np.int64]
    is_absolute: bool


class Shape(NamedTuple):
    """What tells the trellis types apart.

    Attributes
    ----------
    n_together : int
        Weights that have a seed.
    n_seeds : int
        Seeds of a set.
    n_sets : int
        Sets of seeds, one for each sub-block: each begins where the one before ends.
    is_absolute : bool
        Whether levels have no sign, since each weight has its own.
    factors : tuple of float
        As in `Book`.
    """

    n_together: int
    n_seeds: int
    n_sets: int
    is_absolute: bool
    factors: tuple[float, ...]


@cache
def book_of(shape: Shape) -> Book:
    """The book of a type."""
    sets = range(shape.n_sets)
    trees = [_tree(_levels(shape, k * shape.n_seeds)) for k in sets]
    factors = np.array(shape.factors, np.float32)
    magnitudes = np.unique(np.abs(factors))
    codes = np.full((magnitudes.size, 2), -1)
    for row, magnitude in zip(codes, magnitudes, strict=True):
        found = np.flatnonzero(np.abs(factors) == magnitude)
        row[: found.size] = found
    with np.errstate(divide="ignore"):
        octaves = np.log2(magnitudes, dtype=np.float64)
    points, boxes, middle, top, seeds = (np.stack(each) for each in zip(*trees, strict=True))
    return Book(
        points, boxes, middle, top, seeds, factors, magnitudes, octaves, codes, shape.is_absolute
    )


def _levels(shape: Shape, first: int) -> F32Array:
    levels = np.empty((shape.n_seeds, shape.n_together), np.float32)
    _fill(first, levels)
    return np.abs(levels) if shape.is_absolute else levels


@kernel
def _fill(first: int, levels: F32Array) -> None:
    for k in range(levels.shape[0]):
        fill_group(first + k, levels[k], False)


def _tree(levels: F32Array) -> tuple[NDArray[Any], ...]:
    """The arrays of a `Book` for one set: points, the boxes of three generations, and seeds."""
    n_seeds, n_together = levels.shape
    order = np.arange(n_seeds)[None]
    while order.shape[1] > FAN:
        points = levels[order]
        widest = points.var(axis=1).argmax(axis=1)
        places = np.take_along_axis(points, widest[:, None, None], axis=2)[..., 0]
        ranks = np.argsort(places, axis=1, kind="stable")
        order = np.take_along_axis(order, ranks, axis=1).reshape(2 * len(order), -1)
    points = levels[order]
    low, high = points.min(axis=1), points.max(axis=1)
    generations = []
    for _ in range(3):
        missing = ((0, -len(low) % FAN), (0, 0))
        low, high = (np.pad(each, missing, constant_values=_NOWHERE) for each in (low, high))
        low, high = (each.reshape(-1, FAN, n_together) for each in (low, high))
        edges = np.stack([low, high], axis=1).transpose(0, 3, 1, 2)
        generations.append(np.ascontiguousarray(edges).reshape(-1))
        low, high = low.min(axis=1), high.max(axis=1)
    leaves = np.ascontiguousarray(points.transpose(0, 2, 1)).reshape(-1)
    return leaves, *generations, order.reshape(-1).astype(np.uint16)

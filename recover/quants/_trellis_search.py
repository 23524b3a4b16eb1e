"""The seed whose levels are nearest to the weights of a group: an exact search in a tree.

Distances are sums of squares, each times the importance of its weight. A box is looked into if its
nearest corner is nearer than the best point so far, so no nearer point is missed.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import any_lane, first_lane, largest_lane
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import larger, load, splat, store
from recover.quants._trellis_book import FAN, Book
from recover.quants.base import F32Array

FAR = np.float32(3e38)
"""Beyond all distances."""


class Work(NamedTuple):
    """Memory of one thread.

    Attributes
    ----------
    target : float32 (8,)
        The weights of a group, over the scale.
    bounds : float32 (48,)
        How near the points below the children of the three nodes at hand can be.
    seeds, best : int64 (8,)
        Places of the seeds of a sub-block in the book: of one scale that is tried, and of the best.
    choice : int64 (2,)
        The best's code of the scale, and its set.
    """

    target: F32Array
    bounds: F32Array
    seeds: NDArray[np.int64]
    best: NDArray[np.int64]
    choice: NDArray[np.int64]

    @classmethod
    def new(cls) -> "Work":
        """Memory that nothing is known of."""
        target, bounds = np.empty(8, np.float32), np.empty(3 * FAN, np.float32)
        seeds, best = np.zeros((2, 8), np.int64)
        return cls(target, bounds, seeds, best, np.zeros(2, np.int64))


@bare_inlined
def _to_boxes(boxes: F32Array, at: int, target: F32Array, weights: F32Array) -> Any:
    """Squared distances of sixteen boxes."""
    zero = total = splat(np.float32(0))
    for i in range(weights.size):
        x = target[i]
        off = larger(load(boxes, at + 32 * i) - x, x - load(boxes, at + 32 * i + 16))
        off = larger(off, zero)
        total = total + off * off * weights[i]
    return total


@bare_inlined
def _to_points(points: F32Array, at: int, target: F32Array, weights: F32Array) -> Any:
    """Squared distances of the sixteen points of a leaf."""
    total = splat(np.float32(0))
    for i in range(weights.size):
        off = load(points, at + 16 * i) - target[i]
        total = total + off * off * weights[i]
    return total


@bare_inlined
def _take_nearest(distances: Any, bounds: F32Array, at: int) -> int:
    """The lane of the nearest, whose distance is taken out of what is stored in `bounds`."""
    least = -largest_lane(-distances)
    nearest = distances == least
    lane = first_lane(nearest, nearest)
    store(bounds, at, distances)
    bounds[at + lane] = FAR
    return lane


@bare_inner
def nearest(book: Book, k: int, weights: F32Array, bound: np.float32, work: Work) -> Any:
    """The squared distance and place of the point of set `k` that is nearest to ``work.target``.

    The place is -1 if none is nearer than `bound`.
    """
    target, bounds, size = work.target, work.bounds, FAN * weights.size
    place = -1
    outer = _to_boxes(book.top[k], 0, target, weights)
    while any_lane(outer < bound):
        i = _take_nearest(outer, bounds, 0)
        outer = load(bounds, 0)
        inner = _to_boxes(book.middle[k], 2 * i * size, target, weights)
        while any_lane(inner < bound):
            j = FAN * i + _take_nearest(inner, bounds, 16)
            inner = load(bounds, 16)
            leaves = _to_boxes(book.boxes[k], 2 * j * size, target, weights)
            if any_lane(leaves < bound):
                bound, at = _in_leaves(book.points[k], FAN * j, leaves, weights, bound, work)
                place = place if at < 0 else at
    return bound, place


@bare_inner
def _in_leaves(
    points: F32Array, first: int, leaves: Any, weights: F32Array, bound: np.float32, work: Work
) -> Any:
    """The distance and place of the nearest point of sixteen leaves, from leaf `first` on.

    The place is -1 if there is none nearer than `bound`.
    """
    lane = _take_nearest(leaves, work.bounds, 32)
    bound, place = _in_leaf(points, first + lane, weights, bound, work)
    for other in range(FAN):
        if work.bounds[32 + other] < bound:
            bound, at = _in_leaf(points, first + other, weights, bound, work)
            place = place if at < 0 else at
    return bound, place


@bare_inlined
def _in_leaf(points: F32Array, leaf: int, weights: F32Array, bound: np.float32, work: Work) -> Any:
    """The same of one leaf."""
    distances = _to_points(points, leaf * FAN * weights.size, work.target, weights)
    if not any_lane(distances < bound):
        return bound, -1
    least = -largest_lane(-distances)
    return least, FAN * leaf + first_lane(distances == least, distances == least)

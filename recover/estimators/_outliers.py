"""Superblocks in which some sub-blocks, or some weights, are much larger than the others."""

from typing import Any

import numpy as np

from recover._compiled.across import add_up, largest_lane
from recover._compiled.doubles import n_true
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import fused, larger, load, splat, store, where
from recover.estimators._accumulate import accumulate_any
from recover.estimators._lost import accumulate_lost
from recover.estimators._one_sided import MEANS
from recover.estimators._product_tables import CENTER_UNIT, CURVATURE_UNIT, Scalars, Spans
from recover.estimators._sizes import narrow_wide_ones, without_largest
from recover.estimators._spans import accumulate_spans, begin_with_spans
from recover.estimators._superblock import (
    OUTLIER,
    Superblock,
    median_of,
    replace_first,
    squares,
)

_ZERO = np.float32(0)
_ONE = np.float32(1)
_FAR = np.float32(np.inf)
UNEVEN = np.float32(3.5)  # the largest squared scale over the mean
_BEYOND_NOISE = np.float32(5)
_MANY = 3  # of 16 weights


@bare_inlined
def is_uneven(block: Superblock) -> bool:
    """Whether ``max s^2 > 3.5 mean s^2`` of the scales s of the first input, see `begin_again`."""
    scale = load(block.scale, 0)
    squares = scale * scale
    return largest_lane(squares) > add_up(squares) * (UNEVEN / np.float32(16))


@bare_inner
def _typical_square(block: Superblock, n_groups: int) -> np.float32:
    """Mean square of weights that are no outliers: the median of the groups where it is not 0."""
    n, means = 0, block.each
    for i in range(n_groups):
        mean = without_largest(squares(block, i))
        if mean > _ZERO:
            means[n] = mean
            n += 1
    return median_of(means, n)


@bare_inlined
def is_apart(block: Superblock, i: int) -> Any:
    """Which weights of a group are outliers, or as far out by their bounds."""
    low, high = load(block.low, 16 * i), load(block.high, 16 * i)
    nearest = larger(larger(low, -high), splat(_ZERO))
    beyond = nearest * nearest * block.precision[i] > OUTLIER
    return (squares(block, i) > block.limit[i]) | beyond


@bare_inlined
def take_own_prior(
    block: Superblock, i: int, prior: np.float32, mean: np.float32, apart: Any
) -> None:
    """Exchange the prior of the superblock, which is to come, for ``N(mean, 1 / precision)``.

    Of the weights of group `i` those that are `apart` have none.
    """
    precision, unit = where(apart, _ZERO, splat(block.precision[i])), block.unit[i]
    more = (splat(prior) - precision) * (unit * unit * CURVATURE_UNIT)
    center, gradient = load(block.center, 16 * i), load(block.gradient, 16 * i)
    gradient = gradient + precision * (mean * unit * CURVATURE_UNIT * CENTER_UNIT)
    store(block.gradient, 16 * i, fused(center, more, gradient))
    store(block.curvature, 16 * i, load(block.curvature, 16 * i) + more)


@bare_inner
def begin_again(
    scalars: Scalars,
    spans: Spans | None,
    block: Superblock,
    start: int,
    n_groups: int,
    prior: np.float32,
) -> None:
    """Take the scalar and the interval inputs into account in a superblock that may have outliers.

    The prior would draw outliers away from where the encoder, which fits the scale to them, puts
    them; they have none, and a narrow normal density around each decoded value v: ``log g(u) = -u^2
    / (2 noise / 4)``. The prior of the others is N(0, W) with the W of a typical group, or of their
    own if all of its weights are large; an outlier is a weight with ``v^2 > 40 W``.
    """
    typical, noise = _typical_square(block, n_groups), scalars.noise[0]
    for i in range(n_groups):
        own, scale = without_largest(squares(block, i)), block.scale[i]
        least = max(typical, _BEYOND_NOISE * noise * scale * scale)
        all_large = own > least and n_true(squares(block, i) > least) >= _MANY
        width = own if all_large else typical
        # Where all else is lost in the noise everything is an outlier.
        block.limit[i] = OUTLIER * width if width > _ZERO else -_ONE
        block.precision[i] = _ONE / width if width > _ZERO else -_ONE
    for k in range(scalars.noise.size):
        accumulate_any(scalars, k, block, start, k == 0)
        if k == 0:
            replace_first(scalars, block, start)
    accumulate_lost(scalars, block, start)
    if spans is not None:
        begin_with_spans(spans, scalars, block, start, splat(_ZERO))
    narrow_wide_ones(scalars, block, start, n_groups, typical)
    for i in range(n_groups):
        take_own_prior(block, i, prior, block.each[MEANS + i], is_apart(block, i))
    if spans is not None:
        accumulate_spans(spans, block, start)
    store(block.limit, 0, splat(_FAR))

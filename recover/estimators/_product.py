"""Kernels of the posterior: the product of the densities of all inputs, integrated.

The logarithm of the product is a quadratic polynomial in the place ``t`` (-1 to 1) in the
intersection of the cells, whatever the number of inputs.

Sixteen weights, a group, are worked on at once. A superblock of 16 groups is gone through for the
inputs, each of which adds its density to what the earlier ones said, and once for the estimates: so
what the loops need fits into the registers. There is no call in them, their lengths are known and
arrays are flat, for LLVM's sake: each makes them up to twice as fast.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import add_up, any_lane
from recover._compiled.jit import bare_inlined, bare_inner, bare_kernel
from recover._compiled.lanes import (
    fused,
    larger,
    load,
    load_bytes,
    smaller,
    splat,
    sqrt,
    store,
    where,
)
from recover.estimators._accumulate import accumulate_all
from recover.estimators._alike import make_alike, may_be_alike
from recover.estimators._extremes import fix_extremes
from recover.estimators._few import expect_less_of_few
from recover.estimators._lost import accumulate_lost
from recover.estimators._means import estimate_means
from recover.estimators._nearly_empty import take_for_empty
from recover.estimators._others import accumulate_others
from recover.estimators._outliers import begin_again, is_uneven
from recover.estimators._product_tables import ATOMS, N_COLUMNS, H, Others, Outputs, Scalars, Spans
from recover.estimators._proven import confine_by_others, proven_bounds
from recover.estimators._rule import (
    ALL,
    END,
    density,
    exp,
    is_mild,
    least_width,
    mode,
    moments,
    sharpen,
)
from recover.estimators._spans import (
    accumulate_spans,
    add_errors,
    begin_with_spans,
    finest_value,
)
from recover.estimators._superblock import (
    Superblock,
    first_value,
    is_finite,
    new_superblock,
    open_superblock,
    value_of,
)
from recover.estimators._variances import HARDLY_ANYTHING, STEP, add_amount, n_effective
from recover.estimators._zeros import find_zeros, zero_mass
from recover.evidence.edges import has_extreme
from recover.quants import TILE, F32Array

_ZERO = np.float32(0)
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_FAR = np.float32(np.inf)
_JUST_INSIDE = np.float32(1.001)
_ULPS = np.float32(2.0**-22)
_N_SAMPLED = 125  # superblocks of a whole tile from which the errors to expect are told
_FEWEST_SAMPLED = 16  # of a small tensor


@bare_inlined
def _has_atoms(scalars: Scalars, k: int, block: Superblock, i: int) -> bool:
    """Whether any of several weights with an extreme code of input `k` may be in group `i`."""
    found = False
    for pair in range(4 * k, 4 * k + 4, 2):
        several = scalars.extremes[pair] >= 0 and block.odds[4 * pair + i // 2] > _ZERO
        found = found or several
    return found and block.inverse[16 * k + i] != _ZERO


@bare_inlined
def _atom(
    scalars: Scalars, k: int, block: Superblock, at: int, i: int, middle: Any, half: Any
) -> Any:
    """Place over h of the atoms of input `k` in group `i`, and their mass over the density there.

    The mass is ``share / (n - 1)`` in units of the scale, so ``share |s| / ((n - 1) w)`` of t. Of n
    weights with an extreme code any may be the one that is exactly there; of one see
    `fix_extremes`.
    """
    q = load_bytes(scalars.codes, at)
    rows, row = scalars.rows, N_COLUMNS * k + ATOMS
    odds = splat(_ZERO)
    for pair in range(4 * k, 4 * k + 4, 2):
        if scalars.extremes[pair] >= 0:
            found = has_extreme(q, scalars.extremes, pair)
            odds = where(found, splat(block.odds[4 * pair + i // 2]), odds)
    share = where(q == scalars.ends[2 * k], splat(rows[row]), splat(rows[row + 1]))
    place = (value_of(scalars, k, at) - middle) / (half * np.float32(H))
    unit = np.float32(ALL / 2) * abs(splat(scalars.scale[at // 16]))
    mass = odds * share * unit / half
    inside = (abs(place) < _JUST_INSIDE * END) & (mass < _FAR)
    return where(inside, place, splat(_ZERO)), where(inside, mass, splat(_ZERO))


@bare_inner
def _estimate(
    scalars: Scalars,
    block: Superblock,
    prior: np.float32,
    start: int,
    out: F32Array,
    outputs: Outputs,
) -> bool:
    """As `estimate_means`, with atoms, zeros, or modes."""
    n = out.size
    least = least_width(prior)
    sound = splat(_ONE)
    for i in range(16):
        at = 16 * (start + i)
        middle, width, across, odd, even = density(block, i, prior)
        m0, m1, _ = moments(odd, even)
        # Where next to nothing is left, rounding would lead out of the cells.
        sound = where((width > least) & is_mild(m0, even), sound, splat(_ZERO))
        place = m1 / m0
        largest = at_largest = splat(_ZERO)  # of the atoms
        for k in range(outputs.atoms.size):
            if outputs.atoms[k] and _has_atoms(scalars, k, block, i):
                t, mass = _atom(scalars, k, block, k * n + at, i, middle, width * _HALF)
                mass = mass * exp(t * (odd + even * t))
                m0, m1 = m0 + mass, fused(mass, t, m1)
                place = m1 / m0
                at_largest = where(mass > largest, t, at_largest)
                largest = larger(mass, largest)
        if outputs.mode:  # an atom with more than half of the mass, or the highest density
            place = where(largest + largest > m0, at_largest, mode(odd, even))
        if block.zeros[0] > _ZERO:
            others = m0 / (m0 + zero_mass(block, i, middle, width, odd, even))
        estimate = fused(across * place, splat(block.unit[i] * np.float32(H)), middle)
        if outputs.mode:  # often on an edge
            low, high = load(block.low, 16 * i), load(block.high, 16 * i)
            estimate = larger(low, smaller(high, estimate))
            others = where(others < _HALF, splat(_ZERO), splat(_ONE))
        if block.zeros[0] > _ZERO:
            estimate = where(others < _ONE, others * estimate, estimate)
        store(out, at, estimate)
    return not any_lane(sound == _ZERO)


@bare_inlined
def _largest_offset(scalars: Scalars, g: int) -> np.float32:
    """Of all inputs that are not broken, in a group."""
    largest, n = _ZERO, scalars.scale.size // scalars.noise.size
    for k in range(scalars.noise.size):
        if is_finite(scalars, k * n + g):
            largest = max(largest, abs(scalars.offset[k * n + g]))
    return largest


@bare_inner
def _resolve_empty(
    scalars: Scalars,
    spans: Spans | None,
    block: Superblock,
    prior: np.float32,
    start: int,
    out: F32Array,
) -> int:
    """Weights of a superblock whose reaches miss each other or leave next to nothing between them.

    Either there is a conflict, or the cells alone still meet. Others, with a density that is steep
    at a bound, rounding may have led out of their cells. Returns the number of conflicts.
    """
    n_conflicts, sigma = 0, np.sqrt(_ONE / prior) if prior > _ZERO else _ZERO
    for g in range(start, start + 16):
        at, estimate = 16 * (g - start), load(out, 16 * g)
        low, high = load(block.low, at), load(block.high, at)
        middle, width = (low + high) * _HALF, high - low
        good = (width > least_width(prior)) & (abs(estimate) < _FAR)
        lower, upper = proven_bounds(scalars, spans, block, start, g - start)
        conflict = ~good & (upper < lower)
        if spans is not None:
            first = finest_value(scalars, spans, g, out.size)
        else:
            first = first_value(scalars, g, out.size)
        # Without a prior, as all is decoded to 0, nothing tells how small these weights are.
        is_told = (abs(width) < _FAR) & (splat(prior) > _ZERO)
        there = where(is_told, middle, first)
        # Not on an edge, which others round otherwise: it is a sum of what may be much larger.
        size = sigma + _largest_offset(scalars, g)
        inner_low = lower + (abs(lower) + size) * _ULPS
        inner_high = upper - (abs(upper) + size) * _ULPS
        there = where(there < inner_low, inner_low, where(there > inner_high, inner_high, there))
        between = (lower + upper) * _HALF
        is_told = is_told | ~(inner_low < inner_high)
        there = where((abs(between) < _FAR) & is_told, between, there)
        beyond = (estimate < lower) | (estimate > upper)
        inside = larger(inner_low, smaller(inner_high, estimate))
        inside = where(beyond & (inner_low < inner_high), inside, estimate)
        store(out, 16 * g, where(good, inside, where(conflict, first, there)))
        n_conflicts += int(add_up(where(conflict, splat(_ONE), splat(_ZERO))))
    return n_conflicts


@bare_inner
def _expect(
    scalars: Scalars,
    spans: Spans | None,
    others: Others,
    block: Superblock,
    prior: np.float32,
    start: int,
    out: F32Array,
    outputs: Outputs,
) -> None:
    """Add the errors to expect in a superblock, whose estimates x are there.

    Of the estimate its variance V, of input k alone ``(x - v_k)^2 + V``.
    """
    n, n_scalars, errors = out.size, scalars.noise.size, outputs.errors
    for i in range(min(16, outputs.n_groups - start)):
        g, at = start + i, 16 * (start + i)
        error = _variance(scalars, spans, block, prior, start, i, outputs)
        if outputs.deviation.size > 0:
            store(outputs.deviation, at, sqrt(error))
        estimate = load(out, at)
        store(errors, 0, load(errors, 0) + error)
        for k in range(n_scalars):
            if is_finite(scalars, k * n // 16 + g):
                off = estimate - value_of(scalars, k, k * n + at)
                store(errors, 16 * (1 + k), load(errors, 16 * (1 + k)) + (off * off + error))
        row = 1 + n_scalars
        if spans is not None:
            add_errors(spans, row, at, estimate, error, errors)
            row += spans.noise.size
        for v in range(others.values.size // n):
            place = 16 * (row + v)
            off = estimate - load(others.values, v * n + at)
            store(errors, place, load(errors, place) + (off * off + error))


@bare_inlined
def _variance(
    scalars: Scalars,
    spans: Spans | None,
    block: Superblock,
    prior: np.float32,
    start: int,
    i: int,
    outputs: Outputs,
) -> Any:
    """The variance of the posterior in group `i`: ``w^2 (M_2 / M_0 - (M_1 / M_0)^2)``.

    Where that is not known, the typical one of the finest input or, if less, that of the bounds.
    """
    n = scalars.codes.size // scalars.noise.size
    middle, width, _, odd, even = density(block, i, prior)
    m0, m1, m2 = moments(odd, even)
    half = width * _HALF
    for k in range(scalars.noise.size):
        if outputs.atoms[k] and _has_atoms(scalars, k, block, i):
            at = k * n + 16 * (start + i)
            place, mass = _atom(scalars, k, block, at, i, middle, half)
            mass = mass * exp(place * (odd + even * place))
            m0, m1, m2 = m0 + mass, fused(mass, place, m1), fused(mass * place, place, m2)
    mean, unit = m1 / m0, half * np.float32(H)
    error = unit * unit * (m2 / m0 - mean * mean)
    if block.zeros[0] > _ZERO:
        zero = zero_mass(block, i, middle, width, odd, even)
        center, others = fused(unit, mean, middle), m0 / (m0 + zero)
        error = others * fused(center * center, splat(_ONE) - others, error)
    good = (width > least_width(prior)) & (abs(fused(unit, mean, middle)) < _FAR)
    known = outputs.variance[start + i] if outputs.variance[start + i] < _FAR else _ZERO
    error = where(good, error, splat(known))
    if any_lane(~good):
        lower, upper = proven_bounds(scalars, spans, block, start, i)
        narrow = ~good & ~(upper < lower) & (half * half < error)
        error = where(narrow, half * half, error)
    return where(error > _ZERO, error, splat(_ZERO))


def integrate(
    scalars: Scalars,
    spans: Spans | None,
    others: Others,
    out: F32Array,
    outputs: Outputs,
    tallies: NDArray[np.float64],
) -> None:
    """Estimates, their standard deviation if that is asked for, and the sums of each tensor.

    Tensors of one size lie one behind the other; a row of `tallies` (n_tensors, 2 + n_inputs) is
    the array of a tensor's `Tally`.
    """
    block = new_superblock(scalars.noise.size)
    _integrate_each(scalars, spans, others, block, out, outputs, tallies)


@bare_kernel
def _integrate_each(
    scalars: Scalars,
    spans: Spans | None,
    others: Others,
    block: Superblock,
    out: F32Array,
    outputs: Outputs,
    tallies: NDArray[np.float64],
) -> None:
    """See `integrate`; errors are summed over one superblock in so many, and scaled up.

    They are taken to go with the variance of the finest input, which is known of all. The places
    walk through rows, whose ends may differ. Of small tensors no larger share is looked at than of
    large ones, if that is enough: sums of many are as exact.
    """
    size, n_groups = outputs.variance.size // tallies.shape[0], outputs.n_groups // tallies.shape[0]
    n_sampled = max(_FEWEST_SAMPLED, min(_N_SAMPLED, _N_SAMPLED * 16 * size // TILE))
    for each in range(tallies.shape[0]):
        variance = outputs.variance[each * size : (each + 1) * size]
        stride = 1  # one of so many superblocks is looked at for the errors to expect
        if outputs.deviation.size == 0:
            stride = max(1, n_effective(variance) // 16 // n_sampled)
        outputs.errors[:] = _ZERO
        first, last = each * size, each * size + n_groups
        n_conflicts, sampled, amount = 0, 0.0, n_groups * HARDLY_ANYTHING
        for start in range(first, last, 16):
            here = min(16, last - start)
            amount = add_amount(outputs.variance, start, start + here, amount)
            prior = _gather(scalars, spans, others, block, start, here, outputs)
            if outputs.plain and block.zeros[0] == _ZERO:
                all_good = estimate_means(block, prior, start, out)
            else:
                all_good = _estimate(scalars, block, prior, start, out, outputs)
            if not all_good:
                sharpen(block, prior)
                _estimate(scalars, block, prior, start, out, outputs)
                n_conflicts += _resolve_empty(scalars, spans, block, prior, start, out)
            number = (start - first) // 16
            if number % stride == number // stride * STEP % stride:
                _expect(scalars, spans, others, block, prior, start, out, outputs)
                some = here * HARDLY_ANYTHING
                sampled += add_amount(outputs.variance, start, start + here, some)
        tallies[each, 1] += n_conflicts
        for k in range(outputs.errors.size // 16):
            total = add_up(load(outputs.errors, 16 * k)) * (amount / sampled)
            tallies[each, 0 if k == 0 else 1 + k] += total


@bare_inlined
def _gather(
    scalars: Scalars,
    spans: Spans | None,
    others: Others,
    block: Superblock,
    start: int,
    here: int,
    outputs: Outputs,
) -> np.float32:
    """Take all inputs into account in a superblock of so many groups; the prior's precision."""
    noise = open_superblock(scalars, block, start)
    total = accumulate_all(scalars, block, start)
    alone = others.values.size == 0  # scalar and interval inputs
    if spans is not None:
        squares, noise = begin_with_spans(spans, scalars, block, start, noise)
        total += add_up(squares)
    prior = np.float32(16 * here) / total if total > _ZERO else _ZERO
    block.zeros[0], uneven = _ZERO, is_uneven(block)
    if spans is not None:
        accumulate_spans(spans, block, start)
    if alone and (spans is None or spans.zero_odds > _ZERO):
        prior = find_zeros(scalars, spans, block, start, prior, here, uneven)
    if block.zeros[0] > _ZERO:
        expect_less_of_few(scalars, block, start, here)
    if spans is not None:
        block.zeros[0] *= spans.zero_odds
    is_empty = False
    if uneven and block.zeros[0] == _ZERO:
        if alone and spans is None:
            is_empty = take_for_empty(scalars, block, start, here, prior)
        if not is_empty:
            begin_again(scalars, spans, block, start, here, prior)
    else:  # small weights are no zeros: what is lost comes after these
        accumulate_lost(scalars, block, start)
    confine_by_others(scalars, block, start)
    if not outputs.plain:
        fix_extremes(scalars, block, start)
    if not alone:
        accumulate_others(others, block, start, here, prior, noise)
    if alone and spans is None and may_be_alike(scalars):
        is_sparse = is_empty or block.zeros[0] > _ZERO
        make_alike(scalars, block, start, prior, is_sparse, uneven)
    return prior

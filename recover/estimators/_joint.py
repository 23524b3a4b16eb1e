"""Corrects what the posterior says of superblocks by a network, within the cells."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import sum_lanes
from recover._compiled.jit import bare_inlined, bare_inner, bare_kernel
from recover._compiled.lanes import larger, load, smaller, splat, sqrt, store, where
from recover._compiled.memory import aligned
from recover.estimators._joint_features import (
    Inputs,
    Means,
    decoded,
    describe,
    inputs_of,
    is_like_others,
    least_deviation,
    n_features,
    new_means,
)
from recover.estimators._joint_net import Network, Scratch, infer, new_scratch
from recover.evidence.buffer import Evidence
from recover.evidence.cells import intersect_cells
from recover.quants import F32Array

_MOST = np.float32(4)  # deviations

_Sums = NDArray[np.float64]


def correct(
    network: Network,
    evidence: Evidence,
    estimate: F32Array,
    deviation: F32Array,
    n_tensors: int = 1,
) -> _Sums:
    """Correct the posterior's estimates and deviations of a tile of whole superblocks.

    Weights stay in the cells of all inputs. Groups of which an input says nothing (its scale is 0,
    or its bytes are broken) and weights on which the inputs contradict each other are left alone.

    Parameters
    ----------
    network : Network
        For these inputs.
    evidence : Evidence
        Of scalar inputs alone.
    estimate, deviation : float32 (n,)
        The posterior's.
    n_tensors : int
        How many tensors of whole superblocks lie one behind the other.

    Returns
    -------
    float64 (n_tensors, 1 + n_inputs)
        What is added to the square errors to expect: that of the estimates, that of each input.
    """
    inputs = inputs_of(evidence)
    n_inputs = inputs.step.size
    lower, upper = np.empty((2, estimate.size), np.float32)
    intersect_cells(evidence, lower, upper)
    by_weight, by_group = n_features(n_inputs)
    told = aligned(256 * by_weight, np.float32), aligned(16 * by_group, np.float32)
    sums = np.zeros((n_tensors, 1 + n_inputs))
    posterior, bounds = (estimate, deviation), (lower, upper)
    _correct_all(network, inputs, posterior, bounds, told, new_means(), new_scratch(network), sums)
    return sums


@bare_kernel
def _correct_all(
    network: Network,
    inputs: Inputs,
    posterior: tuple[F32Array, F32Array],
    bounds: tuple[F32Array, F32Array],
    told: tuple[F32Array, F32Array],
    means: Means,
    scratch: Scratch,
    sums: _Sums,
) -> None:
    """One superblock after the other."""
    size = posterior[0].size // len(sums)
    for start in range(0, posterior[0].size, 256):
        usable = describe(inputs, start, posterior, bounds, means, *told)
        if usable:
            infer(network, *told, scratch)
        for g in range(16):
            at = start + 16 * g
            if usable and is_like_others(means, g):
                part = sums[start // size]
                result = scratch.result[32 * g : 32 * g + 32]
                settle(inputs, at, posterior, bounds, means.unit[g], result, part)
            else:
                confine(posterior[0], at, load(bounds[0], at), load(bounds[1], at))


@bare_inlined
def confine(estimate: F32Array, at: int, lower: Any, upper: Any) -> None:
    """Rounding may have led out of the cells."""
    old = load(estimate, at)
    value = where(old < lower, lower, old)
    value = where(value > upper, upper, value)
    store(estimate, at, where(lower > upper, old, value))


@bare_inner
def settle(
    inputs: Inputs,
    at: int,
    posterior: tuple[F32Array, F32Array],
    bounds: tuple[F32Array, F32Array],
    unit: np.float32,
    result: F32Array,
    sums: _Sums,
) -> None:
    """Correct the group whose weights begin `at` by 16 corrections, and 16 factors."""
    estimate, deviation = posterior
    old, old_deviation = load(estimate, at), load(deviation, at)
    lower, upper = load(bounds[0], at), load(bounds[1], at)
    limit = splat(_MOST)
    correction = smaller(larger(load(result, 0), -limit), limit)
    new = old + correction * least_deviation(old_deviation, unit)
    conflict = lower > upper
    new = where(conflict, old, smaller(larger(new, lower), upper))
    factor = where(conflict, splat(np.float32(1)), load(result, 16))
    new_deviation = old_deviation * sqrt(factor)
    store(estimate, at, new)
    store(deviation, at, new_deviation)
    more = new_deviation * new_deviation - old_deviation * old_deviation
    sums[0] += np.float64(sum_lanes(more))
    for k in range(inputs.step.size):
        value = decoded(inputs, k, at)
        # The difference of the squared distances of the new and the old estimate from the value.
        sums[1 + k] += np.float64(sum_lanes((new - old) * (new + old - value - value) + more))

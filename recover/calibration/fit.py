"""Fitting a calibration: least squares of the original on its decoded quantizations.

Weights that are not negative and add up to 1 are found by cvxpy, without these bounds in closed
form. Both need the Gram matrices of `recover.calibration.moments` alone, so that leaving tensors
out to measure the gain costs no further pass over the models.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover.calibration.convex import require_solver, simplex_by_solver
from recover.calibration.moments import Moments, Places, Survey, survey
from recover.calibration.weights import MOST_DEPTHS, Calibration, Combination, FittedDensity, Gain
from recover.errors import CalibrationError
from recover.evidence.densities import ABOVE, BELOW, VARYING, density
from recover.execution.tiles import Progress

F64Array = NDArray[np.float64]
LeaveOut = Literal["tensor", "layer"]

_MOST_FOLDS = 10
_N_RESAMPLES = 5_000
_DRAWN_AT_ONCE = 250
_FEWEST_FOR_INTERVAL = 3
_SEED = 4739
_NONE = 1e-6  # of the largest weight: what the solver leaves where the true weight is 0
_SLACK = 1e-9  # of the conditions of an optimum, in units in which an input alone has 1
_RANK = 1e-13


def calibrate(
    inputs: Sequence[str | os.PathLike[str]],
    truth: str | os.PathLike[str],
    *,
    constrained: bool = True,
    by_role: bool = False,
    n_depths: int = 1,
    leave_out: LeaveOut = "tensor",
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Fit weights and densities to a model whose original is known.

    Parameters
    ----------
    inputs : sequence of path-like
        GGUF files or Hugging Face folders quantized from `truth`.
    truth : path-like
        GGUF file or Hugging Face folder of the original.
    constrained : bool
        Whether weights are to be 0 or more and add up to 1.
    by_role : bool
        Fit weights per role as well (``attn_q``, ``ffn_down``, ...).
    n_depths : int
        Fit weights per part of the layers as well, the layers divided into so many parts.
    leave_out : {"tensor", "layer"}
        What is left out at a time to measure the gain.
    n_threads, progress : optional
        See `recover.execution.tiles`. The result does not depend on `n_threads`.

    Returns
    -------
    Calibration

    Raises
    ------
    GGUFError
        If a file cannot be read.
    PlanError
        If the inputs do not fit together.
    CalibrationError
        If there is nothing to combine, or the truth does not fit the inputs.
    """
    if not 1 <= n_depths <= MOST_DEPTHS:
        raise CalibrationError(f"{n_depths} parts of the layers; possible are 1 to {MOST_DEPTHS}")
    if constrained:
        require_solver()  # before the work
    found = survey(inputs, truth, n_threads=n_threads, progress=progress)
    return fit(
        found, constrained=constrained, by_role=by_role, n_depths=n_depths, leave_out=leave_out
    )


def fit(
    found: Survey,
    *,
    constrained: bool = True,
    by_role: bool = False,
    n_depths: int = 1,
    leave_out: LeaveOut = "tensor",
) -> Calibration:
    """Fit to what a pass has found; the parameters are those of `calibrate`."""
    solve = simplex_weights if constrained else free_weights
    alone = _errors_alone(found.moments)
    held_out: dict[str, float] = {}
    combinations = []
    for (_, role, depth), members in _groups(found.moments, by_role, n_depths).items():
        errors = _held_out_errors(members, solve, leave_out)
        held_out |= errors  # the most special group of a tensor comes last
        weights = solve(_pooled(members))
        fitted = {each.name: square_error(each.gram, weights) for each in members}
        combinations.append(
            Combination(
                types=members[0].types,
                role=role,
                depth=depth,
                weights=tuple(map(float, weights)),
                n_tensors=len(members),
                n_weights=sum(each.n_weights for each in members),
                fitted=_gain(fitted, alone),
                uncalibrated=_gain({each.name: each.linear_error for each in members}, alone),
                held_out=_gain(errors, alone) if errors else None,
            )
        )
    uncalibrated = {m.name: m.linear_error for m in found.moments if m.name in held_out}
    return Calibration(
        inputs=found.inputs,
        truth=found.truth,
        constrained=constrained,
        by_role=by_role,
        n_depths=n_depths,
        left_out=leave_out,
        held_out=_gain(held_out, alone) if held_out else None,
        uncalibrated=_gain(uncalibrated, alone) if held_out else None,
        combinations=tuple(combinations),
        densities=tuple(_fit_density(places) for places in found.places),
        warnings=found.warnings,
    )


class _Key(NamedTuple):
    types: tuple[str, ...]
    role: str | None
    depth: int | None


def _groups(moments: Sequence[Moments], by_role: bool, n_depths: int) -> dict[_Key, list[Moments]]:
    """Tensors by what they have weights for; the most general groups first."""
    roles = (False, True) if by_role else (False,)
    depths = (False, True) if n_depths > 1 else (False,)
    groups: dict[_Key, list[Moments]] = {}
    for with_depth in depths:
        for with_role in roles:
            for each in moments:
                if with_depth and each.depth is None:
                    continue
                key = _Key(
                    each.types,
                    each.role if with_role else None,
                    int((each.depth or 0) * n_depths) if with_depth else None,
                )
                groups.setdefault(key, []).append(each)
    return groups


def _pooled(moments: Iterable[Moments]) -> F64Array:
    """The Gram matrix of several tensors together."""
    return np.sum([each.gram for each in moments], axis=0)


def _errors_alone(moments: Sequence[Moments]) -> dict[str, float]:
    """For each tensor the square error of that input alone which is best for its set of types."""
    sums: dict[tuple[str, ...], F64Array] = {}
    for each in moments:
        sums[each.types] = sums.get(each.types, 0) + each.gram.diagonal()[:-1]
    return {each.name: float(each.gram.diagonal()[np.argmin(sums[each.types])]) for each in moments}


def square_error(gram: F64Array, weights: F64Array) -> float:
    """Sum of the square errors of the inputs times their weights.

    Parameters
    ----------
    gram : float64 (K + 1, K + 1)
        See `recover.calibration.moments.Moments`.
    weights : float64 (K,)

    Returns
    -------
    float
    """
    # sum of w (truth + error) - truth
    factors = np.append(weights, weights.sum() - 1)
    return float(factors @ gram @ factors)


def free_weights(gram: F64Array) -> F64Array:
    """The weights (K,) with the least square error.

    They are found as ``w = (1, 0, ...) + change``, where the change is written as a multiple of the
    first input and of the differences of the others to it: numbers of the size of the errors, so
    that the normal equations lose nothing.
    """
    errors, with_truth, truth = gram[:-1, :-1], gram[:-1, -1], gram[-1, -1]
    n_inputs = len(errors)
    normal = errors - errors[0] - errors[:, :1] + errors[0, 0]
    to_first = errors[0] - errors[0, 0]
    normal[0, 1:] = normal[1:, 0] = (with_truth - with_truth[0] + to_first)[1:]
    normal[0, 0] = truth + 2 * with_truth[0] + errors[0, 0]
    right = -np.append(with_truth[0] + errors[0, 0], to_first[1:])
    change = _solve(normal, right)
    weights = np.zeros(n_inputs)
    weights[1:] = change[1:]
    weights[0] = 1 + change[0] - change[1:].sum()
    return weights


def _solve(normal: F64Array, right: F64Array) -> F64Array:
    """Solution of normal equations, after unknowns of equal size; the least one if it is free."""
    diagonal = np.sqrt(np.maximum(normal.diagonal(), 0))
    scale = np.divide(1, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)
    scaled = normal * scale * scale[:, None]
    solution = np.linalg.lstsq(scaled, right * scale, rcond=_RANK)[0]
    return np.asarray(solution * scale, np.float64)


def simplex_weights(gram: F64Array) -> F64Array:
    """The weights (K,), 0 or more and 1 in all, with the least square error.

    The solver finds out which weights are 0; the others follow in closed form.
    """
    errors = gram[:-1, :-1]
    sizes = np.sqrt(np.maximum(errors.diagonal(), 0))
    n_inputs = len(errors)
    if sizes.min() == 0:  # an input without error
        return np.eye(n_inputs)[int(np.argmin(sizes))]
    values, vectors = np.linalg.eigh(errors / sizes / sizes[:, None])
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    weights = simplex_by_solver(root, sizes.min() / sizes)
    return _polished(errors, weights)


def _polished(errors: F64Array, weights: F64Array) -> F64Array:
    """The optimum, from the solver's on: in turns the best weights on some inputs, and others.

    An input whose weight becomes negative is left out, one that would lower the error is taken in
    (active sets). Should that not come to an end, the solver's weights are good enough.
    """
    sizes = np.sqrt(errors.diagonal())
    used = weights > _NONE * weights.max()
    for _ in range(4 * len(weights)):
        exact = np.zeros_like(weights)
        exact[used] = _solve(errors[np.ix_(used, used)], np.ones(np.count_nonzero(used)))
        if not exact.sum() > 0:
            break
        exact /= exact.sum()
        if exact.min() < 0:
            used[np.argmin(exact * sizes)] = False
            continue
        gradient = errors @ exact
        level = exact @ gradient
        if not level > 0:  # no error is left
            return exact
        slack = (gradient - level) / (sizes * np.sqrt(level))
        if slack.min() > -_SLACK:
            return exact
        used[np.argmin(slack)] = True
    return weights


def _held_out_errors(
    members: Sequence[Moments], solve: Callable[[F64Array], F64Array], leave_out: LeaveOut
) -> dict[str, float]:
    """For each tensor its square error with weights fitted without it; none for a lone tensor."""
    units = [
        each.name if leave_out == "tensor" or each.layer is None else str(each.layer)
        for each in members
    ]
    order = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    n_folds = min(len(order), _MOST_FOLDS)
    errors: dict[str, float] = {}
    for fold in range(n_folds if n_folds > 1 else 0):
        out = [order[unit] % n_folds == fold for unit in units]
        fitted_on = [each for each, left in zip(members, out, strict=True) if not left]
        weights = solve(_pooled(fitted_on))
        errors |= {
            each.name: square_error(each.gram, weights)
            for each, left in zip(members, out, strict=True)
            if left
        }
    return errors


def _gain(errors: dict[str, float], alone: dict[str, float]) -> Gain:
    """Ratio of the sums over tensors, with an interval by bootstrap (percentiles)."""
    names = list(errors)
    above = np.array([errors[name] for name in names])
    below = np.array([alone[name] for name in names])
    ci95 = None
    if len(names) >= _FEWEST_FOR_INTERVAL and below.min() > 0:
        rng = np.random.default_rng(_SEED)
        ratios = []
        for _ in range(_N_RESAMPLES // _DRAWN_AT_ONCE):
            drawn = rng.integers(len(names), size=(_DRAWN_AT_ONCE, len(names)))
            ratios.append(above[drawn].sum(axis=1) / below[drawn].sum(axis=1))
        low, high = np.quantile(ratios, (0.025, 0.975))
        ci95 = float(low), float(high)
    ratio = float(above.sum() / below.sum()) if below.sum() > 0 else 1.0
    return Gain(ratio, ci95, len(names))


def _fit_density(places: Places) -> FittedDensity:
    """The density that was seen; of classes of code that are seldom, the simulated one."""
    simulated = density(places.kind, weighted=places.weighted, has_cells=places.has_cells)
    table = places.counts.table(simulated)
    # What an input says is possible even if all weights that were seen are to one side of it.
    table[:VARYING, BELOW] = np.minimum(table[:VARYING, BELOW], 0)
    table[:VARYING, ABOVE] = np.maximum(table[:VARYING, ABOVE], 0)
    return FittedDensity(
        type=places.kind.name,
        has_cells=places.has_cells,
        weighted=places.weighted,
        n_weights=places.counts.n_weights,
        rows=tuple(tuple(float(f"{number:.9g}") for number in row) for row in table),
    )

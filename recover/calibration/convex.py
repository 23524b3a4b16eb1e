"""The convex problem of a calibration, and cvxpy, which solves it.

It is loaded when it is needed: nothing else needs it, and its solvers are large.
"""

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover.errors import CalibrationError

if TYPE_CHECKING:
    import cvxpy

F64Array = NDArray[np.float64]


def require_solver() -> Any:
    """The package cvxpy.

    Raises
    ------
    CalibrationError
        If it is not installed.
    """
    try:
        import cvxpy
    except ImportError:
        raise CalibrationError(
            "calibrations are fitted by cvxpy, which is not installed; install it with"
            " `pip install 'cvxpy>=1.6,<2'`, or this package with its extra `calibrate`"
        ) from None
    return cvxpy


class _Problem(NamedTuple):
    problem: "cvxpy.Problem"
    unknown: "cvxpy.Variable"
    root: "cvxpy.Parameter"
    scale: "cvxpy.Parameter"


@cache
def _problem(n_inputs: int) -> _Problem:
    """The problem for so many inputs: cvxpy prepares it once."""
    cp = require_solver()
    unknown = cp.Variable(n_inputs, nonneg=True)
    root = cp.Parameter((n_inputs, n_inputs))
    scale = cp.Parameter(n_inputs, nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(root @ unknown)), [scale @ unknown == 1])
    return _Problem(problem, unknown, root, scale)


def simplex_by_solver(root: F64Array, scale: F64Array) -> F64Array:
    """Least ``|root @ v|`` for ``v >= 0``, ``scale @ v = 1``; as weights, ``scale * v``.

    Parameters
    ----------
    root : float64 (n, n)
        A square root of the Gram matrix.
    scale : float64 (n,)
        Positive.

    Returns
    -------
    float64 (n,)
        0 or more, and 1 in all.

    Raises
    ------
    CalibrationError
        If cvxpy is not installed, or finds none.
    """
    cp = require_solver()
    problem = _problem(len(scale))
    problem.root.value, problem.scale.value = root, scale
    try:
        problem.problem.solve(solver=cp.CLARABEL)  # type: ignore[no-untyped-call]
    except cp.error.SolverError as error:
        raise CalibrationError(f"cvxpy finds no weights: {error}") from None
    if problem.problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
        raise CalibrationError(f"cvxpy finds no weights: the problem is {problem.problem.status}")
    weights = np.maximum(np.asarray(problem.unknown.value, np.float64), 0) * scale
    return np.asarray(weights / weights.sum(), np.float64)

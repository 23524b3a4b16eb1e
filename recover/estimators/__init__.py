"""The estimators: evidence to estimate, one file each in `methods`, found by discovery.

A file defines ``estimate(evidence, out, tally, request)``: it fills `out`, float32 (n,), and adds
to `tally`, float64 (2 + K + I + V,), the sums over the weights of

- ``tally[0]``: the variance that the estimate is expected to have,
- ``tally[1]``: one for each weight on which the inputs contradict each other,
- ``tally[2 + k]``: the variance that input k alone is expected to have (scalar inputs first, then
  interval ones).
"""

import pkgutil
from functools import cache
from importlib import import_module
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recover.errors import PlanError
from recover.estimators import methods
from recover.estimators._request import ESTIMATES, MEAN, MODE, Request
from recover.evidence.buffer import Evidence
from recover.quants import F32Array

__all__ = [
    "DEFAULT_METHOD",
    "ESTIMATES",
    "MEAN",
    "MODE",
    "Estimator",
    "Request",
    "estimator",
    "method_names",
]

DEFAULT_METHOD = "posterior"


class Estimator(Protocol):
    """An estimator's module."""

    SEES_CONFLICTS: bool
    """Whether it counts contradictions between the inputs."""
    CALIBRATED: str | None
    """What it takes from a calibration: ``weights``, ``densities`` or nothing."""

    @staticmethod
    def estimate(
        evidence: Evidence, out: F32Array, tally: NDArray[np.float64], request: Request
    ) -> None:
        """Fill `out` (and what the request has room for) and add to `tally`."""


@cache
def method_names() -> tuple[str, ...]:
    """Names of all estimators, without importing them."""
    return tuple(module.name for module in pkgutil.iter_modules(methods.__path__))


@cache
def estimator(name: str) -> Estimator:
    """The estimator of that name; `PlanError` if there is none."""
    if name not in method_names():
        raise PlanError(f"method {name!r} is unknown; known are {', '.join(method_names())}")
    module: Estimator = import_module(f"{methods.__name__}.{name}")  # type: ignore[assignment]
    return module

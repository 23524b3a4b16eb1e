"""The estimators: evidence to estimate, one file each in `methods`, found by discovery.

A file defines ``estimate(evidence, out, tally, request)`` and whatever of
`recover.estimators.base.Estimator` differs from the defaults. Other packages add estimators as
entry points of the group ``recover.estimators``: an entry point names such a module, or any object
with the same attributes.
"""

import pkgutil
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from recover.estimators import methods

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from recover.estimators._request import ESTIMATES, MEAN, MODE, Request, fill_deviation
    from recover.estimators._variances import group_variances, sum_variance
    from recover.estimators.base import Estimator, estimator, method_for
    from recover.estimators.tally import Tally
    from recover.estimators.tile import TileEstimator
    from recover.evidence.buffer import Evidence, take_one

__all__ = [
    "DEFAULT_METHOD",
    "ENTRY_POINTS",
    "ESTIMATES",
    "FIRST_ALONE",
    "MEAN",
    "MODE",
    "Estimator",
    "Evidence",
    "Request",
    "Tally",
    "TileEstimator",
    "entry_points",
    "estimator",
    "fill_deviation",
    "group_variances",
    "method_for",
    "method_names",
    "shipped_methods",
    "sum_variance",
    "take_one",
]

DEFAULT_METHOD = "posterior"
FIRST_ALONE = "best"
"""The method that decodes the first (finest) input, where there is nothing to combine."""
ENTRY_POINTS = "recover.estimators"
"""Group of the entry points by which other packages add estimators."""

# Loaded on first use: the names of the methods are known at once, the compiler takes its time.
_HOME = {
    "ESTIMATES": "recover.estimators._request",
    "MEAN": "recover.estimators._request",
    "MODE": "recover.estimators._request",
    "Request": "recover.estimators._request",
    "fill_deviation": "recover.estimators._request",
    "group_variances": "recover.estimators._variances",
    "sum_variance": "recover.estimators._variances",
    "Evidence": "recover.evidence.buffer",
    "take_one": "recover.evidence.buffer",
    "Estimator": "recover.estimators.base",
    "estimator": "recover.estimators.base",
    "method_for": "recover.estimators.base",
    "Tally": "recover.estimators.tally",
    "TileEstimator": "recover.estimators.tile",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'recover.estimators' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


@cache
def shipped_methods() -> tuple[str, ...]:
    """Names of the estimators that come with this package, without importing them."""
    return tuple(module.name for module in pkgutil.iter_modules(methods.__path__))


def entry_points() -> "dict[str, EntryPoint]":
    """By name, the estimators of other packages, none of them imported.

    Those that have the name of a shipped one are left out. To look for them takes a while, so this
    is called only where a name is unknown or all are listed.
    """
    from importlib import metadata

    found = metadata.entry_points(group=ENTRY_POINTS)
    return {each.name: each for each in found if each.name not in shipped_methods()}


def method_names() -> tuple[str, ...]:
    """Names of all estimators, shipped ones first, without importing them."""
    return *shipped_methods(), *sorted(entry_points())

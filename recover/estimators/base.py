"""What is known of an estimator: everything that other code outputs of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

import recover.estimators as home
from recover._text import printable
from recover.errors import PlanError
from recover.estimators import methods
from recover.estimators._request import Request
from recover.estimators.tally import Tally
from recover.evidence.buffer import Evidence, Source, part_of
from recover.quants import F32Array

WEIGHTS, DENSITIES = "weights", "densities"
"""What an estimator can take from a calibration."""


class Calibration(Protocol):
    """What was fitted on a model whose original is known (see `recover.calibration.weights`)."""

    def weights_for(
        self, types: Sequence[str], role: str | None = None, depth: float | None = None
    ) -> tuple[float, ...]:
        """Weights of inputs with these types."""

    def with_density(self, source: Source) -> Source:
        """A source with its density."""


class Estimate(Protocol):
    """An estimator's function."""

    def __call__(self, evidence: Evidence, out: F32Array, tally: Tally, request: Request) -> None:
        """Fill `out`, float32 (n,), and what the request has room for, and add to `tally`."""


class EstimateEach(Protocol):
    """An estimator's function for several tensors."""

    def __call__(
        self, evidence: Evidence, out: F32Array, tallies: NDArray[np.float64], request: Request
    ) -> None:
        """Do what `Estimate` does to tensors of one size that lie one behind the other.

        A row of `tallies`, float64 (n_tensors, 2 + n_inputs), is the array of a tensor's `Tally`.
        Where there is more than one, tensors have whole superblocks of 256 weights.
        """


class Calibrate(Protocol):
    """How an estimator takes a calibration."""

    def __call__(
        self,
        sources: Sequence[Source],
        calibration: Calibration,
        role: str | None,
        depth: float | None,
    ) -> tuple[Source, ...]:
        """The sources on a tensor, with what the calibration says of them.

        `role` is what the tensor does, `depth` its layer over the number of layers. A
        `CalibrationError` is raised if the calibration does not know their types.
        """


WithNetwork = Callable[[Sequence[Source], Path], tuple[Source, ...] | None]
"""How an estimator takes a network from a file."""


def _never(source: Source) -> bool:
    return False


def _nothing(sources: Sequence[Source]) -> float:
    return 0.0


def _unchanged(
    sources: Sequence[Source],
    calibration: Calibration,
    role: str | None,
    depth: float | None,
) -> tuple[Source, ...]:
    return tuple(sources)


@dataclass(frozen=True)
class Estimator:
    """An estimator; a module has these attributes in capitals, but for its functions.

    Attributes
    ----------
    name : str
        What people call it; not an attribute of the module.
    estimate : callable
        ``estimate(evidence, out, tally, request)``.
    estimate_each : callable
        ``estimate_each(evidence, out, tallies, request)``, of several tensors (see `EstimateEach`).
        Each of the two follows from the other: only one is needed.
    summary : str
        A line for people. Default: empty.
    has_mode : bool
        Whether it can be asked for the mode instead of the mean. Default: False.
    sees_conflicts : bool
        Whether it counts contradictions between the inputs, and all other estimates lie in the
        cells of all inputs. Default: False.
    decides : bool
        Whether weights may be set to the only number of the source's format that their cells hold.
        Default: False.
    takes_first : bool
        Whether the first input is decoded, and no other one has a part. Default: False.
    calibrated : str or None
        What it takes from a calibration: `WEIGHTS`, `DENSITIES` or (the default) nothing.
    calibrate : callable
        How it does so (see `Calibrate`). Default: the sources stay as they are.
    with_network : callable or None
        ``with_network(sources, path)``: the sources of a tensor with a network in a file, None if
        that is of other inputs. Default: None, it takes no network.
    saves : callable
        ``saves(sources)``: the share of the default method's expected square error that it is
        known to save with such sources. Default: 0.
    gains_alone : callable
        ``gains_alone(source)``: whether its estimate from a single input is better than what that
        one is decoded to. Default: it never is.
    serves : callable or None
        ``serves(sources)``: whether it knows more of such sources than the default method, whose
        estimates it gives of others. Where it does it takes far longer, so that there is time to
        measure errors on weights like those at hand (see `recover.estimators.bootstrap`). Default:
        None, it treats all alike.
    """

    name: str
    estimate: Estimate
    estimate_each: EstimateEach
    summary: str = ""
    has_mode: bool = False
    sees_conflicts: bool = False
    decides: bool = False
    takes_first: bool = False
    calibrated: str | None = None
    calibrate: Calibrate = _unchanged
    with_network: WithNetwork | None = None
    saves: Callable[[Sequence[Source]], float] = _nothing
    gains_alone: Callable[[Source], bool] = _never
    serves: Callable[[Sequence[Source]], bool] | None = None


_FUNCTIONS = (
    "estimate",
    "estimate_each",
    "calibrate",
    "gains_alone",
    "with_network",
    "saves",
    "serves",
)
_FACTS = "summary", "has_mode", "sees_conflicts", "decides", "takes_first", "calibrated"


@cache
def estimator(name: str) -> Estimator:
    """The estimator of that name.

    Raises
    ------
    PlanError
        If there is none, or the package that has it cannot be used.
    """
    source = _source(name)
    names = {each: each for each in _FUNCTIONS} | {each: each.upper() for each in _FACTS}
    known = {own: getattr(source, its) for own, its in names.items() if hasattr(source, its)}
    if callable(known.get("estimate_each")):
        known.setdefault("estimate", _of_one(known["estimate_each"]))
    elif callable(known.get("estimate")):
        known["estimate_each"] = _one_by_one(known["estimate"])
    else:
        raise PlanError(f"method {name!r} has no function estimate")
    return Estimator(name=name, **known)


def _of_one(estimate_each: EstimateEach) -> Estimate:
    """The function for one tensor."""

    def estimate(evidence: Evidence, out: F32Array, tally: Tally, request: Request) -> None:
        estimate_each(evidence, out, tally.array[None], request)

    return estimate


def _one_by_one(estimate: Estimate) -> EstimateEach:
    """The function for several tensors."""

    def estimate_each(
        evidence: Evidence, out: F32Array, tallies: NDArray[np.float64], request: Request
    ) -> None:
        n = out.size // len(tallies)
        for i, sums in enumerate(tallies):
            part = slice(i * n, (i + 1) * n)
            own = evidence if len(tallies) == 1 else part_of(evidence, i * n, (i + 1) * n)
            stored = request.stored.part(part.start, part.stop)
            asked_for = request._replace(deviation=request.deviation[part], stored=stored)
            estimate(own, out[part], Tally(sums), asked_for)

    return estimate_each


def _source(name: str) -> object:
    """The module or object that is the estimator of that name."""
    if name in home.shipped_methods():
        return import_module(f"{methods.__name__}.{name}")
    entry_point = home.entry_points().get(name)
    if entry_point is None:
        known = ", ".join(home.method_names())
        raise PlanError(f"method {name!r} is unknown; known are {known}")
    try:
        found: object = entry_point.load()
    except (ImportError, AttributeError) as error:
        raise PlanError(
            f"method {name!r} cannot be loaded from {printable(entry_point.value)}: {error}"
        ) from error
    return found


def method_for(sources: Sequence[Source], method: str) -> str:
    """Name of the estimator that a tensor needs, where `method` is asked for.

    One input alone is decoded, unless its codes say more than its decoded values do.
    """
    if len(sources) > 1 or estimator(method).gains_alone(sources[0]):
        return method
    return home.FIRST_ALONE


def having(what: Callable[[Estimator], object]) -> str:
    """Shipped estimators of which something is true, for people: ``linear and posterior``."""
    return " and ".join(name for name in home.shipped_methods() if what(estimator(name)))

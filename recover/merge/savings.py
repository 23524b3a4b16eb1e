"""What a method is known to save beyond the default one, and where it saves nothing."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from recover.estimators import DEFAULT_METHOD, estimator, shipped_methods
from recover.evidence.buffer import Source


class Saving(NamedTuple):
    """What a method is expected to save.

    Attributes
    ----------
    method : str
        Its name.
    covered : float
        Share of the estimated weights of which it is known to save something.
    saved : float
        Share of the expected square error of all estimated weights.
    """

    method: str
    covered: float
    saved: float


def savings(
    estimated: Iterable[tuple[Sequence[Source], int, float]], method: str = DEFAULT_METHOD
) -> tuple[Saving, ...]:
    """What other methods save of a merge by the default one, those that cover most weights.

    Parameters
    ----------
    estimated : iterable of (sequence of Source, int, float)
        Of each tensor that is estimated: its sources, the number of weights, and the expected mean
        square error.
    method : str
        Of the merge; there is nothing to say of others than the default.
    """
    tensors = [(sources, n, n * error) for sources, n, error in estimated if sources]
    n_weights, errors = sum(n for _, n, _ in tensors), sum(each for _, _, each in tensors)
    if method != DEFAULT_METHOD or errors <= 0:
        return ()
    found = []
    for name in shipped_methods():
        saves = [estimator(name).saves(sources) for sources, _, _ in tensors]
        pairs = list(zip(tensors, saves, strict=True))
        covered = sum(n for (_, n, _), share in pairs if share > 0) / n_weights
        saved = sum(error * share for (_, _, error), share in pairs) / errors
        if covered > 0.5:
            found.append(Saving(name, covered, saved))
    return tuple(found)


def sentence(saving: Saving) -> str:
    """What is said of it."""
    return (
        f"--method {saving.method} is expected to take another {saving.saved:.1%} off that error"
        f" (it knows the types of {saving.covered:.0%} of the weights), and takes about a hundred"
        " times as long"
    )


def share_not_served(estimated: Iterable[tuple[Sequence[Source], int]], method: str) -> float:
    """Share of the estimated weights of which a method knows no more than the default one.

    Parameters
    ----------
    estimated : iterable of (sequence of Source, int)
        Of each tensor that is estimated: its sources, and the number of weights.
    method : str
        Of the merge; 0 for one that treats all sources alike.
    """
    serves, tensors = estimator(method).serves, [each for each in estimated if each[0]]
    if serves is None or not tensors:
        return 0.0
    return sum(n for each, n in tensors if not serves(each)) / sum(n for _, n in tensors)

"""All estimators that ship keep what every estimator must keep."""

from collections.abc import Callable

import numpy as np
import pytest

from recover.estimators import Tally, shipped_methods
from tests.estimators.conformance import CHECKS


@pytest.mark.parametrize("method", shipped_methods())
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_estimator(method: str, check: Callable[[str], None]) -> None:
    check(method)


def test_tallies_add_up_in_place() -> None:
    sums = np.zeros((2, 5))
    tally = Tally(sums[1, 1:])
    other = Tally(np.array([2.0, 1.0, 3.0, 4.0]))
    for _ in range(2):
        tally += other
    tally.variance *= 2
    tally.n_conflicts += 1
    tally.alone[1] = 9
    assert tally.n_inputs == other.n_inputs == 2
    assert sums.tolist() == [[0] * 5, [0, 8, 3, 6, 9]]
    assert Tally.zeros(3).array.tolist() == [0] * Tally.size_for(3)

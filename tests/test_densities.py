"""The shipped densities against new draws; and that they do not depend on chance."""

import numpy as np
import pytest
from numpy.typing import NDArray

from recover.densities import density, end_codes, simulate
from recover.quants import ScalarType, all_types, type_by_name

SCALAR = [kind for kind in all_types() if isinstance(kind, ScalarType)]


def distribution(row: NDArray[np.float32], reach: tuple[float, float]) -> NDArray[np.float64]:
    """The distribution function that a row describes, atom included, on 400 places."""
    u = np.linspace(*reach, 400)
    values = np.exp(u[:, None] ** np.arange(1, 5) @ row[:4].astype(np.float64))
    mass = np.cumsum(values) * (u[1] - u[0]) + np.where(u >= 0, row[4], 0)
    total: NDArray[np.float64] = mass / mass[-1]
    return total


@pytest.mark.parametrize("kind", SCALAR, ids=lambda kind: kind.name)
def test_shipped_densities_are_found_again(kind: ScalarType) -> None:
    """Kolmogorov's distance between the distributions, for each class of code."""
    again, shipped = simulate(kind, n_weights=1 << 21, seed=123), density(kind)
    assert shipped.shape == (3, 7)
    for new, old in zip(again, shipped, strict=True):
        reach = max(new[5], old[5]), min(new[6], old[6])
        assert reach[1] - reach[0] > 0.45
        distance = np.abs(distribution(new, reach) - distribution(old, reach)).max()
        assert distance < 0.02


def test_draws_depend_on_the_seed_alone() -> None:
    kind = type_by_name("Q4_K")
    assert isinstance(kind, ScalarType)
    one, two, other = (simulate(kind, n_weights=1 << 18, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_ends() -> None:
    kinds = {kind.name: kind for kind in SCALAR}
    assert end_codes(kinds["Q4_K"]) == (0, 15)
    assert end_codes(kinds["Q8_0"]) == (1, 255)
    assert end_codes(kinds["Q6_K"]) == (0, 63)


def test_without_cells_the_density_is_normal() -> None:
    kind = type_by_name("Q4_0")
    assert isinstance(kind, ScalarType)
    rows = density(kind, has_cells=False)
    assert np.all(rows == rows[0])
    assert rows[0, 1] == pytest.approx(-0.5 / kind.noise)
    assert not rows[0, [0, 2, 3, 4]].any()

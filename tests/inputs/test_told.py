"""Weights that tell: of those of which two inputs say the same, the first one."""

import numpy as np
import pytest
from numpy.typing import NDArray

from recover.inputs.told import _keep_first, _may_be_off
from recover.quants import F32Array


def first_of_equal(one: F32Array, other: F32Array, tells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """As `_keep_first`, by NumPy's search for unique rows."""
    places = np.flatnonzero(tells)
    both = np.stack([one, other], axis=1)[places] + np.float32(0)  # zeros of either sign
    kept = np.zeros_like(tells)
    kept[places[np.unique(both, axis=0, return_index=True)[1]]] = True
    return kept


@pytest.mark.parametrize("n_levels", [1, 3, 40, 1000])
@pytest.mark.parametrize("n", [0, 1, 16, 250, 4096])
def test_the_first_of_equal_weights_tells(n: int, n_levels: int) -> None:
    generator = np.random.default_rng(n + n_levels)
    levels = generator.integers(-n_levels, n_levels + 1, (2, n)).astype(np.float32)
    one, other = levels[0] * np.float32(0.3), levels[1] * np.float32(1.7)
    other[::2] *= np.float32(-1)  # zeros, too
    for tells in (np.ones(n, np.bool_), generator.random(n) < 0.5, _may_be_off(one)):
        expected = first_of_equal(one, other, tells)
        _keep_first(one, other, tells)
        assert np.array_equal(tells, expected)

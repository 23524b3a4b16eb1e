"""Weights that are exactly a level of several inputs."""

import numpy as np

from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.cells import intersect_cells
from tests.support.joint_inputs import encode, sources_of


def test_modes_are_those_of_the_atom_with_the_most_mass(rng: np.random.Generator) -> None:
    """Whatever the order of the inputs. Where the last one counted, 205 modes differed.

    The four that do are where rounding decides between two places.
    """
    x = (0.05 * rng.standard_normal((256, 256))).astype(np.float32)
    first, second, lower, upper = np.empty((4, x.size), np.float32)
    for mode, names in ((first, "Q5_1+Q5_0"), (second, "Q5_0+Q5_1")):
        sources = sources_of(names)
        tile = UncorrectedTileEstimator(sources, "posterior", "map")
        tile.estimate(encode(sources, x), 0, x.size, mode)
        intersect_cells(tile.evidence, lower, upper)
    differ = np.abs(first - second) > 0.2 * (upper - lower) + 1e-6
    assert np.count_nonzero(differ) <= 8

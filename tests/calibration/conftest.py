"""What several tests look at: the small model's sums, and the weights that are fitted to them."""

from pathlib import Path

import pytest

from recover import calibrate
from recover.calibration.moments import Survey, survey
from recover.calibration.weights import Calibration
from tests.support.models import TINY


@pytest.fixture(scope="session")
def surveyed(tiny: list[Path]) -> Survey:
    return survey(tiny, TINY)


@pytest.fixture(scope="session")
def calibration(tiny: list[Path]) -> Calibration:
    return calibrate(tiny, TINY, n_threads=3)

"""The calibration of the small model, which several tests look at."""

from pathlib import Path

import pytest

from recover import calibrate
from recover.calibration.weights import Calibration
from tests.support.models import TINY


@pytest.fixture(scope="module")
def calibration(tiny: list[Path]) -> Calibration:
    return calibrate(tiny, TINY)

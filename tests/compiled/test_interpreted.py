"""Kernels as plain Python give what they give when they are compiled."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.models import ROOT
from tests.support.small_cases import CASES

pytestmark = pytest.mark.long

QUICK = {"encoders", "grids", "kernels"}
"""The others take longer, some of them minutes."""
NEARLY = " sums", " lost", "gram", "scalings", " kl", " nll"
"""Arrays of the case `kernels` that are sums, logarithms or exponentials."""


@pytest.mark.parametrize(
    "case",
    [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in CASES],
)
def test_case(case: str, tmp_path: Path) -> None:
    """Codes are equal; numbers that are sums of many may differ in their last digits."""
    found = []
    for options in ((), ("--interpreted",)):
        out = tmp_path / f"{len(options)}.npz"
        command = [sys.executable, "-m", "tests.support.small_cases", *options, str(out), case]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        with np.load(out) as arrays:
            found.append(dict(arrays))
    compiled, interpreted = found
    assert set(compiled) == set(interpreted)
    assert len(compiled) > 1
    for name, array in compiled.items():
        other = interpreted[name]
        is_exact = array.dtype == np.uint8 and "bounds" not in name
        if is_exact or (case == "kernels" and not any(each in name for each in NEARLY)):
            np.testing.assert_array_equal(array, other, err_msg=name)
        elif array.dtype != np.uint8:
            np.testing.assert_allclose(array, other, rtol=1e-5, atol=1e-8, err_msg=name)

"""The examples, run as their readers run them, on the small model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.models import ROOT, SHARED, TINY


def run(name: str, *models: str) -> list[list[str]]:
    """The words of each line that an example prints."""
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *models]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split() for line in done.stdout.splitlines()]


def figures(lines: list[list[str]], first: str) -> list[float]:
    """The figures in the line that begins with that word."""
    (found,) = (line for line in lines if line and line[0] == first)
    return [float(word) for word in found if word.replace(".", "", 1).isdigit()]


def test_miqu_situation() -> None:
    lines = run("miqu_situation", str(TINY))
    error = {name: figures(lines, name)[0] for name in ("best", "linear", "midpoint", "posterior")}
    assert error["best"] == 1
    # The same as with llama.cpp's own files.
    assert error["linear"] == pytest.approx(0.8199, abs=0.001)
    assert error["midpoint"] == pytest.approx(0.7857, abs=0.001)
    assert error["posterior"] < 0.78


@pytest.mark.slow
def test_many_uploads() -> None:
    lines = run("many_uploads", str(TINY))
    linear, midpoint, posterior = figures(lines, "6")[1:]
    assert 0.2 < posterior < midpoint + 0.02 < linear < 0.36
    two = figures(lines, "2")[1:]
    assert max(two) < 0.7


def test_calibrate_and_apply() -> None:
    lines = run("calibrate_and_apply", str(TINY), str(TINY))
    linear = [line for line in lines if line and line[0].startswith("linear")]
    assert len(linear) == 6
    for own, other in (linear[1:3], linear[4:6]):
        assert float(other[-2]) <= 1.01 * float(own[-2])
        assert 0.8 < float(own[-2]) < 0.83


@pytest.mark.slow
def test_q8_and_others() -> None:
    lines = run("q8_and_others", str(TINY))
    rows = [[float(word) for word in line[-3:]] for line in lines if line[0] == "Q8_0"]
    assert len(rows) == 4
    for linear, midpoint, posterior in rows:
        assert posterior < midpoint < linear < 0.91
    assert rows[-1][2] < rows[0][2]


@pytest.mark.inference
@pytest.mark.parametrize(
    "shares", ["0 0.2", pytest.param("0 0.1 0.2 0.3 0.4", marks=pytest.mark.slow)]
)
def test_linear_weights(shares: str, tmp_path: Path) -> None:
    picture = tmp_path / "sweep.png"
    few = ("--chunks", "1", "--n-ctx", "64", "--text", str(SHARED / "hamlet.txt"))
    lines = run(
        "linear_weights", str(TINY), *few, "--plot", str(picture), "--grid", *shares.split()
    )
    names = "joint", "posterior", "linear", "least", "equal"
    error = {name: figures(lines, name)[0] for name in names}
    grid = [float(line[3]) for line in lines if line[0][0] == "0"]
    assert len(grid) == 3 * len(shares.split()) - 1
    assert error["joint"] < error["posterior"] < error["linear"] < min(grid) + 0.002
    assert error["linear"] == pytest.approx(error["least"], abs=0.005)
    assert error["equal"] > 5
    assert picture.read_bytes().startswith(b"\x89PNG")

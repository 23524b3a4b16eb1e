"""An estimator of another package: found by its entry point, used without an edit elsewhere."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recover.estimators as home
from recover import PlanError
from recover.cli import main
from recover.estimators import Request, Tally, estimator, method_for, method_names
from recover.evidence.buffer import Evidence, Source
from recover.quants import F32Array, type_by_name
from tests.estimators.conformance import CHECKS
from tests.support import packages
from tests.support.models import TINY


class Toy:
    """The plain mean of inputs with scales, and nothing of the others."""

    SUMMARY = "the plain mean"

    @staticmethod
    def estimate(evidence: Evidence, out: F32Array, tally: Tally, request: Request) -> None:
        scale, offset = (each.repeat(16, axis=1) for each in (evidence.scale, evidence.offset))
        codes = evidence.codes.astype(np.int64)
        values = np.take_along_axis(evidence.levels, codes, axis=1) * scale + offset
        out[:] = values.mean(axis=0)
        squares = evidence.noise[:, None] * np.square(scale, dtype=np.float64)
        tally.alone[: len(squares)] += squares.sum(axis=1)
        tally.alone[len(squares) :] += evidence.variance.sum(axis=1) * 16
        variance = squares.sum(axis=0) / len(squares) ** 2
        tally.variance += variance.sum()
        if request.deviation.size:
            request.deviation[:] = np.sqrt(variance)


toy = Toy()


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Packages with estimators; which groups were asked for."""
    own = f"{__name__}:toy"
    broken = {"gone": "no_such_package:estimator", "empty": f"{__name__}:TINY"}
    with packages.estimators(monkeypatch, toy=own, linear=own, **broken) as asked:
        yield asked


def test_names(installed: list[str]) -> None:
    """Other packages are looked at only where it matters, and cannot replace what ships."""
    assert estimator("linear").summary != Toy.SUMMARY
    assert home.shipped_methods() == ("best", "joint", "linear", "midpoint", "posterior")
    assert installed == []
    assert method_names() == (*home.shipped_methods(), "empty", "gone", "toy")
    assert installed == ["recover.estimators"]
    with pytest.raises(PlanError, match=r"'median' is unknown; known are best, .* toy$"):
        estimator("median")
    with pytest.raises(PlanError, match=r"'gone' cannot be loaded from no_such_package:estimator"):
        estimator("gone")
    with pytest.raises(PlanError, match=r"'empty' has no function estimate"):
        estimator("empty")


def test_defaults() -> None:
    """What an estimator does not say of itself."""
    known, inputs = estimator("toy"), [Source(type_by_name("Q2_K"))]
    assert known.summary == "the plain mean"
    facts = known.has_mode, known.sees_conflicts, known.decides, known.takes_first
    assert facts == (False,) * 4
    assert known.calibrated is None
    assert not known.gains_alone(inputs[0])
    assert known.serves is None
    assert method_for(inputs, "toy") == home.FIRST_ALONE
    assert method_for(inputs * 2, "toy") == "toy"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: Callable[[str], None]) -> None:
    check("toy")


def test_all_commands(tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    arguments = [str(tiny[0]), str(tiny[1]), "-o", str(out)]

    def run(*command: str) -> dict[str, Any]:
        assert main([*command, "--json"]) == 0
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    merged = run("merge", *arguments, "--method", "toy")
    assert merged["method"] == "toy"
    assert 0 < merged["expected_mse_ratio"] < 1.3
    assert run("inspect", str(out))
    evaluated = run("evaluate", str(out), str(tiny[0]), "--truth", str(TINY))
    assert len(evaluated["models"]) == 2
    assert main(["merge", *arguments, "--method", "toy", "--estimate", "map"]) == 2
    assert "method toy has no map estimate" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["merge", *arguments, "--method", "median"])
    assert "there is no choice 'median'; take one of" in (error := capsys.readouterr().err)
    assert "toy" in error


def test_unknown_method() -> None:
    with pytest.raises(PlanError, match="method 'median' is unknown; known are best, joint"):
        estimator("median")

"""cvxpy is an extra: everything else works without it, and calibrations say what is missing."""

import sys
from pathlib import Path

import pytest

from recover.cli import main
from tests.support.models import DATA, TINY

FILES = [str(DATA / f"tiny-llama-3m-{name}.gguf") for name in ("Q5_K_M", "Q4_K_M")]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("cvxpy", "scipy")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("cvxpy", "scipy"):
        monkeypatch.setitem(sys.modules, name, None)


def test_calibrate_names_what_is_missing(
    without: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "weights.json")
    arguments = ["calibrate", *FILES, "--truth", str(TINY), "-o", out]
    assert main(arguments) == 1
    assert "extra `calibrate`" in capsys.readouterr().err
    assert main([*arguments, "--unconstrained"]) == 0


def test_others_need_neither(without: None, tmp_path: Path) -> None:
    out = str(tmp_path / "out.gguf")
    assert main(["merge", *FILES, "-o", out, "-q"]) == 0
    assert main(["bounds", *FILES, "--summary", "-q"]) == 0
    assert main(["evaluate", out, "--truth", str(TINY), "-q"]) == 0
    assert main(["inspect", *FILES, "-q"]) == 0

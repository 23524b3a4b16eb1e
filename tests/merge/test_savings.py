"""What is said of methods that would save more."""

import json
from pathlib import Path

import pytest

from recover.cli import main
from recover.merge.savings import savings
from tests.support.joint_inputs import sources_of
from tests.support.models import DATA

INPUTS = [str(DATA / f"tiny-llama-3m-{name}.gguf") for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]
SENTENCE = "--method joint is expected to take another"


def test_errors_and_weights_are_weighed() -> None:
    known, unknown = sources_of("Q5_K+Q4_K"), sources_of("Q5_1+Q5_0")
    (found,) = savings([(known, 300, 2.0), (unknown, 100, 2.0), ((), 50, 1.0)])
    assert found.method == "joint"
    assert found.covered == 0.75
    assert found.saved == pytest.approx(0.75 * 0.0237, abs=1e-4)
    assert savings([(known, 100, 2.0), (unknown, 100, 2.0)]) == ()
    assert savings([(known, 100, 2.0)], "linear") == ()
    assert savings([]) == ()


def test_inspect_and_merge_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["-o", str(tmp_path / "merged.gguf")]
    assert main(["inspect", *INPUTS]) == 0
    assert SENTENCE in capsys.readouterr().out
    assert main(["merge", *INPUTS, *output]) == 0
    assert SENTENCE in capsys.readouterr().out
    assert main(["merge", *INPUTS, *output, "--method", "linear"]) == 0
    assert SENTENCE not in capsys.readouterr().out
    assert main(["inspect", *INPUTS, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["together"]["other_methods"]
    assert told["method"] == "joint"
    assert 0.01 < told["saved"] < 0.05
    assert told["covered"] > 0.9

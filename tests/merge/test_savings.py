"""What is said of methods that would save more."""

import json
from pathlib import Path

import pytest

from recover.cli import main
from recover.merge.savings import savings, share_not_served
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


def test_how_much_a_method_leaves_to_the_default_one() -> None:
    known, unknown = sources_of("Q5_K+Q4_K"), sources_of("Q5_1+Q5_0")
    tensors = [(known, 300), (unknown, 100), ([], 50)]
    assert share_not_served(tensors, "joint") == 0.25
    assert share_not_served(tensors[:1], "joint") == 0
    assert share_not_served([], "joint") == 0
    assert share_not_served(tensors, "posterior") == 0


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


@pytest.mark.parametrize(("method", "expected"), [("joint", 1), ("posterior", 0)])
def test_a_merge_says_what_joint_does_not_know(
    method: str, expected: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tensors of which both files have the same bytes."""
    output = ["-o", str(tmp_path / "merged.gguf"), "--method", method]
    assert main(["merge", *INPUTS[:2], *output]) == 0
    told = capsys.readouterr().out
    assert (
        told.count("joint has nothing to add for the inputs of 17.0% of the estimated") == expected
    )

"""The examples of docs/contributing.md are what they say: whole files, and enough."""

import json
from pathlib import Path

import pytest

from recover.cli import main
from tests.estimators.conformance import CHECKS
from tests.support import packages
from tests.support.models import TINY

PAGE = Path(__file__).parents[2] / "docs" / "contributing.md"


def examples(function: str) -> list[str]:
    """Blocks of Python that define a function and have a docstring: whole modules."""
    blocks = [part.split("```")[0] for part in PAGE.read_text().split("```python\n")[1:]]
    return [each for each in blocks if each.startswith('"""') and f"def {function}(" in each]


@pytest.mark.parametrize("source", examples("estimate"), ids=["of_weights", "of_superblocks"])
def test_estimators(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "example_method.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    paths = [str(tmp_path / f"{name}.gguf") for name in ("Q4_K", "Q3_K", "Q8_0")]
    for path in paths:
        assert main(["quantize", str(TINY), Path(path).stem, "-o", path, "-q"]) == 0
    with packages.estimators(monkeypatch, example="example_method"):
        for check in CHECKS:
            check("example")
        output = str(tmp_path / "merged.gguf")
        capsys.readouterr()
        assert main(["merge", *paths, "-o", output, "--method", "example", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "example"
    assert main(["evaluate", output, *paths, "--truth", str(TINY), "--json"]) == 0
    merged, *others = json.loads(capsys.readouterr().out)["models"]
    assert merged["total"]["mse"] < max(each["total"]["mse"] for each in others)

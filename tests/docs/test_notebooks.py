"""The notebooks in examples/, cell by cell."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def run(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """The names that the cells leave, and what each cell shows."""
    names: dict[str, Any] = {}
    shown = []
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), path.name, "exec"), names)
        if last is not None:
            assert isinstance(last, ast.Expr)
            shown.append(eval(compile(ast.Expression(last.value), path.name, "eval"), names))
    return names, shown


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["first_merge", "linear_weights"]


def test_first_merge(capsys: pytest.CaptureFixture[str]) -> None:
    names, shown = run(NOTEBOOKS[0])
    assert all(
        each._repr_html_().startswith("<b>") for each in shown if hasattr(each, "_repr_html_")
    )
    figures = names["figures"]
    assert figures["outside of the bounds"] == 0
    assert figures["error, expected"] == pytest.approx(figures["error, measured"], rel=0.05)
    assert figures["error, measured"] < 0.9 * figures["of the best file"]
    assert 0.9 < figures["within two deviations"] < 1
    assert names["ratios"]["f16.gguf"] == pytest.approx(0.7724, abs=1e-3)
    assert "merging: 100%" in capsys.readouterr().err


def test_linear_weights() -> None:
    names, _ = run(NOTEBOOKS[1])
    methods, sweep = names["methods"], names["sweep"]
    lowest = min(min(values) for values in sweep.values())
    assert methods["posterior"] < methods["linear"] < lowest + 0.002
    assert methods["linear"] == pytest.approx(methods["least squares"], abs=0.005)

"""The package from Python: names, calls and what a notebook shows."""

import inspect
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recover
from recover.reblock.integers import Request
from tests.support.llama_folders import folder
from tests.support.models import DATA

FILES = [DATA / f"tiny-llama-3m-{name}.gguf" for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_name_is_there() -> None:
    for name in recover.__all__:
        assert getattr(recover, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        recover.nothing  # noqa: B018


def test_import_loads_nothing() -> None:
    heavy = "{'numpy', 'numba', 'scipy', 'cvxpy', 'rich', 'gguf', 'tqdm', 'typing'}"
    assert run(f"import sys, recover; print(sorted({heavy} & set(sys.modules)))") == "[]\n"


@pytest.mark.parametrize(
    "first", ["recover.merge", "recover.merge.plan, recover.bounds.plan", "re"]
)
def test_packages_can_be_called(first: str) -> None:
    """Whatever was imported before."""
    script = f"import recover, {first}\nprint(callable(recover.merge), callable(recover.bounds))"
    assert run(script) == "True True\n"


def test_signatures() -> None:
    assert list(inspect.signature(recover.merge).parameters)[:2] == ["paths", "out"]
    assert list(inspect.signature(recover.bounds).parameters)[:2] == ["paths", "tensor"]


def test_merge_in_one_call(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    result = recover.merge(
        FILES, tmp_path / "a.gguf", method="linear", progress=lambda *each: told.append(each)
    )
    plan = recover.plan_merge(FILES, tmp_path / "b.gguf", method="linear")
    recover.execute_merge(plan)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert result.expected_mse_ratio == pytest.approx(0.82, abs=0.01)
    assert told[-1][0] <= told[-1][1] == result.n_weights


def test_one_path_need_not_be_in_a_list(tmp_path: Path) -> None:
    result = recover.merge(FILES[2], tmp_path / "a.gguf")
    assert len(result.plan.models) == 1


def test_options_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="outype"):
        recover.merge(FILES, tmp_path / "a.gguf", outype="f32")


def test_a_plan_without_output_is_not_carried_out() -> None:
    plan = recover.plan_merge(FILES, None)
    with pytest.raises(recover.UsageError, match="without an output"):
        recover.execute_merge(plan)


def test_bars(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with recover.progress_bar("merging") as progress:
        recover.merge(FILES, tmp_path / "a.gguf", progress=progress)
    shown = capsys.readouterr().err
    assert "merging: 100%" in shown
    assert "weights/s" in shown


def check_short(shown: Sequence[Any]) -> None:
    for each in shown:
        text, html = repr(each), each._repr_html_()
        assert text.startswith(f"<{type(each).__name__}: ")
        assert len(text) < 500
        assert html.count("<table>") == html.count("</table>") > 0
        assert len(html) < 10_000


def test_results_of_all_commands_are_short(tmp_path: Path) -> None:
    truth, merged = DATA / "tiny-llama-3m-bf16.gguf", tmp_path / "merged.gguf"
    recover.merge(FILES, merged, method="linear")
    plan = recover.plan_quantize(merged, tmp_path / "q8.gguf", "Q8_0")
    shown: list[Any] = [
        plan,
        recover.execute_quantize(plan),
        recover.inspect_files(FILES),
        *recover.evaluate_models([merged], truth),
        recover.verify_model(truth, FILES),
        recover.calibrate(FILES, truth),
    ]
    check_short(shown)
    assert "is_consistent=True" in repr(shown[-2])
    tensor = recover.open_model(FILES[0]).tensors["blk.0.attn_q.weight"]
    assert repr(tensor.type) == "<ScalarType: Q5_K>"
    assert len(repr(tensor)) < 1500


def test_what_a_re_blocking_shows_is_short(tmp_path: Path) -> None:
    folder(tmp_path / "model", "llama", np.random.default_rng(1))
    source = recover.open_original(tmp_path / "model", Request(), arch="llama")
    plan = recover.plan_reblock(source, tmp_path / "exact.gguf")
    check_short([plan, recover.execute_reblock(plan)])


def test_what_is_shown_is_short(tmp_path: Path) -> None:
    plan = recover.plan_merge(FILES, tmp_path / "a.gguf")
    bounds_plan = recover.plan_bounds(FILES)
    shown: list[Any] = [
        recover.open_model(FILES[0]),
        plan,
        plan.tensors[0],
        result := recover.execute_merge(plan),
        result.tensors[0],
        bounds_plan,
        bounds_plan.tensors[0],
        recover.execute_bounds(bounds_plan),
        recover.estimate(FILES, "blk.0.attn_q.weight"),
        recover.bounds(FILES, "blk.0.attn_q.weight"),
    ]
    check_short(shown)
    assert "weights=2,885,376" in repr(plan)
    assert "and " in plan._repr_html_()  # more rows than are shown


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    plan = recover.plan_merge(FILES, tmp_path / "<b>\x1b[31m.gguf")
    assert "\x1b" not in repr(plan)
    assert "&lt;b&gt;" in plan._repr_html_()

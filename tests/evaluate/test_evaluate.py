"""Error statistics against numpy on whole arrays, decoded by gguf-py."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from recover import EvaluationError, evaluate_models
from recover.cli import main
from recover.evaluate.errors import ErrorStatistics
from tests.support.gguf_files import read_weights, stored, write_gguf, write_out
from tests.support.models import TINY


def write(path: Path, tensors: dict[str, NDArray[Any]]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    write_out(writer)
    return path


def decoded(path: Path) -> dict[str, NDArray[np.float32]]:
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(-1) for t in tensors}


def expected_statistics(model: NDArray[np.float32], truth: NDArray[np.float32]) -> dict[str, float]:
    error = np.abs(model - truth)
    square = np.mean(error.astype(np.float64) ** 2)
    return {
        "n_weights": error.size,
        "mse": square,
        "rmse": square**0.5,
        "max_abs_error": error.max(),
        "p95_abs_error": np.quantile(error.astype(np.float64), 0.95),
        "median_abs_error": np.quantile(error.astype(np.float64), 0.5),
        "sqnr_db": 10 * np.log10(np.mean(truth.astype(np.float64) ** 2) / square),
        "exact_fraction": np.mean(error == 0),
    }


def assert_equal(ours: ErrorStatistics, expected: dict[str, float]) -> None:
    for name, value in expected.items():
        assert getattr(ours, name) == pytest.approx(value, rel=1e-9), name


def test_a_quantized_model(tiny: list[Path]) -> None:
    (result,) = evaluate_models(tiny[:1], TINY)
    truth, model = decoded(TINY), decoded(tiny[0])
    names = [t.name for t in gguf.GGUFReader(tiny[0]).tensors if t.tensor_type.name != "F32"]
    assert [each.name for each in result.tensors] == names
    assert 20 < len(names) < len(model)
    for each in result.tensors:
        assert_equal(each.errors, expected_statistics(model[each.name], truth[each.name]))
    whole = [np.concatenate([tensors[name] for name in names]) for tensors in (model, truth)]
    assert_equal(result.total, expected_statistics(*whole))


@pytest.mark.parametrize("by", ["type", "role"])
def test_groups(by: Any, tiny: list[Path]) -> None:
    (result,) = evaluate_models(tiny[:1], TINY, by=by)
    truth, model = decoded(TINY), decoded(tiny[0])
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tiny[0]).tensors}
    members: dict[str, list[str]] = {}
    for each in result.tensors:
        role = each.name.split(".")[-2]
        members.setdefault(role if by == "role" else kinds[each.name], []).append(each.name)
    assert members.keys() == result.groups.keys()
    for key, names in members.items():
        whole = [np.concatenate([tensors[name] for name in names]) for tensors in (model, truth)]
        assert_equal(result.groups[key], expected_statistics(*whole))


@given(
    arrays(
        np.float32,
        st.integers(1, 300).map(lambda n: (2, 2 * n)),
        elements=st.floats(-(2.0**40), 2.0**40, width=32) | st.sampled_from([0.0, 1.0, 1.5]),
    )
)
def test_quantiles_are_exact(tmp_path_factory: Any, values: NDArray[np.float32]) -> None:
    folder = tmp_path_factory.mktemp("quantiles")
    x, y = (values[i].reshape(2, -1) for i in range(2))
    model, truth = write(folder / "m.gguf", {"w": x}), write(folder / "t.gguf", {"w": y})
    (result,) = evaluate_models([model], truth)
    error = np.abs(values[0] - values[1]).astype(np.float64)
    assert result.total.median_abs_error == pytest.approx(np.quantile(error, 0.5), rel=1e-12)
    assert result.total.p95_abs_error == pytest.approx(np.quantile(error, 0.95), rel=1e-12)
    assert result.total.max_abs_error == error.max()
    assert result.total.exact_fraction == np.mean(error == 0)


def test_threads_do_not_change_figures(tiny: list[Path]) -> None:
    results = [evaluate_models(tiny, TINY, n_threads=n) for n in (1, 3)]
    assert results[0] == results[1]


def test_the_truth_against_itself() -> None:
    (result,) = evaluate_models([TINY], TINY)
    assert result.total.mse == 0
    assert result.total.exact_fraction == 1
    assert result.total.sqnr_db == np.inf


def test_json(tiny: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *map(str, tiny[:2]), "--truth", str(TINY), "--json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert set(document) == {"truth", "models"}
    assert document["truth"] == str(TINY)
    errors = {"n_weights", "mse", "rmse", "max_abs_error", "p95_abs_error", "median_abs_error"}
    errors |= {"sqnr_db", "exact_fraction"}
    for model, path in zip(document["models"], tiny, strict=False):
        assert set(model) == {"path", "total", "tensors", "divergence"}
        assert model["path"] == str(path)
        assert model["divergence"] is None
        assert set(model["total"]) == errors
        assert all(set(tensor) == errors | {"name", "type"} for tensor in model["tensors"])
    (expected,) = evaluate_models(tiny[:1], TINY)
    assert document["models"][0] == expected.to_json()


@pytest.mark.parametrize("by", ["tensor", "type", "role", None])
def test_tables(by: str | None, tiny: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    options = [] if by is None else ["--by", by]
    assert main(["evaluate", *map(str, tiny), "--truth", str(TINY), *options]) == 0
    printed = capsys.readouterr().out
    (first, *_) = evaluate_models(tiny, TINY)
    assert f"{first.total.rmse:.4g}" in printed
    word = {"tensor": "blk.0.attn_q.weight", "type": "Q6_K", "role": "ffn_down", None: "Q4_K_M"}
    assert word[by] in printed


def test_warnings(tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a model lacks tensors that others have, and where the truth is itself quantized."""
    part = tmp_path / "part.gguf"
    assert main(["merge", str(tiny[0]), "-o", str(part), "--tensors", r"^blk\.", "-q"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tiny[0]), str(part), "--truth", str(TINY), "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == (
        f"recover: warning: {part} has no tensor 'output.weight', 'token_embd.weight': its figures"
        " are of fewer weights than those of the others\n"
    )
    json.loads(printed.out)
    assert main(["evaluate", str(tiny[2]), "--truth", str(tiny[0])]) == 0
    said = f"warning: {tiny[0]} is no original: it is itself quantized on 'output.weight',"
    assert said in capsys.readouterr().err


def test_what_is_no_truth(
    tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Estimates of a merge; tensors that are from elsewhere, or that no model has."""
    merged, part, odd = (tmp_path / f"{each}.gguf" for each in ("merged", "part", "odd"))
    assert main(["merge", str(tiny[0]), str(tiny[1]), "-o", str(merged), "-q"]) == 0
    assert main(["merge", str(tiny[0]), "-o", str(part), "--tensors", r"^blk\.", "-q"]) == 0
    name = "blk.0.attn_q.weight"
    weights = read_weights(merged)[name]
    write_gguf(odd, {name: stored("F16", np.ascontiguousarray(-weights))})

    def said(model: Path, truth: Path) -> str:
        capsys.readouterr()
        assert main(["evaluate", str(model), "--truth", str(truth)]) == 0
        return capsys.readouterr().err

    assert f"{merged} is no original: it holds what a merge estimated" in said(tiny[0], merged)
    assert "has 'token_embd.weight', 'output.weight': not compared" in said(part, TINY)
    assert f"{odd} is farther from {TINY} than zeros are on '{name}'" in said(odd, TINY)
    assert said(tiny[0], TINY) == ""


def test_what_cannot_be_compared(tmp_path: Path, tiny: list[Path]) -> None:
    ones = np.ones((4, 32), np.float32)
    truth = write(tmp_path / "truth.gguf", {"a": ones})
    other = write(tmp_path / "other.gguf", {"b": ones})
    reshaped = write(tmp_path / "reshaped.gguf", {"a": np.ones((8, 32), np.float32)})
    broken = write(tmp_path / "broken.gguf", {"a": ones * np.float32(np.nan)})
    with pytest.raises(EvaluationError, match=r"truth\.gguf: has no tensor 'b'"):
        evaluate_models([other], truth)
    with pytest.raises(EvaluationError, match=r"'a' has the shape \(32, 8\)"):
        evaluate_models([reshaped], truth)
    with pytest.raises(EvaluationError, match="tensor 'a' holds NaN"):
        evaluate_models([broken], truth)
    with pytest.raises(EvaluationError, match="has no tensor"):
        evaluate_models(tiny[:1], truth)

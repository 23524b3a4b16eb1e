"""Codes in llama.cpp's types that other encoders made: GPTQ, re-blocked as Q4_0."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from recover.calibration.fit import calibrate
from recover.containers.gguf.reader import open_gguf
from recover.inputs.provenance import has_cells, is_foreign
from tests.naive.gptq import gptq, q4_0_blocks
from tests.support.gguf_files import Stored, read_weights, squared_error, stored, write_gguf
from tests.support.merging import merge

F32Array = NDArray[np.float32]
NAME = "blk.0.ffn_down.weight"


@pytest.fixture
def rows(real_rows: F32Array) -> F32Array:
    return real_rows[:256]


def compensated(x: F32Array, group: int, strength: float) -> Stored:
    """What GPTQ makes of weights whose inputs go together as far as `strength` says."""
    n = x.shape[1]
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    return Stored("Q4_0", q4_0_blocks(*gptq(x, strength**apart, group)))


@pytest.mark.parametrize("method", ["posterior", "linear", "midpoint"])
@pytest.mark.parametrize("other", ["Q4_K", "Q5_K", "Q3_K"])
@pytest.mark.parametrize("strength", [0.5, 0.8])
def test_the_expected_error_is_the_measured_one(
    rows: F32Array, tmp_path: Path, strength: float, other: str, method: str
) -> None:
    files = {"gptq": compensated(rows, 128, strength), other: stored(other, rows)}
    paths = [write_gguf(tmp_path / f"{name}.gguf", {NAME: x}) for name, x in files.items()]
    result = merge(paths, tmp_path / "out.gguf", method=method)
    truth = {NAME: rows}
    errors = [squared_error(read_weights(path), truth) for path in [tmp_path / "out.gguf", *paths]]
    assert result.expected_mse_ratio is not None
    assert errors[0] < min(errors[1:])
    assert result.expected_mse_ratio == pytest.approx(errors[0] / min(errors[1:]), rel=0.05)
    assert result.conflict_fraction == 0
    assert any("another program than llama.cpp" in line for line in result.plan.warnings)


@pytest.mark.parametrize("group", [32, 64, 128, 256])
def test_foreign_codes_are_told(rows: F32Array, tmp_path: Path, group: int) -> None:
    model = open_gguf(write_gguf(tmp_path / "a.gguf", {NAME: compensated(rows, group, 0.8)}))
    assert is_foreign(model, model.tensors[NAME])
    assert not has_cells(model, model.tensors[NAME])


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "IQ4_NL"])
@pytest.mark.parametrize("imatrix", [False, True])
def test_codes_of_ggml_are_not_foreign(
    real_rows: F32Array, tmp_path: Path, kind: str, imatrix: bool
) -> None:
    path = write_gguf(tmp_path / "a.gguf", {NAME: stored(kind, real_rows, imatrix=imatrix)})
    model = open_gguf(path)
    is_unknown = imatrix and kind in ("Q4_1", "Q5_1")  # which nothing tells from others
    assert is_foreign(model, model.tensors[NAME]) == is_unknown


def test_calibrations_of_llama_cpp_codes_are_not_for_them(rows: F32Array, tmp_path: Path) -> None:
    truth = write_gguf(tmp_path / "truth.gguf", {NAME: stored("F32", rows)})
    plain = [
        write_gguf(tmp_path / f"{kind}.gguf", {NAME: stored(kind, rows)})
        for kind in ("Q4_0", "Q4_K")
    ]
    foreign = write_gguf(tmp_path / "gptq.gguf", {NAME: compensated(rows, 128, 0.8)})
    calibration = calibrate(plain, truth)
    with_it, without = (
        merge([foreign, plain[1]], tmp_path / "out.gguf", method="linear", calibration=each)
        for each in (calibration, None)
    )
    assert with_it.expected_mse_ratio == without.expected_mse_ratio

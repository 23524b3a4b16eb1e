"""Encoders that clip the largest weights: how far these are off is found beside another input."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from recover.containers.huggingface.formats._levels import LevelMatrix
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.containers.model import StoredTensor
from recover.inputs.alignment import align
from recover.inputs.completion import complete
from recover.inputs.foreign import measure_beyond
from recover.inputs.open import open_model
from recover.inputs.recorded import Input
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from recover.quants import quantize, type_by_name
from tests.support.encoders import fp4
from tests.support.foreign_modules import heavy_tailed, state
from tests.support.format_checks import matrix_of
from tests.support.gguf_files import read_weights, squared_error
from tests.support.hf_folders import ENCODERS, write_folder
from tests.support.models import DATA, TINY
from tests.support.stated_intervals import tensor_of

GGUF = DATA / "tiny-llama-3m-Q5_K_M.gguf"
X = heavy_tailed(np.random.default_rng(11), 256, 512)


def beside(kind: str) -> StoredTensor:
    return tensor_of(quantize(X, type_by_name(kind)), kind, X.size)


def squares(matrix: LevelMatrix) -> tuple[float, float]:
    """Expected and measured squared errors of the weights without a bound."""
    stated = state(matrix)
    is_open = np.isinf(stated.lower) | np.isinf(stated.upper)
    off = np.square(stated.value.astype(np.float64) - X.reshape(-1))
    return float(stated.variance[is_open].sum(dtype=np.float64)), float(off[is_open].sum())


def matrix(shrink: float) -> LevelMatrix:
    found = matrix_of(fp4.encode_nvfp4(X, shrink=shrink))
    assert isinstance(found, LevelMatrix)
    return found


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0"])
@pytest.mark.parametrize("shrink", [0.7, 0.8, 0.9])
def test_errors_of_clipped_weights(shrink: float, kind: str) -> None:
    found = matrix(shrink)
    expected, measured = squares(found)
    assert measured > 1.5 * expected
    told = found.with_beyond(measure_beyond(found, beside(kind)))
    expected, measured = squares(told)
    assert expected == pytest.approx(measured, rel=0.15)
    closed = np.isfinite(state(found).lower) & np.isfinite(state(found).upper)
    assert np.array_equal(state(told).variance[closed], state(found).variance[closed])


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0"])
def test_of_fitted_scales_nothing_is_added(kind: str) -> None:
    found = matrix(1.0)
    _, measured = squares(found)
    stated = state(found)
    is_open = np.isinf(stated.lower) | np.isinf(stated.upper)
    added = measure_beyond(found, beside(kind)) * np.square(stated.value[is_open]).sum()
    assert added < 0.1 * measured


def test_merges_measure_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output is as near the truth as the plan expects, and a plan from its record the same."""
    settings = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    encoder = partial(fp4.encode_nvfp4, shrink=0.8)
    monkeypatch.setitem(ENCODERS, "clipped", (encoder, settings))
    folder = write_folder(TINY, tmp_path / "folder", "clipped")
    plan = plan_merge([GGUF, folder], tmp_path / "out.gguf", outtype="f32")
    result = execute_merge(plan, n_threads=1)
    truth, merged = read_weights(TINY), read_weights(plan.output)
    alone = read_weights(GGUF)
    names = [name for name, w in truth.items() if w.ndim == 2 and name.startswith("blk.")]
    after, before = (
        squared_error({name: each[name] for name in names}, {name: truth[name] for name in names})
        for each in (merged, alone)
    )
    assert result.expected_mse_ratio == pytest.approx(after / before, rel=0.08)

    opened = [open_model(GGUF), open_model(folder)]
    aligned = align(opened)
    _, completed = complete(aligned.models, aligned.names, [])
    record = json.loads(json.dumps(Input.of(opened[1], completed).to_record()))
    again = Input.from_record(record).open()
    for name in names:
        one, other, fresh = (m.tensors[name] for m in (completed, again, opened[1]))
        assert isinstance(one, QuantizedTensor)
        assert isinstance(other, QuantizedTensor)
        assert isinstance(fresh, QuantizedTensor)
        found, stored = (each.runs[0].matrix.beyond for each in (one, other))
        assert found == stored > 0 == fresh.runs[0].matrix.beyond

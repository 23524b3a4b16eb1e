"""A plan is plain data: it goes to JSON and back, and pickles."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover import GGUFError, InputError, PlanError
from recover.calibration.fit import calibrate
from recover.estimators import error_calibration
from recover.inputs.originals.origin import RecoveredTensor
from recover.merge import calibrated
from recover.merge.execute import execute_merge
from recover.merge.plan import MergePlan, plan_merge
from recover.merge.resimulate import with_simulated_densities
from tests.naive.grids import rounded
from tests.oracle import libggml
from tests.support.gguf_files import Stored, stored, write_gguf
from tests.support.hf_folders import write_folder
from tests.support.integers import original
from tests.support.merging import UP, Make, Q
from tests.support.models import TINY

Plan = Callable[[Path], MergePlan]


def there_and_back(plan: MergePlan) -> MergePlan:
    """The plan that another process makes of its JSON."""
    return MergePlan.from_record(json.loads(json.dumps(plan.to_record())))


def check_same(plan: MergePlan) -> None:
    record = plan.to_record()
    assert json.loads(json.dumps(record)) == record
    for other in (there_and_back(plan), pickle.loads(pickle.dumps(plan))):
        assert other == plan
        assert other.digest == plan.digest
        assert other.to_json() == plan.to_json()
        assert other.to_record() == record
        assert all(a is not b for a, b in zip(other.models, plan.models, strict=True))


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "map": {"estimate": "map"},
    "linear": {"method": "linear", "outtype": "q8_0"},
    "snap": {"snap": "auto", "outtype": "bf16"},
    "some": {"tensors": "attn", "uncertainty": "deviation.gguf"},
    "parts": {"split_max_size": 700_000, "uncertainty": "deviation.gguf"},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(tiny: list[Path], tmp_path: Path, case: str) -> None:
    options = dict(OPTIONS[case])
    if "uncertainty" in options:
        options["uncertainty"] = tmp_path / options["uncertainty"]
    check_same(plan_merge(tiny, tmp_path / "out.gguf", **options))


def test_calibrations_and_densities(tiny: list[Path], tmp_path: Path) -> None:
    fitted = calibrate(tiny, TINY)
    for method in ("linear", "posterior"):
        plan = plan_merge(tiny, tmp_path / "out.gguf", method=method, calibration=fitted)
        assert plan.calibration == fitted
        check_same(plan)
    plan = plan_merge(tiny, tmp_path / "out.gguf", tensors="ffn")
    own = with_simulated_densities(plan, 300_000)
    assert own.densities
    check_same(own)
    assert own.digest != plan.digest


def test_inputs_of_all_kinds(
    make: Make, truth: dict[str, Any], rng: np.random.Generator, tmp_path: Path
) -> None:
    """Duplicates, children, floats, foreign codes, importance matrices."""
    noise = stored("Q4_K", truth[UP] + 0.001 * rng.standard_normal(truth[UP].shape))
    paths = [make("Q5_K"), make("Q5_K", name="reference"), make("Q4_K", {UP: noise}, name="mixed")]
    paths += [make("F16", {Q: stored("Q6_K", truth[Q])}), make("Q4_0"), make("IQ4_NL")]
    check_same(plan_merge(paths, tmp_path / "out.gguf"))


def test_inputs_that_are_aligned(unlike: list[Path], tmp_path: Path) -> None:
    """Rows and tensors that some lack, experts apart and stacked, other shapes."""
    plan = plan_merge(unlike, tmp_path / "out.gguf")
    check_same(plan)
    for one, other in zip(there_and_back(plan).models, plan.models, strict=True):
        assert list(one.tensors) == list(other.tensors)
        assert [each.dims for each in one.tensors.values()] == [
            each.dims for each in other.tensors.values()
        ]


def test_folders(tiny: list[Path], tmp_path: Path) -> None:
    folder = write_folder(TINY, tmp_path / "folder", "fp8")
    check_same(plan_merge([tiny[0], folder], tmp_path / "out.gguf"))


def test_integers_that_an_input_was_made_from(rng: np.random.Generator, tmp_path: Path) -> None:
    codes, scales = original(rng, 1400, 768, 384, 127)
    weights = rounded((codes * scales).reshape(1400, 768), "F32").astype(np.float32)
    naive = Stored("Q8_0", libggml.quantize(8, weights).reshape(1400, -1))
    paths = [tmp_path / "q4.gguf", tmp_path / "q8.gguf"]
    write_gguf(paths[0], {Q: stored("Q4_K", weights)})
    write_gguf(paths[1], {Q: naive})
    plan = plan_merge(paths, tmp_path / "out.gguf", outtype="f32")
    check_same(plan)
    other = there_and_back(plan)
    assert isinstance(other.models[1].tensors[Q], RecoveredTensor)
    execute_merge(plan)
    expected = plan.output.read_bytes()
    plan.output.unlink()
    execute_merge(other)
    assert plan.output.read_bytes() == expected


def test_it_is_carried_out_like_the_first(tiny: list[Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"uncertainty": tmp_path / "deviation.gguf", "tensors": "blk.[01]"}
    plan = plan_merge(tiny, tmp_path / "out.gguf", **options)
    result = execute_merge(plan)
    expected = [file.path.read_bytes() for file in plan.files]
    again = execute_merge(there_and_back(plan))
    assert [file.path.read_bytes() for file in plan.files] == expected
    assert again.expected_mse_ratio == result.expected_mse_ratio
    assert again.tensors == result.tensors


def test_nothing_is_measured_once_it_is_planned(
    tiny: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What expected errors are worth stands in the plan."""
    plan = plan_merge(tiny, tmp_path / "out.gguf", tensors="blk.0")
    merged = [tensor for tensor in plan.tensors if tensor.action == "merge"]
    assert merged
    for tensor in merged:
        assert tensor.error_calibration is not None
        assert tensor.error_calibration.is_measured
        assert min(tensor.error_calibration.merged) > 0
    copied = [tensor.error_calibration for tensor in plan.tensors if tensor.action == "copy"]
    assert copied == [None] * len(copied)
    before = execute_merge(plan).expected_mse_ratio
    for module in (calibrated, error_calibration):
        monkeypatch.delattr(module, "calibrate_errors")
    doubled = [
        replace(
            each,
            error_calibration=replace(
                each.error_calibration, merged=tuple(2 * m for m in each.error_calibration.merged)
            ),
        )
        if each.error_calibration is not None
        else each
        for each in plan.tensors
    ]
    after = execute_merge(replace(plan, tensors=tuple(doubled))).expected_mse_ratio
    assert before is not None
    assert after == pytest.approx(2 * before)


@pytest.mark.parametrize("change", ["bytes", "time", "size", "name"])
def test_a_changed_input_is_refused(make: Make, tmp_path: Path, change: str) -> None:
    paths = [make("Q5_K"), make("Q4_K")]
    record = plan_merge(paths, tmp_path / "out.gguf").to_record()
    raw, status = bytearray(paths[1].read_bytes()), paths[1].stat()
    if change == "name":
        shutil.move(paths[1], tmp_path / "elsewhere.gguf")
        with pytest.raises(GGUFError, match="there is no such file"):
            MergePlan.from_record(record)
        return
    if change == "bytes":
        raw[-1] ^= 1
    if change == "size":
        raw += bytes(32)
    paths[1].write_bytes(raw)
    os.utime(paths[1], ns=(status.st_atime_ns, status.st_mtime_ns + 10**9 * (change != "size")))
    with pytest.raises(InputError, match=r"Q4_K.gguf: was changed since the work was planned"):
        MergePlan.from_record(record)


def test_records_that_are_no_plan(make: Make, tmp_path: Path) -> None:
    record = plan_merge([make("Q5_K"), make("Q4_K")], tmp_path / "out.gguf").to_record()
    with pytest.raises(PlanError, match=r"by version 0\.0\.1 of this program"):
        MergePlan.from_record(record | {"version": "0.0.1"})
    with pytest.raises(PlanError, match="plan the merge again"):
        MergePlan.from_record(record | {"format": "recover.merge.plan/0"})
    damaged: list[Any] = [None, [], {}, "plan", record | {"parts": []}, record | {"tensors": 5}]
    damaged += [{key: value for key, value in record.items() if key != name} for name in record]
    wrong_type = json.loads(json.dumps(record))
    merged = next(each for each in wrong_type["tensors"] if each["sources"])
    merged["sources"][0]["type"] = "Q6_K"
    with pytest.raises(PlanError, match="a tensor is Q5_K, but Q6_K was planned"):
        MergePlan.from_record(wrong_type)
    for each in damaged:
        with pytest.raises(PlanError, match="no plan of a merge"):
            MergePlan.from_record(each)

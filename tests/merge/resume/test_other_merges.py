"""What an interrupted merge left is taken over by the same merge only."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import recover.merge.resume as resume_module
from recover import calibrate
from recover.evidence.densities import density
from recover.merge.plan import plan_merge
from recover.merge.resume import Unfinished
from recover.quants import ScalarType, type_by_name
from tests.support.interrupting import N_TENSORS, OPTIONS, Interrupt, Whole, Workers
from tests.support.models import TINY
from tests.support.resuming import contents, figures, finish, journal_of, make_plan

# What does not belong together.


def changed_input(tiny: list[Path], folder: Path, how: str) -> list[Path]:
    """Copies of the inputs, the second of which changes in some way when called again."""
    copies = [folder / path.name for path in tiny]
    for copy, path in zip(copies, tiny, strict=True):
        if not copy.exists():
            shutil.copy2(path, copy)
            how = ""
    if how == "touched":
        os.utime(copies[1], (1, 1))
    elif how == "grown":
        status = copies[1].stat()
        with copies[1].open("ab") as file:
            file.write(bytes(32))
        os.utime(copies[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    elif how == "header":
        status, data = copies[1].stat(), copies[1].read_bytes()
        copies[1].write_bytes(data.replace(b"tiny-llama-3m", b"tiny-llama-4m", 1))
        os.utime(copies[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    elif how == "order":
        copies.reverse()
    return copies


@pytest.mark.parametrize("how", ["touched", "grown", "header", "order"])
def test_changed_inputs(tiny: list[Path], tmp_path: Path, interrupt: Interrupt, how: str) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    interrupt(plan_merge(changed_input(tiny, folder, how), tmp_path / "out.gguf"), 9)
    plan = plan_merge(changed_input(tiny, folder, how), tmp_path / "out.gguf")
    said = interrupt(plan, 4)
    assert "starting over: what is there belongs to another merge (other inputs" in said[0]
    assert "4 of 30" in said[1]


CHANGES: dict[str, dict[str, Any]] = {
    "method": {"method": "midpoint"},
    "estimate": {"estimate": "map"},
    "outtype": {"outtype": "bf16"},
    "snap": {"snap": "bf16"},
    "tensors": {"tensors": "blk"},
    "uncertainty": {"uncertainty": "s.gguf"},
    "split": {"split_max_size": 700_000},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_options(tiny: list[Path], tmp_path: Path, interrupt: Interrupt, change: str) -> None:
    """Nothing is left of the other merge, whatever its files were."""
    interrupt(make_plan(tiny, tmp_path, **OPTIONS["parts and deviations"]), 3)
    plan = make_plan(tiny, tmp_path, **CHANGES[change])
    said = interrupt(plan, 2)
    assert "starting over: what is there belongs to another merge (other options)" in said[0]
    assert "2 of " in said[1]
    partials = {Unfinished(plan).partial(file.path) for file in plan.files}
    assert set(tmp_path.iterdir()) == {*partials, journal_of(tmp_path)}


def test_other_densities_and_calibrations(
    tiny: list[Path], tmp_path: Path, interrupt: Interrupt
) -> None:
    plan = make_plan(tiny, tmp_path)
    q5_k = type_by_name("Q5_K")
    assert isinstance(q5_k, ScalarType)
    rows = density(q5_k, weighted=False, has_cells=True).tolist()
    simulated = replace(plan, densities={("Q5_K", False, True): rows})
    fitted = calibrate(tiny, TINY)
    plans = {
        "densities": simulated,
        "options, calibration, densities": make_plan(tiny, tmp_path, calibration=fitted),
        "options, calibration": make_plan(
            tiny, tmp_path, calibration=replace(fitted, left_out="layer")
        ),
    }
    assert len(interrupt(plan, 2)) == 1
    for words, other in plans.items():
        said = interrupt(other, 2)
        assert f"starting over: what is there belongs to another merge (other {words})" in said[0]


def test_another_version(
    tiny: list[Path], tmp_path: Path, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tiny, tmp_path)
    interrupt(plan, 2)
    monkeypatch.setattr("recover.execution.fingerprints.__version__", "99.0")
    assert (
        "starting over: what is there belongs to another merge (other version)"
        in (interrupt(plan, 2)[0])
    )


def test_a_journal_of_another_format(
    tiny: list[Path], tmp_path: Path, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its entries mean, they are not read."""
    plan = make_plan(tiny, tmp_path)
    for number in (2, 4):
        with monkeypatch.context() as patch:
            patch.setattr(resume_module, "_FORMAT", f"recover.merge.journal/{number}")
            interrupt(plan, 2)
        said = interrupt(plan, 2)
        assert "what is there belongs to another merge (other version)" in said[0]


@pytest.mark.parametrize("damage", ["missing", "shorter"])
@pytest.mark.parametrize("number", [0, 2, -1])
def test_files_that_are_not_as_they_were(
    tiny: list[Path],
    tmp_path: Path,
    whole: Whole,
    workers: Workers,
    interrupt: Interrupt,
    damage: str,
    number: int,
) -> None:
    case = "parts and deviations"
    plan = make_plan(tiny, tmp_path, **OPTIONS[case])
    interrupt(plan, 20)
    partial = Unfinished(plan).partial(plan.files[number].path)
    if damage == "missing":
        partial.unlink()
    else:
        os.truncate(partial, 1000)
    result, (said,) = finish(plan)
    assert f"starting over: {partial} {'is missing' if damage == 'missing' else 'has 1,0'}" in said
    assert len(workers.done) == N_TENSORS
    assert (contents(tmp_path), figures(result)) == whole(case)

"""Whether a model keeps within the cells of quantizations, and gives their bytes again."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from numpy.typing import NDArray

from recover.bounds.verify import VerifyResult, verify_model
from recover.cli import main
from recover.containers.gguf.reader import open_gguf
from recover.errors import PlanError
from recover.evidence.intervals import Intervals
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from tests.support.gguf_files import Stored, read_weights, stored, write_gguf
from tests.support.merging import NORM, UP
from tests.support.models import TINY
from tests.support.text import write_model

F32Array = NDArray[np.float32]

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")


def verify(model: Path, inputs: list[Path]) -> VerifyResult:
    return verify_model(model, inputs, n_threads=2)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_the_original_keeps_within_every_cell(make: Callable[..., Path], kind: str) -> None:
    result = verify(make(kind), [make(each) for each in TYPES])
    assert result.is_consistent
    for check in result.inputs:
        matrix = check.tensors[0]
        assert (matrix.n_outside, matrix.largest_excess) == (0, 0)
        assert matrix.n_bounded > 0.9 * matrix.n_weights
        assert matrix.n_blocks > 0
        if kind == "F32":
            assert check.reproduced_fraction == 1
        else:
            assert matrix.n_reproduced < matrix.n_blocks


def test_a_merge_keeps_within_the_cells(tiny: list[Path], tmp_path: Path) -> None:
    for outtype in ("f16", "f32", "bf16", "q8_0"):
        plan = plan_merge(tiny, tmp_path / f"{outtype}.gguf", outtype=outtype)
        execute_merge(plan, n_threads=2)
        result = verify(plan.output, tiny)
        assert result.is_consistent, outtype
        assert result.inputs[0].n_missing == 0
    truth = verify(TINY, tiny)
    assert truth.is_consistent
    assert all(check.reproduced_fraction == 1 for check in truth.inputs)


def test_weights_outside_are_counted_and_measured(
    make: Callable[..., Path], truth: F32Array
) -> None:
    moved = truth.copy()
    moved[3, 100] += 0.5
    moved[7, 5:8] -= 0.25
    moved[9, 9] = np.nan
    check = verify(make("F32", moved, "moved"), [make("Q6_K")]).inputs[0]
    matrix = check.tensors[0]
    assert matrix.n_outside == check.total("n_outside") == 5
    assert 0.45 < check.largest_excess < 0.5


def test_float32_arithmetic_is_allowed(make: Callable[..., Path], truth: F32Array) -> None:
    """A few units in the last place beyond the proven bounds, but no more."""
    finer = make("Q6_K")
    intervals = Intervals()
    intervals.look_at([open_gguf(finer).tensors[UP]])
    lower, upper = (bound.reshape(truth.shape) for bound in intervals.bound(0, truth.size))
    ends = np.where(np.isfinite(upper), upper, np.where(np.isfinite(lower), lower, truth))
    away = np.where(np.isfinite(upper), 1, -1) * np.abs(ends)
    beyond = ends + away * np.float32(2.0**-22)
    assert np.any(beyond > upper)
    assert verify(make("F32", beyond, "beyond"), [finer]).is_consistent
    check = verify(make("F32", ends + away * np.float32(2.0**-17), "far"), [finer]).inputs[0]
    assert check.tensors[0].n_outside > 0.9 * truth.size


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_rounding_of_the_models_type_is_allowed(
    make: Callable[..., Path], truth: F32Array, tmp_path: Path, kind: str
) -> None:
    """The model's cells reach the truth, so that they reach the cells of an input."""
    model, finer = make(kind), make("Q6_K")
    assert verify(model, [finer]).is_consistent
    decoded = read_weights(model)[UP]
    as_f32 = make("F32", decoded, "decoded")
    assert not verify(as_f32, [finer]).is_consistent  # without the rounding, some lie outside


def test_searched_codes_prove_nothing_and_need_not_come_back(
    make: Callable[..., Path], truth: F32Array, tmp_path: Path
) -> None:
    def says_so(writer: GGUFWriter) -> None:
        writer.add_string("quantize.imatrix.file", "some.dat")

    searched = {UP: stored("Q4_0", truth, imatrix=True)}
    with_imatrix = write_gguf(tmp_path / "imatrix.gguf", searched, add=says_so)
    check = verify(make("F32"), [with_imatrix]).inputs[0]
    assert check.imatrix
    assert check.reproduced_fraction is None
    assert check.total("n_bounded") == 0
    assert check.total("n_reproduced") < check.total("n_blocks")


def test_vector_types(make: Callable[..., Path]) -> None:
    check = verify(make("F32"), [make("IQ2_S")]).inputs[0]
    assert (check.tensors[0].n_bounded, check.tensors[0].n_blocks) == (0, 0)


def test_files_that_do_not_fit(make: Callable[..., Path], truth: F32Array, tmp_path: Path) -> None:
    model = make("F32")
    with pytest.raises(PlanError, match="no inputs"):
        verify(model, [])
    other = write_gguf(tmp_path / "other.gguf", {"else.weight": stored("Q4_K", truth)})
    with pytest.raises(PlanError, match="in common"):
        verify(model, [other])
    reshaped = make("Q4_K", truth.reshape(48, 256), "reshaped")
    with pytest.raises(PlanError, match=f"{UP}' differ"):
        verify(model, [reshaped])
    more = write_gguf(
        tmp_path / "more.gguf", {UP: stored("Q4_K", truth), "else.weight": stored("Q4_K", truth)}
    )
    assert verify(model, [more]).inputs[0].n_missing == 1


class TestFindings:
    """The last line says no more than what was checked."""

    def test_all_weights(self, make: Callable[..., Path]) -> None:
        result = verify(make("F16"), [make("Q4_K"), make("Q5_K")])
        assert result.findings() == ["every weight lies in the cells of every input"]

    def test_a_share_of_them(self, truth: F32Array, tmp_path: Path) -> None:
        holed = truth.copy()
        holed[3, :256] = 0  # a superblock without a scale has no cells
        paths = [
            write_gguf(tmp_path / f"{kind}.gguf", {UP: stored(kind, holed)})
            for kind in ("F32", "Q4_K")
        ]
        result = verify(paths[0], paths[1:])
        assert result.is_consistent
        share = f"{100 * (1 - 256 / truth.size):.2f}"[:-1]
        (line,) = result.findings()
        assert line.startswith(f"the weights that have bounds ({share}")
        assert "every" not in line

    def test_nearly_all_is_not_all(self, rng: np.random.Generator, tmp_path: Path) -> None:
        large = rng.standard_normal((800, 1024), np.float32)
        large[0, :32] = 0
        paths = [
            write_gguf(tmp_path / f"{kind}.gguf", {UP: stored(kind, large)})
            for kind in ("F32", "Q4_0")
        ]
        (line,) = verify(paths[0], paths[1:]).findings()
        assert "(99.99% in " in line

    @pytest.mark.parametrize("kind", ["IQ2_S", "IQ3_XXS", "IQ1_S"])
    def test_types_without_cells(self, make: Callable[..., Path], kind: str) -> None:
        result = verify(make("F32"), [make(kind)])
        assert not result.is_consistent
        assert f"({kind}) give no weight bounds" in result.findings()[0]
        assert result.findings()[-1] == "nothing could be checked"
        both = verify(make("F32"), [make(kind), make("Q4_K")])
        assert both.is_consistent
        assert "every" not in both.findings()[-1]

    def test_swapped_arguments(self, make: Callable[..., Path]) -> None:
        result = verify(make("Q4_K"), [make("F16")])
        assert not result.is_consistent
        swapped = [line for line in result.findings() if "swapped?" in line]
        assert len(swapped) == 2
        assert result.findings()[-1] == "nothing could be checked"

    def test_a_quantized_model(self, make: Callable[..., Path]) -> None:
        result = verify(make("Q8_0"), [make("Q4_K")])
        assert result.is_consistent
        assert "is quantized (Q8_0)" in result.findings()[0]
        assert "every weight lies" not in result.findings()[-1]

    def test_tensors_that_one_side_has(self, truth: F32Array, tmp_path: Path) -> None:
        ours = {UP: stored("F32", truth), "mine.weight": stored("F32", truth)}
        theirs = {UP: stored("Q4_K", truth), "yours.weight": stored("Q4_K", truth)}
        table = {"table": stored("I32", np.zeros((2, 32)))}
        model = write_gguf(tmp_path / "model.gguf", ours | table)
        other = write_gguf(tmp_path / "other.gguf", theirs | table)
        result = verify(model, [other])
        assert result.is_consistent
        assert result.findings()[:2] == [
            f"only {other} has 'yours.weight': not compared",
            f"only {model} has 'mine.weight': not compared",
        ]
        assert "every" not in result.findings()[-1]
        document = result.to_json()
        assert document["inputs"][0]["only_input"] == ["yours.weight"]
        assert document["inputs"][0]["only_model"] == ["mine.weight"]

    def test_a_merge_is_not_the_original(self, tiny: list[Path], tmp_path: Path) -> None:
        """It keeps within the cells, too, and says itself what it is, or its blocks do."""
        within = "every weight lies in the cells of every input"
        plan = plan_merge(tiny, tmp_path / "merged.gguf", outtype="f32")
        execute_merge(plan, n_threads=2)
        first, second = verify(plan.output, tiny).findings()
        assert first == within
        assert "a merge wrote" in second
        untold = write_model(tmp_path / "untold.gguf", TINY, read_weights(plan.output))
        first, second = verify(untold, tiny).findings()
        assert first == within
        assert "few blocks come back" in second
        assert all(str(each) in second for each in tiny)
        assert verify(TINY, tiny).findings() == [within]

    def test_norms_are_no_check(self, truth: F32Array, tmp_path: Path) -> None:
        norm = {NORM: Stored("F32", np.linspace(0.5, 1.5, 512, dtype=np.float32))}
        model = write_gguf(tmp_path / "model.gguf", norm | {"a.weight": stored("F32", truth)})
        other = write_gguf(tmp_path / "other.gguf", norm | {"b.weight": stored("Q4_K", truth)})
        result = verify(model, [other])
        assert (result.is_checked, result.is_consistent) == (False, False)


class TestCommand:
    def test_status_of_nothing(
        self, make: Callable[..., Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        model, other = str(make("F32")), str(make("IQ2_S"))
        assert main(["verify", model, other]) == 1
        assert capsys.readouterr().out.splitlines()[-1] == "nothing could be checked"
        assert main(["verify", model, other, "--json"]) == 1
        document = json.loads(capsys.readouterr().out)
        assert (document["checked"], document["consistent"]) == (False, False)

    def test_table_and_status(
        self, make: Callable[..., Path], truth: F32Array, capsys: pytest.CaptureFixture[str]
    ) -> None:
        good, bad = make("F16"), make("F16", truth + np.float32(0.1), "bad")
        q4, q5 = make("Q4_K"), make("Q5_K")
        assert main(["verify", str(good), str(q4), str(q5)]) == 0
        assert "every weight lies in the cells" in capsys.readouterr().out
        assert main(["verify", str(bad), str(q4)]) == 1
        printed = capsys.readouterr().out
        assert UP in printed
        assert "outside the cells" in printed

    def test_json(self, make: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["verify", str(make("F32")), str(make("Q4_K")), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["consistent"] is True
        assert document["inputs"][0]["reproduced_fraction"] == 1
        assert document["inputs"][0]["tensors"][0]["name"] == UP

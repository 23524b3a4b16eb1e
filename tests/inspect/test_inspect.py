"""What files are, and which inputs do not belong together."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGUFWriter
from numpy.typing import DTypeLike, NDArray

from recover.cli import main
from recover.containers.gguf.reader import open_gguf
from recover.errors import GGUFError, PlanError
from recover.inputs.open import open_model
from recover.inputs.relations import (
    ANOTHER_MODEL,
    FINE_TUNE,
    IDENTICAL,
    QUANTIZED_FROM,
    ROUNDED,
    SAME_ORIGINAL,
    SOME_TENSORS_DIFFER,
)
from recover.inspect.files import inspect_model
from recover.inspect.report import Inspection, inspect_files
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from recover.quantize.execute import execute_quantize
from recover.quantize.plan import plan_quantize
from recover.quants import dequantize
from tests.support.gguf_files import Stored, read_weights, stored, write_gguf
from tests.support.models import TINY

pytestmark = pytest.mark.long

F32Array = NDArray[np.float32]
Weights = dict[str, F32Array]
Make = Callable[..., Path]

UP = "blk.1.ffn_up.weight"


@pytest.fixture(scope="module")
def truth() -> Weights:
    """The first two layers of a trained model."""
    tensors = [t for name, t in open_gguf(TINY).tensors.items() if name[:5] in ("blk.0", "blk.1")]
    return {t.name: dequantize(t.raw, t.type).reshape(t.dims[::-1]) for t in tensors}


@pytest.fixture
def make(tmp_path: Path, truth: Weights) -> Make:
    def make(kind: str, weights: Weights = truth, name: str | None = None) -> Path:
        tensors = {n: stored("F32" if x.ndim == 1 else kind, x) for n, x in weights.items()}
        return write_gguf(tmp_path / f"{name or kind}.gguf", tensors)

    return make


def inspect(*paths: Path) -> Inspection:
    return inspect_files(paths, n_threads=2)


def kinds(result: Inspection) -> list[str]:
    return [relation.kind for relation in result.relations]


def changed(weights: Weights, change: Callable[[F32Array], NDArray[Any]]) -> Weights:
    return {n: change(x).astype(np.float32) if x.ndim > 1 else x for n, x in weights.items()}


def rounded(weights: Weights, dtype: DTypeLike) -> Weights:
    """By way of another float type."""
    return changed(weights, lambda x: x.astype(dtype))


class TestTogether:
    def test_one_original(self, tiny: list[Path], tmp_path: Path) -> None:
        result = inspect(*tiny)
        assert kinds(result) == [SAME_ORIGINAL] * 3
        assert result.same_original
        assert result.groups == [[0, 1, 2]]
        assert len(result.identical_tensors) == 8
        together = result.to_json()["together"]
        assert together["same_original"] is True
        plan = plan_merge(tiny, tmp_path / "merged.gguf")
        merged = execute_merge(plan, n_threads=2)
        assert together["expected_mse_ratio"] == pytest.approx(merged.expected_mse_ratio, rel=1e-9)
        by_name = {each.plan.name: each for each in merged.tensors}
        for each in together["tensors"]:
            assert each["expected_rmse"] == by_name[each["name"]].expected_rmse
            assert each["conflict_fraction"] == 0

    def test_every_mix_of_types(self, make: Make) -> None:
        names = ("Q8_0", "Q6_K", "Q4_0", "IQ4_NL", "Q3_K", "IQ2_S", "F16", "F32")
        result = inspect(*(make(name) for name in names))
        assert set(kinds(result)) == {SAME_ORIGINAL}

    @pytest.mark.parametrize(
        "names", [("Q5_0", "Q4_0"), ("Q4_0", "Q8_0", "Q5_0"), ("Q5_1", "Q4_1")]
    )
    def test_nested_lattices_make_no_child(
        self, make: Make, tmp_path: Path, names: tuple[str, ...]
    ) -> None:
        """Every level of Q5_0 (d = max / -16) lies in a cell of Q4_0 (max / -8), or on its edge."""
        paths = [make(name) for name in names]
        result = inspect(*paths)
        assert set(kinds(result)) == {SAME_ORIGINAL}
        merged = execute_merge(plan_merge(paths, tmp_path / "out.gguf"), n_threads=2)
        assert merged.conflict_fraction == 0

    def test_identical_files(self, make: Make) -> None:
        first, second = make("Q4_K"), make("Q4_K", name="copy")
        result = inspect(first, second)
        assert kinds(result) == [IDENTICAL]
        assert len(result.identical_tensors) == len(result.expectations)
        assert "byte for byte" in " ".join(result.findings())
        assert result.to_json()["together"]["expected_mse_ratio"] == 1

    def test_another_model_of_the_same_shapes(
        self, make: Make, truth: Weights, rng: np.random.Generator, tmp_path: Path
    ) -> None:
        other = make(
            "Q4_K", changed(truth, lambda x: rng.permuted(x.ravel()).reshape(x.shape)), "o"
        )
        result = inspect(make("Q5_K"), make("Q4_K"), other)
        assert kinds(result) == [SAME_ORIGINAL, ANOTHER_MODEL, ANOTHER_MODEL]
        assert result.groups == [[0, 1], [2]]
        assert result.expected_mse_ratio is None
        assert result.relations[1].conflict_fraction > 0.5
        assert f"does not belong to the others: {other}" in result.findings()
        plan = plan_merge([make("Q5_K"), other], tmp_path / "out.gguf")
        with pytest.raises(PlanError, match="recover inspect"):
            execute_merge(plan, n_threads=2)

    @pytest.mark.parametrize("change", [0.003, 0.01, 0.1])
    def test_a_fine_tune(
        self, make: Make, truth: Weights, rng: np.random.Generator, change: float
    ) -> None:
        def tune(x: F32Array) -> F32Array:
            return x + change * np.sqrt(np.mean(x * x)) * rng.standard_normal(x.shape)

        result = inspect(make("Q5_K"), make("Q4_K", changed(truth, tune), "tuned"))
        assert kinds(result) == [FINE_TUNE]
        relation = result.relations[0]
        assert 0 < relation.conflict_fraction < 0.5
        assert relation.correlation > 0.9
        assert "fine-tune" in result.findings()[0]

    def test_a_single_tensor_that_differs_is_named(
        self, make: Make, truth: Weights, rng: np.random.Generator, tmp_path: Path
    ) -> None:
        other = truth | {UP: rng.permuted(truth[UP])}
        paths = [make("Q5_K"), make("Q4_K", other, "single")]
        result = inspect(*paths)
        assert kinds(result) == [SOME_TENSORS_DIFFER]
        assert list(result.relations[0].tensors) == [UP]
        assert UP in result.findings()[0]
        plan = plan_merge(paths, tmp_path / "out.gguf")
        with pytest.raises(PlanError, match=UP):
            execute_merge(plan, n_threads=2)

    def test_a_merge_is_of_use_where_only_floats_differ(
        self, make: Make, truth: Weights, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        norm = "blk.1.ffn_norm.weight"
        paths = [make("Q5_K"), make("Q4_K", truth | {norm: truth[norm] + 1}, "single")]
        assert not inspect(*paths).same_original
        main(["inspect", *map(str, paths)])
        assert "it takes tensors that differ from one of them" in capsys.readouterr().out
        execute_merge(plan_merge(paths, tmp_path / "out.gguf"), n_threads=2)
        other = make("Q4_K", truth | {UP: truth[UP][::-1]}, "turned")
        main(["inspect", str(paths[0]), str(other)])
        assert "a merge of all of them is of no use" in capsys.readouterr().out

    def test_identical_tensors_count_as_well(
        self, make: Make, truth: Weights, rng: np.random.Generator
    ) -> None:
        other = truth | {UP: rng.permuted(truth[UP])}
        result = inspect(make("Q4_K"), make("Q4_K", other, "single"))
        assert kinds(result) == [SOME_TENSORS_DIFFER]

    def test_floats_are_compared(self, make: Make) -> None:
        result = inspect(make("F16"), make("F32"))
        assert "a sample was compared" in result.findings()[0]
        assert result.expected_mse_ratio is None


class TestSecondHand:
    @pytest.mark.parametrize("child", ["Q2_K", "Q4_0", "Q6_K", "IQ4_NL"])
    def test_a_file_quantized_from_an_input(self, make: Make, child: str) -> None:
        finer, parent = make("Q8_0"), make("Q4_K")
        second = make(child, read_weights(parent), "second")
        result = inspect(finer, parent, second)
        by_pair = {(each.first, each.second): each for each in result.relations}
        assert by_pair[0, 1].kind == SAME_ORIGINAL
        assert (by_pair[1, 2].kind, by_pair[1, 2].parent) == (QUANTIZED_FROM, 1)
        assert by_pair[1, 2].conflict_fraction == 0  # with its parent alone, nothing is to be seen
        assert by_pair[0, 2].conflict_fraction > 0
        assert not result.same_original
        findings = result.findings()
        assert any(line.startswith(f"{second} was quantized from {parent}") for line in findings)
        assert any("not quantized from the original" in line for line in findings)

    @pytest.mark.parametrize("parent", ["Q5_0", "Q5_K", "IQ4_XS"])
    @pytest.mark.parametrize("child", ["Q4_0", "Q4_1", "Q5_1"])
    def test_children_of_types_whose_encoder_has_no_choice(
        self, make: Make, parent: str, child: str
    ) -> None:
        path = make(parent)
        for via in (np.float32, ml_dtypes.bfloat16):
            weights = rounded(read_weights(path), via)
            relation = inspect(make(child, weights, "child"), path).relations[0]
            assert (relation.kind, relation.parent) == (QUANTIZED_FROM, 1)

    @pytest.mark.parametrize("child", ["Q4_K", "Q3_K", "Q6_K", "IQ4_NL"])
    def test_children_with_an_importance_matrix(
        self, tmp_path: Path, make: Make, truth: Weights, child: str
    ) -> None:
        """Their bytes cannot be made again without it."""
        parent = make("Q5_K")
        weights = read_weights(parent)
        tensors = {
            n: stored("F32" if x.ndim == 1 else child, x, imatrix=x.ndim > 1)
            for n, x in weights.items()
        }
        relation = inspect(parent, write_gguf(tmp_path / "child.gguf", tensors)).relations[0]
        assert (relation.kind, relation.parent) == (QUANTIZED_FROM, 0)

    @pytest.mark.parametrize("via", ["F16", "BF16"])
    def test_by_way_of_a_float_type(self, make: Make, via: str) -> None:
        parent = make("Q5_K")
        dtype = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}[via]
        weights = rounded(read_weights(parent), dtype)
        relation = inspect(make("Q3_K", weights, "child"), parent).relations[0]
        assert (relation.kind, relation.parent, relation.via) == (QUANTIZED_FROM, 1, via)

    def test_requantized_by_recover(self, tiny: list[Path], tmp_path: Path) -> None:
        plan = plan_quantize(tiny[1], tmp_path / "q3.gguf", "Q3_K", allow_requantize=True)
        execute_quantize(plan, n_threads=2)
        relation = inspect(tiny[1], plan.output).relations[0]
        assert (relation.kind, relation.parent) == (QUANTIZED_FROM, 0)

    def test_floats_are_no_parents(self, make: Make) -> None:
        """The original, or a copy of it in floats, makes nothing second-hand."""
        assert kinds(inspect(make("F16"), make("F32"), make("Q4_K"))) == [SAME_ORIGINAL] * 3


class TestRounded:
    """One of two files was quantized from a copy of the original in another float type."""

    @pytest.fixture
    def original(self, truth: Weights, rng: np.random.Generator) -> Weights:
        """The weights of the model, which are BF16 numbers, with all the digits of F32."""
        return changed(truth, lambda x: x * (1 + 0.01 * rng.standard_normal(x.shape)))

    def bf16(self, weights: Weights) -> Weights:
        return rounded(weights, ml_dtypes.bfloat16)

    @pytest.mark.parametrize("names", [("Q8_0", "Q6_K"), ("Q6_K", "Q8_0"), ("Q4_1", "Q5_0")])
    def test_which_one_and_to_what_is_told(
        self, make: Make, original: Weights, tmp_path: Path, names: tuple[str, str]
    ) -> None:
        exact, rounded = make(names[0], original), make(names[1], self.bf16(original))
        for paths in ([exact, rounded], [rounded, exact]):
            result = inspect(*paths)
            (relation,) = result.relations
            assert (relation.kind, relation.via, relation.parent) == (ROUNDED, "BF16", None)
            assert paths[relation.rounded or 0] == rounded
            assert 0 < relation.conflict_fraction < 0.02
            assert (result.same_original, result.groups) == (True, [[0, 1]])
            first, second = result.findings()
            assert first.endswith("only where it was rounded")
            assert f"rounded to BF16 before {rounded} was quantized" in second
            pair = result.to_json()["together"]["pairs"][0]
            assert pair["rounded"] == relation.rounded
        merged = execute_merge(plan_merge([exact, rounded], tmp_path / "out.gguf"), n_threads=2)
        assert merged.conflict_fraction is not None
        assert 0 < merged.conflict_fraction < 0.02

    def test_few_conflicts_that_no_sample_shows(
        self, make: Make, original: Weights, tmp_path: Path
    ) -> None:
        """The cells of Q5_K and Q4_K hardly ever meet where rounding makes the difference."""
        large = {UP: np.tile(original[UP], (8, 1))}
        paths = [make("Q5_K", large), make("Q4_K", self.bf16(large))]
        merged = execute_merge(plan_merge(paths, tmp_path / "out.gguf"), n_threads=2)
        assert merged.conflict_fraction is not None
        assert 0 < merged.conflict_fraction < 1e-4

    @pytest.mark.parametrize("change", [1e-3, 2e-3])
    def test_noise_of_the_same_size_is_no_rounding(
        self,
        make: Make,
        original: Weights,
        rng: np.random.Generator,
        tmp_path: Path,
        change: float,
    ) -> None:
        noisy = changed(original, lambda x: x * (1 + change * rng.standard_normal(x.shape)))
        paths = [make("Q8_0", original), make("Q8_0", noisy, "noisy")]
        assert kinds(inspect(*paths)) == [FINE_TUNE]
        with pytest.raises(PlanError, match="not quantized from the same original"):
            execute_merge(plan_merge(paths, tmp_path / "out.gguf"), n_threads=2)

    def test_a_tensor_of_another_model_beside_rounding(
        self, make: Make, original: Weights, rng: np.random.Generator, tmp_path: Path
    ) -> None:
        """Not even where the sample does not see it: all weights in conflict are looked at."""
        up = self.bf16(original)[UP]
        n_rows = 32_768 // up.shape[1] + 32
        exact = np.tile(original[UP], (4, 1))[: 8 * n_rows]
        other = exact.astype(ml_dtypes.bfloat16).astype(np.float32)
        other[n_rows : n_rows + 8] = rng.permuted(other[n_rows : n_rows + 8])
        paths = [make("Q8_0", {UP: exact}), make("Q6_K", {UP: other})]
        assert kinds(inspect(*paths)) == [ROUNDED]  # of the sample
        with pytest.raises(PlanError, match=f"contradict each other on tensors '{UP}'"):
            execute_merge(plan_merge(paths, tmp_path / "out.gguf"), n_threads=2)


class TestOneFile:
    def test_what_the_metadata_and_the_bytes_say(self, tiny: list[Path]) -> None:
        report = inspect_model(open_model(tiny[0]))
        assert report.architecture == "llama"
        assert report.file_type == "Q5_K_M"
        assert report.types == {"Q5_K": 20, "F32": 7, "Q6_K": 3}
        assert report.n_weights == 2885376
        assert report.n_bytes == tiny[0].stat().st_size
        assert 5.5 < report.bits_per_weight < 6
        assert report.imatrix is None
        assert "without an importance matrix" in report.quantizer_from_bytes
        assert report.source.type == "bf16"

    def test_an_importance_matrix(self, tmp_path: Path, real_rows: F32Array) -> None:
        def add(writer: GGUFWriter) -> None:
            writer.add_string("quantize.imatrix.file", "some.dat")
            writer.add_uint32("quantize.imatrix.chunks_count", 7)
            writer.add_string("general.quantized_by", "somebody")

        tensors = {UP: stored("Q4_K", real_rows, imatrix=True)}
        report = inspect_model(open_model(write_gguf(tmp_path / "told.gguf", tensors, add=add)))
        assert report.imatrix == {"file": "some.dat", "chunks_count": 7}
        assert report.quantized_by == "somebody"
        silent = inspect_model(open_model(write_gguf(tmp_path / "silent.gguf", tensors)))
        assert silent.imatrix is None
        assert "an importance matrix, or" in silent.quantizer_from_bytes
        assert silent.marks[0].n_without > 0

    def test_another_quantizer(self, tmp_path: Path, rng: np.random.Generator) -> None:
        raw = stored("Q8_0", rng.standard_normal((64, 512), np.float32)).rows.reshape(-1, 34)
        raw[:, 2:] = rng.integers(-90, 91, (len(raw), 32)).astype(np.int8).view(np.uint8)
        tensors = {UP: Stored("Q8_0", raw.reshape(64, -1))}
        report = inspect_model(open_model(write_gguf(tmp_path / "m.gguf", tensors)))
        assert report.quantizer_from_bytes == "not llama.cpp's (Q8_0)"

    def test_named_quantizers(self, tmp_path: Path) -> None:
        plan = plan_quantize(TINY, tmp_path / "q.gguf", "Q4_0", quantizer="q4_0-rmse")
        execute_quantize(plan, n_threads=2)
        report = inspect_model(open_model(plan.output))
        assert report.quantizer == "recover (q4_0-rmse)"
        assert "Q4_0" in report.quantizer_from_bytes

    @pytest.mark.parametrize("value", [99, 4])
    def test_unknown_file_types(self, tmp_path: Path, real_rows: F32Array, value: int) -> None:
        tensors = {UP: stored("Q4_K", real_rows)}
        path = tmp_path / "m.gguf"
        write_gguf(path, tensors, add=lambda writer: writer.add_file_type(value))
        assert inspect_model(open_model(path)).file_type == f"number {value}"


class TestCommand:
    def test_one_file(self, tiny: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", str(tiny[0]), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["together"] is None
        assert document["files"][0]["source_precision"]["type"] == "bf16"
        assert document["files"][0]["parameters"] == 2885376

    def test_several(self, tiny: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", *map(str, tiny)]) == 0
        printed = capsys.readouterr().out
        assert "may come from one original" in printed
        assert "identical in all files: 8 of 30 tensors" in printed

    def test_files_that_cannot_be_read(
        self, tmp_path: Path, make: Make, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(GGUFError, match="no such file"):
            inspect_model(open_model(tmp_path / "missing.gguf"))
        other = write_gguf(tmp_path / "other.gguf", {UP: stored("F32", np.ones((2, 256)))})
        assert main(["inspect", str(make("Q4_K")), str(other)]) == 1
        assert "does not belong to" in capsys.readouterr().err


class TestWhatWasCompared:
    """The sentence on all files follows from every figure, and says what was looked at."""

    @pytest.fixture
    def large(self, truth: Weights) -> Weights:
        return {UP: np.concatenate([truth[UP]] * 8), "norm.weight": np.ones(256, np.float32)}

    def test_none_of_all(self, make: Make, truth: Weights) -> None:
        result = inspect(make("Q5_K"), make("Q4_K"))
        n_weights = sum(each.size for each in truth.values() if each.ndim > 1)
        assert result.conflicts.n_compared == n_weights
        sentence, *_ = result.findings()
        assert f"none of the {n_weights:,} weights" in sentence

    def test_conflicts_that_the_sample_does_not_see(self, make: Make, large: Weights) -> None:
        other = {name: weights.copy() for name, weights in large.items()}
        other[UP][700:710] *= np.float32(1.5)  # between the runs
        result = inspect(make("Q5_K", large), make("Q4_K", other))
        assert kinds(result) == [SAME_ORIGINAL]
        assert not result.same_original
        n_conflicts = result.expectations[0].n_conflicts
        assert n_conflicts > 100
        sentence = " ".join(result.findings())
        assert f"{n_conflicts:,} of the {large[UP].size:,} weights" in sentence
        assert "do not come from one original" in sentence
        assert "nowhere" not in sentence
        together = result.to_json()["together"]
        assert together["contradicting_tensors"] == [UP]
        assert together["same_original"] is False
        assert together["expected_mse_ratio"] is None

    def test_a_conflict_or_two(
        self, make: Make, large: Weights, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = {name: weights.copy() for name, weights in large.items()}
        other[UP][700, 40] += np.float32(0.02)
        paths = [make("Q5_K", large), make("Q4_K", other)]
        result = inspect(*paths)
        n_conflicts = result.conflicts.n_conflicts
        assert 0 < n_conflicts <= 2
        assert result.same_original
        sentence, *_ = result.findings()
        assert f"they contradict each other on {n_conflicts} of the" in sentence
        assert main(["inspect", *map(str, paths)]) == 0
        printed = capsys.readouterr().out
        assert "<0.01%" in printed
        assert "0.00%" not in printed

    @pytest.mark.parametrize("is_same", [True, False])
    def test_codes_that_confine_nothing(
        self, make: Make, truth: Weights, rng: np.random.Generator, is_same: bool
    ) -> None:
        other = changed(truth, lambda x: rng.permuted(x.ravel()).reshape(x.shape))
        first = make("IQ2_S", truth if is_same else other, "vector")
        result = inspect(first, make("Q4_K"))
        assert result.conflicts.n_compared == 0
        assert result.same_original == is_same
        sentence = " ".join(result.findings())
        assert ("nothing shows it" in sentence) == is_same
        assert ("different models (correlation" in sentence) != is_same

    @pytest.mark.parametrize("size", [1.0, 2.0])
    def test_inputs_without_cells_beside_the_original(
        self, make: Make, truth: Weights, tmp_path: Path, size: float
    ) -> None:
        """They correlate perfectly, but are further off than their errors: as a merge says."""
        other = changed(truth, lambda x: size * x)
        paths = make("BF16"), make("IQ3_S", other)
        result = inspect(*paths)
        matrices = {name for name, x in truth.items() if x.ndim > 1}
        assert set(result.conflicts.unlike) == (matrices if size > 1 else set())
        assert result.same_original == (size == 1)
        assert ("something else than the others" in " ".join(result.findings())) == (size > 1)
        plan = plan_merge(paths, tmp_path / "out.gguf")
        if size > 1:
            with pytest.raises(PlanError, match="contradict each other on tensors"):
                execute_merge(plan, n_threads=2)
        else:
            execute_merge(plan, n_threads=2)

    def test_floats_are_sampled(self, make: Make, truth: Weights) -> None:
        sentence, *_ = inspect(make("F16"), make("Q4_K")).findings()
        assert "a sample was compared" in sentence
        sentence, *_ = inspect(make("Q5_K"), make("Q4_K"), make("F16")).findings()
        assert "nowhere" not in sentence


def test_a_file_that_is_there_twice(make: Make, tmp_path: Path) -> None:
    path, link = make("Q5_0"), tmp_path / "link.gguf"
    link.hardlink_to(path)
    assert f"{path}: given more than once" in inspect(path, path).findings()
    assert f"{path} and {link}: the same file" in inspect(path, link).findings()


def test_a_merge_is_named_once_with_all_its_parents(tiny: list[Path], tmp_path: Path) -> None:
    child = tmp_path / "merged.gguf"
    execute_merge(plan_merge(tiny, child), n_threads=2)
    found = [each for each in inspect(*tiny, child).findings() if "made from" in each]
    parents = " and ".join(map(str, tiny))
    assert found == [f"{child} was made from a merge of {parents}, not from the original"]

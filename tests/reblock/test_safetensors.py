"""Integers in safetensors to GGUF: every scheme packed by code written from its definition."""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray
from safetensors.numpy import save_file

from recover.errors import RecoverError
from recover.reblock.dispatch import open_source
from recover.reblock.integers import Request
from tests.support.reblock_files import read_gguf, reblock

BF16 = ml_dtypes.bfloat16
N, K = 96, 256
Array = NDArray[Any]


def pack(codes: Array, n_bits: int, axis: int) -> Array:
    """Unsigned codes to int32 words along an axis, the first code in the lowest bits."""
    moved = np.moveaxis(codes.astype(np.uint64), axis, -1)
    per_word = 32 // n_bits
    fields = moved.reshape(*moved.shape[:-1], -1, per_word)
    words = np.zeros(fields.shape[:-1], np.uint64)
    for i in range(per_word):
        words |= fields[..., i] << np.uint64(n_bits * i)
    return np.ascontiguousarray(np.moveaxis(words.astype(np.uint32).view(np.int32), -1, axis))


def spread(values: Array, length: int, axis: int = -1) -> Array:
    """Values per group to values per weight."""
    return np.repeat(values, length // values.shape[axis], axis)


def model(folder: Path, tensors: dict[str, Array], config: dict[str, Any] | None = None) -> Path:
    """A model folder."""
    folder.mkdir(exist_ok=True)
    save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors"
    )
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def random_scales(rng: np.random.Generator, shape: tuple[int, ...], kind: Any) -> Array:
    """Scales of a typical size, some of them negative."""
    return (rng.uniform(0.5, 2, shape) * rng.choice([-0.01, 0.01], shape)).astype(kind)


def check(source: Path, out: Path, truth: dict[str, tuple[str, Array]], **options: Any) -> Any:
    """Convert, and compare each weight with the truth in float64."""
    result = reblock(source, out, **options)
    assert result.exact
    assert all(tensor.verified for tensor in result.tensors)
    found = read_gguf(out)
    assert set(found) == set(truth)
    for name, (kind, weights) in truth.items():
        assert found[name][0] == kind, name
        assert np.array_equal(found[name][1].astype(np.float64), weights), name
    return result


def refusal(source: Path, folder: Path, **options: Any) -> str:
    out = folder / "refused"
    out.mkdir()
    with pytest.raises(RecoverError) as caught:
        reblock(source, out / "a.gguf", **options)
    assert not list(out.iterdir())
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 700
    return text


# compressed-tensors


def packed_int4(rng: np.random.Generator, n: int = N, k: int = K, group: int = 32) -> Any:
    """``pack-quantized`` as in Kimi-K2-Thinking: int4, groups of 32, bfloat16 scales."""
    codes = rng.integers(-8, 8, (n, k))
    scales = random_scales(rng, (n, k // group), BF16)
    tensors = {
        "weight_packed": pack(codes + 8, 4, 1),
        "weight_scale": scales,
        "weight_shape": np.array([n, k], np.int64),
    }
    return tensors, codes * spread(scales.astype(np.float64), k)


def named(name: str, tensors: dict[str, Array]) -> dict[str, Array]:
    return {f"{name}.{leaf}": each for leaf, each in tensors.items()}


COMPRESSED = {"quantization_config": {"quant_method": "compressed-tensors"}, "model_type": "kimi"}


@pytest.mark.parametrize("group", [32, 64, 256])
def test_int4_to_q4_0(group: int, rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, truth = packed_int4(rng, group=group)
    norm = rng.standard_normal(K).astype(BF16)
    source = model(tmp_path / "m", {**named("a.up", tensors), "a.norm.weight": norm}, COMPRESSED)
    expected = {"a.up.weight": ("Q4_0", truth), "a.norm.weight": ("BF16", norm.astype(np.float64))}
    result = check(source, tmp_path / "a.gguf", expected)
    groups = {each.tensor.name: each.tensor.group for each in result.tensors}
    assert groups == {"a.up.weight": group, "a.norm.weight": None}
    fields = GGUFReader(tmp_path / "a.gguf").fields
    assert fields["general.architecture"].contents() == "kimi"


@pytest.mark.parametrize("outtype", ["Q5_0", "Q8_0"])
def test_int4_fits_wider_types(outtype: str, rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, truth = packed_int4(rng)
    source = model(tmp_path / "m", named("a", tensors))
    check(source, tmp_path / "a.gguf", {"a.weight": (outtype, truth)}, outtype=outtype)


def test_int4_asymmetric_to_q5_0(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, _ = packed_int4(rng, group=64)
    codes, zeros = rng.integers(-8, 8, (N, K)), rng.integers(-8, 8, (N, K // 64))
    tensors["weight_packed"] = pack(codes + 8, 4, 1)
    tensors["weight_zero_point"] = pack(zeros + 8, 4, 0)
    scales = tensors["weight_scale"].astype(np.float64)
    truth = (codes - spread(zeros, K)) * spread(scales, K)
    source = model(tmp_path / "m", named("a", tensors))
    check(source, tmp_path / "a.gguf", {"a.weight": ("Q5_0", truth)})


def test_packed_int8_to_q8_0(rng: np.random.Generator, tmp_path: Path) -> None:
    codes = rng.integers(-128, 128, (N, K))
    scales = random_scales(rng, (N, 1), np.float16)
    tensors = {
        "weight_packed": pack(codes + 128, 8, 1),
        "weight_scale": scales,
        "weight_shape": np.array([N, K], np.int64),
    }
    truth = codes * scales.astype(np.float64)
    check(
        model(tmp_path / "m", named("a", tensors)),
        tmp_path / "a.gguf",
        {"a.weight": ("Q8_0", truth)},
    )


@pytest.mark.parametrize("shape", [(N, 1), (N, 4), (1,)])
@pytest.mark.parametrize("kind", [BF16, np.float16, np.float32])
def test_plain_int8_to_q8_0(
    shape: tuple[int, ...], kind: Any, rng: np.random.Generator, tmp_path: Path
) -> None:
    codes = rng.integers(-128, 128, (N, K)).astype(np.int8)
    scales = random_scales(rng, shape, BF16).astype(kind)
    tensors = {"weight": codes, "weight_scale": scales, "bias": np.ones(N, BF16)}
    per_row = np.broadcast_to(scales.astype(np.float64).reshape(-1, shape[-1]), (N, shape[-1]))
    truth = {"a.weight": ("Q8_0", codes * spread(per_row, K)), "a.bias": ("BF16", np.ones(N))}
    check(model(tmp_path / "m", named("a", tensors)), tmp_path / "a.gguf", truth)


def test_scales_in_float32_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    codes = rng.integers(-128, 128, (N, K)).astype(np.int8)
    scales = rng.uniform(0.001, 0.002, (N, 1)).astype(np.float32)
    source = model(tmp_path / "m", {"a.weight": codes, "a.weight_scale": scales})
    text = refusal(source, tmp_path)
    assert "tensor 'a.weight' (int8 x F32): the scale 0.00" in text
    assert "row 0, group 0 is not exact in float16; --allow-inexact" in text


@pytest.mark.parametrize(("outtype", "most"), [(None, 1e-7), ("BF16", 3e-3), ("Q8_0", 6e-3)])
def test_allowed_inexact_types_state_their_error(
    outtype: str | None, most: float, rng: np.random.Generator, tmp_path: Path
) -> None:
    codes = rng.integers(-128, 128, (N, K)).astype(np.int8)
    scales = rng.uniform(0.001, 0.002, (N, 1)).astype(np.float32)
    source = model(tmp_path / "m", {"a.weight": codes, "a.weight_scale": scales})
    out = tmp_path / "a.gguf"
    result = reblock(source, out, allow_inexact=True, outtype=outtype, verify=False)
    kind, found = read_gguf(out)["a.weight"]
    assert kind == (outtype or "F32")
    truth = codes * scales.astype(np.float64)
    error = np.sqrt(np.square(found - truth).mean() / np.square(truth).mean())
    (tensor,) = result.tensors
    assert not result.exact
    assert 0 < error < most
    assert tensor.relative_rmse == pytest.approx(error, rel=1e-9)
    assert f"relative rms error {error:.3g}" in tensor.reason
    assert tensor.n_different == np.count_nonzero(found != truth)


# GPTQ


def gptq(
    rng: np.random.Generator,
    zeros: Array,
    n_bits: int = 4,
    *,
    is_v2: bool = False,
) -> tuple[dict[str, Array], Array]:
    """Codes along the input dimension (rows), zero points (G, N) packed along the output's."""
    n_groups = len(zeros)
    codes = rng.integers(0, 1 << n_bits, (K, N))
    scales = random_scales(rng, (n_groups, N), np.float16)
    stored = zeros if is_v2 else zeros - 1
    tensors = {
        "qweight": pack(codes, n_bits, 0),
        "qzeros": pack(stored, n_bits, 1),
        "scales": scales,
        "g_idx": (np.arange(K) // (K // n_groups)).astype(np.int32),
    }
    expanded = spread(zeros, K, 0), spread(scales.astype(np.float64), K, 0)
    return tensors, ((codes - expanded[0]) * expanded[1]).T


def gptq_config(n_bits: int = 4, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "gptq", "bits": n_bits, **more}}


@pytest.mark.parametrize(("n_bits", "outtype"), [(4, "Q4_0"), (8, "Q8_0")])
@pytest.mark.parametrize("n_groups", [1, 2, 8])
def test_gptq_symmetric(
    n_bits: int, outtype: str, n_groups: int, rng: np.random.Generator, tmp_path: Path
) -> None:
    zeros = np.full((n_groups, N), 1 << (n_bits - 1))
    tensors, truth = gptq(rng, zeros, n_bits)
    source = model(tmp_path / "m", named("a", tensors), gptq_config(n_bits))
    check(source, tmp_path / "a.gguf", {"a.weight": (outtype, truth)})


@pytest.mark.parametrize(("is_v2", "has_config"), [(False, False), (False, True), (True, True)])
def test_gptq_asymmetric_to_q5_0(
    is_v2: bool, has_config: bool, rng: np.random.Generator, tmp_path: Path
) -> None:
    low = 0 if is_v2 else 1
    zeros = rng.integers(low, low + 16, (4, N))
    tensors, truth = gptq(rng, zeros, is_v2=is_v2)
    config = gptq_config(checkpoint_format="gptq_v2" if is_v2 else "gptq") if has_config else None
    check(
        model(tmp_path / "m", named("a", tensors), config),
        tmp_path / "a.gguf",
        {"a.weight": ("Q5_0", truth)},
    )


def test_gptq_act_order_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, _ = gptq(rng, np.full((4, N), 8))
    tensors["g_idx"] = rng.permutation(tensors["g_idx"])
    source = model(tmp_path / "m", named("a", tensors), gptq_config(desc_act=True))
    text = refusal(source, tmp_path)
    assert "module 'a': g_idx is not in order (act-order)" in text
    assert "no block of 32 has one scale" in text


def test_gptq_8_bit_asymmetric_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, truth = gptq(rng, rng.integers(100, 140, (4, N)), 8)
    source = model(tmp_path / "m", named("a", tensors), gptq_config(8))
    assert "no type holds codes from -139 to 155" in refusal(source, tmp_path)
    result = reblock(source, tmp_path / "a.gguf", allow_inexact=True)
    assert result.exact  # 9 bits times 11 bits fit into F32
    assert np.array_equal(read_gguf(tmp_path / "a.gguf")["a.weight"][1], truth)


def test_small_groups_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, _ = gptq(rng, np.full((16, N), 8))
    source = model(tmp_path / "m", named("a", tensors), gptq_config())
    assert "a scale per 16 are no whole blocks of 32" in refusal(source, tmp_path)


# AWQ


@pytest.mark.parametrize(
    ("has_config", "outtype"), [(False, "Q5_0"), (True, "Q5_0"), (True, "Q4_0")]
)
def test_awq(has_config: bool, outtype: str, rng: np.random.Generator, tmp_path: Path) -> None:
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    codes, zeros = rng.integers(0, 16, (K, N)), rng.integers(0, 16, (2, N))
    if outtype == "Q4_0":
        zeros[:] = 8
    scales = random_scales(rng, (2, N), np.float16)

    def interleave(columns: Array) -> Array:
        return pack(
            columns.reshape(len(columns), -1, 8)[:, :, order].reshape(len(columns), -1), 4, 1
        )

    tensors = {"qweight": interleave(codes), "qzeros": interleave(zeros), "scales": scales}
    truth = ((codes - spread(zeros, K, 0)) * spread(scales.astype(np.float64), K, 0)).T
    config = {"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}}
    source = model(tmp_path / "m", named("a", tensors), config if has_config else None)
    check(source, tmp_path / "a.gguf", {"a.weight": (outtype, truth)})
    tensor = open_source(source, Request()).tensors[0]
    start, end = 5 * K, 13 * K  # rows that are no whole words
    out = np.empty(tensor.outtype.n_bytes(end - start), np.uint8)
    tensor.encode(start, end, out)
    whole = np.empty(tensor.outtype.n_bytes(N * K), np.uint8)
    tensor.encode(0, N * K, whole)
    row_bytes = tensor.outtype.n_bytes(K)
    assert np.array_equal(out, whole[5 * row_bytes : 13 * row_bytes])
    assert tensor.reference is not None
    assert np.array_equal(tensor.reference(start, end).reshape(-1, K), truth[5:13])


# MLX


@pytest.mark.parametrize("kind", [np.float16, BF16])
@pytest.mark.parametrize("group", [32, 64])
def test_mlx_to_q4_1(kind: Any, group: int, rng: np.random.Generator, tmp_path: Path) -> None:
    codes = rng.integers(0, 16, (N, K))
    scales = random_scales(rng, (N, K // group), kind)
    biases = (-8 * scales.astype(np.float32)).astype(kind)
    tensors = {"weight": pack(codes, 4, 1).view(np.uint32), "scales": scales, "biases": biases}
    config = {"quantization": {"group_size": group, "bits": 4}}
    source = model(tmp_path / "m", named("a", tensors), config)
    result = reblock(source, tmp_path / "a.gguf")
    truth = codes * spread(scales.astype(np.float64), K) + spread(biases.astype(np.float64), K)
    kind_found, found = read_gguf(tmp_path / "a.gguf")["a.weight"]
    assert result.exact
    assert kind_found == "Q4_1"
    # Scale, offset and code are exact; a decoder rounds their sum to float32 once.
    assert np.array_equal(found, truth.astype(np.float32))


# FP8


def fp8(rng: np.random.Generator) -> Array:
    """All finite codes of e4m3."""
    codes = rng.permutation(np.resize(np.arange(256, dtype=np.uint8), N * K))
    codes[(codes & 127) == 127] = 3
    return codes.reshape(N, K).view(ml_dtypes.float8_e4m3fn)


@pytest.mark.parametrize("shape", ["tensor", "row", "tile"])
@pytest.mark.parametrize("suffix", ["weight_scale", "weight_scale_inv"])
def test_fp8_with_powers_of_two(
    shape: str, suffix: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    weight = fp8(rng)
    shapes = {"tensor": (), "row": (N, 1), "tile": (-(-N // 64), -(-K // 64))}
    scales = np.exp2(rng.integers(-100, 100, shapes[shape])).astype(np.float32)
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}}
    source = model(tmp_path / "m", {"a.weight": weight, f"a.{suffix}": scales}, config)
    full = np.asarray(scales, np.float64)
    if shape == "tile":
        full = np.repeat(np.repeat(full, 64, 0)[:N], 64, 1)[:, :K]
    truth = weight.astype(np.float64) * full
    check(source, tmp_path / "a.gguf", {"a.weight": ("BF16", truth)})


def test_fp8_with_other_scales_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    weight, scales = fp8(rng), rng.uniform(0.5, 1, (1, 2)).astype(np.float32)
    source = model(tmp_path / "m", {"a.weight": weight, "a.weight_scale_inv": scales})
    text = refusal(source, tmp_path)
    assert "weight_scale_inv has 2 scales that are no powers of two" in text
    result = reblock(source, tmp_path / "a.gguf", allow_inexact=True)
    assert "relative rms error" in result.tensors[0].reason
    assert result.tensors[0].relative_rmse < 1e-7


# Whole models


@pytest.mark.parametrize("method", ["bitsandbytes", "hqq"])
def test_unknown_schemes_are_refused(method: str, tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": method}}
    source = model(tmp_path / "m", {"a.weight": np.zeros((8, 64), np.uint8)}, config)
    text = refusal(source, tmp_path)
    assert "tensor 'a.weight' (U8 of shape [8, 64]) belongs to no known scheme" in text
    assert method in text


def test_tables_of_integers_are_copied(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, _ = packed_int4(rng)
    positions = np.arange(64, dtype=np.int64)[None]
    source = model(tmp_path / "m", {**named("a", tensors), "b.position_ids": positions})
    reblock(source, tmp_path / "a.gguf")
    (found,) = (t for t in GGUFReader(tmp_path / "a.gguf").tensors if t.name == "b.position_ids")
    assert (found.tensor_type.name, found.data.tolist()) == ("I64", positions.tolist())


def test_single_file_and_index(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, truth = packed_int4(rng)
    single = model(tmp_path / "m", named("a", tensors)) / "model.safetensors"
    check(single, tmp_path / "a.gguf", {"a.weight": ("Q4_0", truth)})
    folder = tmp_path / "sharded"
    folder.mkdir()
    weight_map = {}
    for i, (leaf, tensor) in enumerate(tensors.items()):
        file = f"model-{i + 1:05}-of-00003.safetensors"
        save_file({f"a.{leaf}": tensor}, folder / file)
        weight_map[f"a.{leaf}"] = file
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    check(folder, tmp_path / "b.gguf", {"a.weight": ("Q4_0", truth)})
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors: there is no such file" in refusal(folder, tmp_path)


LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}


def llama3_factors(scaling: dict[str, Any]) -> Array:
    """One frequency after the other, as in llama.cpp's convert_hf_to_gguf.py."""
    factors = []
    context = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    for i in range(0, 64, 2):
        wave = 2 * math.pi * 10000.0 ** (i / 64)
        if wave < context / high:
            factors.append(1.0)
        elif wave > context / low:
            factors.append(scaling["factor"])
        else:
            smooth = (context / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    assert 1.0 in factors
    assert 8.0 in factors
    assert any(1.5 < factor < 7.5 for factor in factors)
    return np.array(factors, np.float32).astype(np.float64)


def test_llama_names_metadata_and_order_of_rows(rng: np.random.Generator, tmp_path: Path) -> None:
    from tests.oracle.llama_cpp import LlamaModel

    sizes = {
        "self_attn.q_proj": (256, 256, "attn_q"),
        "self_attn.k_proj": (128, 256, "attn_k"),
        "self_attn.v_proj": (128, 256, "attn_v"),
        "self_attn.o_proj": (256, 256, "attn_output"),
        "mlp.gate_proj": (96, 256, "ffn_gate"),
        "mlp.up_proj": (96, 256, "ffn_up"),
        "mlp.down_proj": (256, 96, "ffn_down"),
    }
    tensors: dict[str, Array] = {}
    truth: dict[str, tuple[str, Array]] = {}
    for name, (n, k, own) in sizes.items():
        found, weights = packed_int4(rng, n, k)
        tensors |= named(f"model.layers.0.{name}", found)
        if own in ("attn_q", "attn_k"):
            # as in llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute
            n_heads = 4 if own == "attn_q" else 2
            heads = weights.reshape(n_heads, 2, n // n_heads // 2, k)
            weights = heads.swapaxes(1, 2).reshape(n, k)
        truth[f"blk.0.{own}.weight"] = ("Q4_0", weights)
    embedding = rng.standard_normal((64, 256)).astype(BF16)
    for name, own in (("model.embed_tokens", "token_embd"), ("lm_head", "output")):
        tensors[f"{name}.weight"] = embedding
        truth[f"{own}.weight"] = ("BF16", embedding.astype(np.float64))
    for name, own in (
        ("model.norm", "output_norm"),
        ("model.layers.0.input_layernorm", "blk.0.attn_norm"),
        ("model.layers.0.post_attention_layernorm", "blk.0.ffn_norm"),
    ):
        tensors[f"{name}.weight"] = rng.uniform(0.9, 1.1, 256).astype(BF16)
        truth[f"{own}.weight"] = ("F32", tensors[f"{name}.weight"].astype(np.float64))
    bias = rng.standard_normal(128).astype(np.float16)
    tensors["model.layers.0.self_attn.k_proj.bias"] = bias
    moved = bias.astype(np.float64).reshape(2, 2, 32).swapaxes(1, 2).reshape(128)
    truth["blk.0.attn_k.bias"] = ("F32", moved)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(32, np.float32)
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    truth["rope_freqs.weight"] = ("F32", llama3_factors(scaling))
    config = {**LLAMA, **COMPRESSED, "model_type": "llama", "rope_scaling": scaling}
    source = model(tmp_path / "m", tensors, config)
    out = tmp_path / "a.gguf"
    check(source, out, truth, arch="llama")
    fields = {key: field.contents() for key, field in GGUFReader(out).fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["llama.attention.head_count_kv"] == 2
    assert fields["llama.rope.dimension_count"] == 64
    with LlamaModel(out, n_ctx=64) as loaded:
        assert np.isfinite(loaded.logits(np.arange(9))).all()


def test_experts_are_stacked(rng: np.random.Generator, tmp_path: Path) -> None:
    config = {
        **LLAMA,
        **COMPRESSED,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 3,
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "rope_scaling": {
            "type": "yarn",
            "factor": 32,
            "mscale_all_dim": 1,
            "original_max_position_embeddings": 4096,
        },
    }
    tensors: dict[str, Array] = {}
    expected = []
    for expert in (1, 0, 2):
        found, weights = packed_int4(rng)
        tensors |= named(f"model.layers.0.mlp.experts.{expert}.up_proj", found)
        expected.append((expert, weights))
    tensors["model.layers.0.mlp.gate.e_score_correction_bias"] = np.ones(3, np.float32)
    source = model(tmp_path / "m", tensors, config)
    stack = np.stack([weights for _, weights in sorted(expected, key=lambda pair: pair[0])])
    truth = {
        "blk.0.ffn_up_exps.weight": ("Q4_0", stack),
        "blk.0.exp_probs_b.bias": ("F32", np.ones(3)),
    }
    check(source, tmp_path / "a.gguf", truth, arch="kimi")
    fields = {
        key: field.contents() for key, field in GGUFReader(tmp_path / "a.gguf").fields.items()
    }
    assert fields["deepseek2.attention.key_length"] == 48
    assert fields["deepseek2.expert_gating_func"] == 2
    assert fields["deepseek2.rope.scaling.type"] == "yarn"
    assert type(fields["deepseek2.rope.scaling.factor"]) is float
    assert fields["deepseek2.rope.scaling.original_context_length"] == 4096
    assert fields["deepseek2.rope.scaling.yarn_log_multiplier"] == np.float32(0.1)
    for leaf in ("weight_packed", "weight_scale", "weight_shape"):
        del tensors[f"model.layers.0.mlp.experts.1.up_proj.{leaf}"]
    source = model(tmp_path / "m", tensors, config)
    assert "expert 1 is missing" in refusal(source, tmp_path, arch="kimi")


@pytest.mark.parametrize("value", ["x", -1, 0, 2**40, None, [1], {"a": 1}, True, 1.5])
@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads", "rope_scaling"])
def test_strange_configurations(
    key: str, value: Any, rng: np.random.Generator, tmp_path: Path
) -> None:
    tensors, _ = packed_int4(rng)
    other = {"type": value} if key == "rope_scaling" else value
    config = {**LLAMA, **COMPRESSED, key: other}
    source = model(tmp_path / "m", named("model.layers.0.mlp.up_proj", tensors), config)
    if key == "rope_scaling" and value is None:
        reblock(source, tmp_path / "a.gguf", arch="llama")
        return
    assert f"config.json: {key}" in refusal(source, tmp_path, arch="llama")


def test_names_without_a_place_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, _ = packed_int4(rng)
    source = model(
        tmp_path / "m", named("model.layers.0.strange", tensors), {**LLAMA, **COMPRESSED}
    )
    assert "'model.layers.0.strange.weight' has no place" in refusal(source, tmp_path, arch="llama")

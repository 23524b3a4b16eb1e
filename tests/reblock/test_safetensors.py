"""Integers in safetensors to GGUF: every scheme packed by code written from its definition."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGUFReader

from recover.cli.reblock import _TYPES
from recover.quants import types_of_integers
from recover.reblock.dispatch import open_original
from recover.reblock.integers import Request
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
from tests.support.quantized_folders import COMPRESSED, check, gptq_config, model, named, refusal
from tests.support.reblock_files import read_gguf, reblock


@pytest.mark.parametrize("group", [32, 64, 256])
def test_int4_to_q4_0(group: int, rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, truth = packed_int4(rng, group=group)
    norm = rng.standard_normal(K).astype(BF16)
    source = model(tmp_path / "m", {**named("a.up", tensors), "a.norm.weight": norm}, COMPRESSED)
    expected: dict[str, tuple[str, Array]] = {
        "a.up.weight": ("Q4_0", truth),
        "a.norm.weight": ("BF16", norm.astype(np.float64)),
    }
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
    truth: dict[str, tuple[str, Array]] = {
        "a.weight": ("Q8_0", codes * spread(per_row, K)),
        "a.bias": ("BF16", np.ones(N)),
    }
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
    tensor = open_original(source, Request()).tensors[0]
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


def test_types_of_the_command_line_are_those_that_hold_originals() -> None:
    others = {"auto", "bf16", "mxfp4", "nvfp4"}
    assert set(_TYPES) == others | {name.lower() for name in types_of_integers()}

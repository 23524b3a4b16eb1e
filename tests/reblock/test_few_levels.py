"""Ternary originals become TQ2_0; AutoRound's become what its layouts do."""

from pathlib import Path

import numpy as np
import pytest

from recover.containers.gguf.reader import open_gguf
from tests.support.packed_weights import BF16, Array, K, N, gptq, pack, random_scales, spread
from tests.support.quantized_folders import check, model, named, refusal
from tests.support.reblock_files import read_gguf, reblock


def of_q2_0(path: Path) -> tuple[str, Array]:
    """The one tensor of a file, which ends with its blocks: d, and four values a byte.

    gguf-py does not know the type.
    """
    (tensor,) = open_gguf(path).tensors.values()
    length, n_rows = tensor.dims
    blocks = np.fromfile(path, np.uint8)[-n_rows * length // 64 * 18 :].reshape(-1, 18)
    d = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float64)
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").reshape(-1, 64, 2)
    values = (bits @ np.array([1, 2])).astype(int) - 1
    return tensor.type.name, (values * d).reshape(n_rows, length)


def bitnet(rng: np.random.Generator, scale: float) -> tuple[dict[str, Array], Array]:
    """Transformers' layout: codes plus 1 of four rows, a quarter of all apart, in a byte."""
    codes = rng.integers(-1, 2, (N, K))
    quarters = (codes + 1).reshape(4, N // 4, K).astype(np.uint8)
    packed = np.bitwise_or.reduce([each << (2 * i) for i, each in enumerate(quarters)])
    return {"weight": packed, "weight_scale": np.array([scale], BF16)}, codes


@pytest.mark.parametrize("multiplies", [True, False])
def test_bitnet(multiplies: bool, rng: np.random.Generator, tmp_path: Path) -> None:
    scale = 1.2265625 if multiplies else 64
    tensors, codes = bitnet(rng, scale)
    config = {"quant_method": "bitnet", "quantization_mode": "offline"}
    if multiplies:
        config["linear_class"] = "autobitlinear"
    source = model(tmp_path / "m", named("a", tensors), {"quantization_config": config})
    truth = codes * scale if multiplies else codes / scale
    check(source, tmp_path / "a.gguf", {"a.weight": ("TQ2_0", truth)})


def test_a_scale_that_divides_may_have_no_exact_inverse(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    tensors, codes = bitnet(rng, 3)
    config = {"quantization_config": {"quant_method": "bitnet"}}
    source = model(tmp_path / "m", named("a", tensors), config)
    assert "is not exact in float16" in refusal(source, tmp_path)
    result = reblock(source, tmp_path / "a.gguf", outtype="TQ2_0", allow_inexact=True)
    kind, found = read_gguf(tmp_path / "a.gguf")["a.weight"]
    assert (kind, result.exact) == ("TQ2_0", False)
    assert np.array_equal(np.sign(found), codes)
    assert "every code is kept" in result.tensors[0].reason
    assert result.tensors[0].relative_rmse < 2.0**-11


def test_a_code_that_is_not_ternary_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, _ = bitnet(rng, 64)
    tensors["weight"][3, 5] = 0xC0
    config = {"quantization_config": {"quant_method": "bitnet"}}
    source = model(tmp_path / "m", named("a", tensors), config)
    assert "a code is 3" in refusal(source, tmp_path)


@pytest.mark.parametrize(("length", "outtype"), [(K, "TQ2_0"), (96, "Q4_0")])
def test_ternary_weights_in_bfloat16(
    length: int, outtype: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    codes = rng.integers(-1, 2, (N, length))
    weight = (codes * random_scales(rng, (N, 1), BF16).astype(np.float64)).astype(BF16)
    source = model(tmp_path / "m", {"a.weight": weight})
    expected = {"a.weight": (outtype, weight.astype(np.float64))}
    check(source, tmp_path / "a.gguf", expected)


def test_ternary_rows_that_tq2_0_does_not_divide(rng: np.random.Generator, tmp_path: Path) -> None:
    codes = rng.integers(-1, 2, (N, 192))
    quarters = (codes + 1).reshape(4, N // 4, 192).astype(np.uint8)
    packed = np.bitwise_or.reduce([each << (2 * i) for i, each in enumerate(quarters)])
    tensors = {"weight": packed, "weight_scale": np.array([32], BF16)}
    config = {"quantization_config": {"quant_method": "bitnet"}}
    floats = {"a.weight": (codes * 0.0703125).astype(BF16)}
    for arrays, settings, scale in (
        (named("a", tensors), config, 1 / 32),
        (floats, None, 0.0703125),
    ):
        source = model(tmp_path / "m", arrays, settings)
        assert reblock(source, tmp_path / "a.gguf").exact
        kind, found = of_q2_0(tmp_path / "a.gguf")
        assert kind == "Q2_0"
        assert np.array_equal(found, codes * scale)
        (tmp_path / "m" / "config.json").unlink(missing_ok=True)


def test_a_wanted_type_of_three_values(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, codes = bitnet(rng, 64)
    config = {"quantization_config": {"quant_method": "bitnet"}}
    source = model(tmp_path / "m", named("a", tensors), config)
    assert reblock(source, tmp_path / "a.gguf", outtype="Q2_0").exact
    kind, found = of_q2_0(tmp_path / "a.gguf")
    assert kind == "Q2_0"
    assert np.array_equal(found, codes / 64)
    assert "Q1_0 does not hold it exactly" in refusal(source, tmp_path, outtype="Q1_0")


@pytest.mark.parametrize(("group", "outtype"), [(128, "Q1_0"), (256, "Q1_0"), (64, "Q2_0")])
def test_binary_weights_in_bfloat16(
    group: int, outtype: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    signs = rng.choice([-1, 1], (N, K))
    scales = np.abs(random_scales(rng, (N, K // group), BF16))
    weight = (signs * spread(scales.astype(np.float64), K)).astype(BF16)
    source = model(tmp_path / "m", {"a.weight": weight})
    assert reblock(source, tmp_path / "a.gguf").exact
    (tensor,) = open_gguf(tmp_path / "a.gguf").tensors.values()
    assert tensor.type.name == outtype
    found = tensor.read(0, weight.size).reshape(weight.shape)
    assert np.array_equal(found, weight.astype(np.float32))
    if outtype == "Q1_0":
        bits = np.unpackbits(np.fromfile(tmp_path / "a.gguf", np.uint8)[-16:], bitorder="little")
        assert np.array_equal(bits == 1, signs[-1, -128:] > 0)


def test_zeros_among_binary_weights(rng: np.random.Generator, tmp_path: Path) -> None:
    """A block of zeros has the scale 0; a single zero makes weights ternary."""
    weight = (rng.choice([-0.5, 0.5], (N, K))).astype(BF16)
    weight[3] = 0
    source = model(tmp_path / "m", {"a.weight": weight})
    result = reblock(source, tmp_path / "a.gguf")
    assert result.exact
    (tensor,) = open_gguf(tmp_path / "a.gguf").tensors.values()
    assert tensor.type.name == "Q1_0"
    assert np.array_equal(tensor.read(0, N * K).reshape(N, K), weight.astype(np.float32))
    weight[5, 7] = 0
    source = model(tmp_path / "m", {"a.weight": weight})
    check(source, tmp_path / "b.gguf", {"a.weight": ("TQ2_0", weight.astype(np.float64))})


AUTOROUND = {"quant_method": "auto-round", "bits": 4, "sym": True, "group_size": 64}


@pytest.mark.parametrize(
    ("packing", "is_v2"), [("auto_round", True), ("auto_round:auto_gptq", False)]
)
def test_autoround_in_the_layout_of_gptq(
    packing: str, is_v2: bool, rng: np.random.Generator, tmp_path: Path
) -> None:
    tensors, truth = gptq(rng, np.full((4, N), 8), is_v2=is_v2)
    config = {"quantization_config": {**AUTOROUND, "packing_format": packing}}
    source = model(tmp_path / "m", named("a", tensors), config)
    result = check(source, tmp_path / "a.gguf", {"a.weight": ("Q4_0", truth)})
    assert result.tensors[0].tensor.stored_as == "AutoRound, as GPTQ 4-bit symmetric"


def test_autoround_in_the_layout_of_awq(rng: np.random.Generator, tmp_path: Path) -> None:
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    codes, zeros = rng.integers(0, 16, (K, N)), np.full((4, N), 8)
    scales = random_scales(rng, (4, N), np.float16)

    def interleaved(columns: Array) -> Array:
        words = columns.reshape(len(columns), -1, 8)[:, :, order]
        return pack(words.reshape(len(columns), -1), 4, 1)

    tensors = {"qweight": interleaved(codes), "qzeros": interleaved(zeros), "scales": scales}
    truth = ((codes - 8) * spread(scales.astype(np.float64), K, 0)).T
    config = {"quantization_config": {**AUTOROUND, "packing_format": "auto_round:auto_awq"}}
    source = model(tmp_path / "m", named("a", tensors), config)
    check(source, tmp_path / "a.gguf", {"a.weight": ("Q4_0", truth)})


def test_rotated_weights_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, _ = gptq(rng, np.full((4, N), 8))
    config = {"quantization_config": {**AUTOROUND, "hadamard_config": {"block": 32}}}
    source = model(tmp_path / "m", named("a", tensors), config)
    assert "were rotated" in refusal(source, tmp_path)

"""Ternary originals become TQ2_0; AutoRound's become what its layouts do."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.quantized_folders import (
    BF16,
    Array,
    K,
    N,
    check,
    gptq,
    model,
    named,
    pack,
    random_scales,
    refusal,
    spread,
)
from tests.support.reblock_files import read_gguf, reblock


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

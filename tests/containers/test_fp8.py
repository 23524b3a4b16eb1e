"""FP8 weights: what their codes prove of the weights, by the arithmetic of the encoder."""

import json
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from recover.containers.huggingface.formats import Matrix, read_matrix
from recover.errors import SafetensorsError
from tests.support.encoders import fp8
from tests.support.foreign_modules import FLOATS, heavy_tailed, module_of, rounded, state
from tests.support.format_checks import check_matrix, check_widened, matrix_of
from tests.support.golden import golden
from tests.support.hostile_modules import check_hostile, is_refused

WAYS: dict[str, dict[str, Any]] = {
    "F32": {},
    "BF16": {"arithmetic": "BF16"},
    "BF16 factor": {"arithmetic": "BF16", "reciprocal": True},
    "F16": {"arithmetic": "F16", "seen_as": "F16"},
    "F16 factor": {"arithmetic": "F16", "seen_as": "F16", "reciprocal": True},
    "power of two": {"power_of_two": True},
    "E5M2": {"kind": "e5m2"},
    "of F32": {"seen_as": "F32"},
}


def narrowed(arrays: dict[str, Any]) -> dict[str, Any]:
    """With scales that are stored as bfloat16, whatever they were."""
    return {
        leaf: each.astype(ml_dtypes.bfloat16) if "scale" in leaf else each
        for leaf, each in arrays.items()
    }


def check(rng: np.random.Generator, shape: tuple[int, int], extent: str, way: str) -> Matrix:
    w = heavy_tailed(rng, *shape)
    how = WAYS[way]
    seen = how.get("seen_as", "BF16")
    matrix = matrix_of(fp8.encode(w, extent, **how))
    check_matrix(matrix, rounded(w, seen))
    for original in FLOATS:  # cast to what the encoder saw
        if original != seen:
            x = rounded(w, original)
            check_widened(matrix_of(fp8.encode(x, extent, **how)), x)
    return matrix


@pytest.mark.parametrize("extent", ["block", "row", "tensor"])
@pytest.mark.parametrize("way", WAYS)
def test_weights_lie_in_their_cells(extent: str, way: str, rng: np.random.Generator) -> None:
    matrix = check(rng, (272, 400), extent, way)
    assert matrix.has_cells
    assert matrix.type.name == ("FP8_E5M2" if way == "E5M2" else "FP8")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_many_weights_lie_in_their_cells(way: str, rng: np.random.Generator) -> None:
    for extent in ("block", "row", "tensor"):
        check(rng, (2048, 1700), extent, way)


def test_scales_that_were_rounded_afterwards(rng: np.random.Generator) -> None:
    """As Qwen's: whatever the encoder had, the file has bfloat16 scales."""
    for arithmetic, reciprocal in (("F32", False), ("BF16", True)):
        w = heavy_tailed(rng, 256, 512)
        arrays = fp8.encode(w, "block", arithmetic=arithmetic, reciprocal=reciprocal)
        check_matrix(matrix_of(narrowed(arrays)), rounded(w, "BF16"))


def test_exponents_as_scales(rng: np.random.Generator) -> None:
    w = rounded(heavy_tailed(rng, 130, 256), "BF16")
    arrays = fp8.encode(w, "block", power_of_two=True)
    module = module_of(arrays)
    scale = module.tensors["weight_scale_inv"]
    exponents = (scale.raw.view("<u4") >> 23).astype(np.uint8)
    stored = replace(scale, dtype="F8_E8M0", raw=exponents)
    matrix = read_matrix(replace(module, tensors={**module.tensors, "weight_scale_inv": stored}))
    assert matrix is not None
    check_matrix(matrix, w)
    np.testing.assert_array_equal(state(matrix).value, state(matrix_of(arrays)).value)
    # Such scales may clip, others do not.
    codes = np.full((4, 8), 0x7E, np.uint8).view(ml_dtypes.float8_e4m3fn)
    scaled = {"weight": codes, "weight_scale": np.array(0.3, np.float32)}
    for config, is_open in (({}, False), ({"scale_fmt": "ue8m0"}, True)):
        found = state(matrix_of(scaled, config=config))
        assert np.isinf(found.upper).all() == is_open
        assert np.all(np.isfinite(found.variance))


@pytest.mark.parametrize("as_bytes", [False, True])
def test_scales_of_groups(as_bytes: bool, rng: np.random.Generator) -> None:
    w = rounded(heavy_tailed(rng, 40, 320), "BF16")
    arrays = fp8.encode(w.reshape(-1, 32), "row", power_of_two=as_bytes)
    scale = arrays["weight_scale"].reshape(40, 10)
    if as_bytes:
        scale = (scale.view(np.uint32) >> 23).astype(np.uint8)
    matrix = matrix_of({"weight": arrays["weight"].reshape(w.shape), "weight_scale": scale})
    check_matrix(matrix, w, within=0.3)  # one weight of each group is known
    assert matrix.label == "FP8 E4M3, groups of 32"


def test_without_scale(rng: np.random.Generator) -> None:
    w = rounded(heavy_tailed(rng, 64, 96) * 100, "BF16")
    matrix = matrix_of({"weight": w.astype(ml_dtypes.float8_e4m3fn)})
    check_matrix(matrix, w)
    assert matrix.label == "FP8 E4M3, no scale"
    with pytest.raises(SafetensorsError, match="scale_weight is no scale that is known"):
        matrix_of(
            {"weight": w.astype(ml_dtypes.float8_e4m3fn), "scale_weight": np.ones(1, np.float32)}
        )


@pytest.mark.parametrize("scheme", ["fp8_dynamic", "fp8_block", "fp8_tensor", "mxfp8a16"])
def test_llm_compressor(scheme: str) -> None:
    case = golden(scheme)
    matrix = read_matrix(case.module)
    assert matrix is not None
    check_matrix(matrix, case.original, within=0.2)
    value = state(matrix).value.reshape(case.original.shape)
    np.testing.assert_array_equal(rounded(value, "BF16"), case.decoded)


def test_all_codes_mean_what_they_mean() -> None:
    for kind, n_broken in (("e4m3", 2), ("e5m2", 6)):
        codes = np.arange(256, dtype=np.uint8).reshape(2, 128).view(fp8.KINDS[kind])
        found = state(matrix_of({"weight": codes, "weight_scale": np.array(0.75, np.float32)}))
        value = codes.astype(np.float32).reshape(-1) * np.float32(0.75)
        np.testing.assert_array_equal(found.value, value)
        known = np.isfinite(found.variance)
        assert np.count_nonzero(~known) == n_broken + (kind == "e5m2") * 2
        assert np.all(np.isneginf(found.lower[~known]) & np.isposinf(found.upper[~known]))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_scales_that_no_encoder_writes_prove_nothing(scale: float) -> None:
    codes = np.full((2, 16), 0x30, np.uint8).view(ml_dtypes.float8_e4m3fn)
    found = state(matrix_of({"weight": codes, "weight_scale": np.array(scale, np.float32)}))
    assert np.all(np.isneginf(found.lower) & np.isposinf(found.upper) & np.isinf(found.variance))
    np.testing.assert_array_equal(found.value, np.full(32, np.float32(0.5) * np.float32(scale)))


@pytest.mark.parametrize("name", ["SmoothQuantModifier", "AWQModifier", "SpinQuantModifier"])
def test_weights_that_were_changed_before_are_refused(name: str) -> None:
    case = golden("fp8_dynamic")
    recipe = case.module.recipe.replace("QuantizationModifier", name)
    assert recipe != case.module.recipe
    assert is_refused(replace(case.module, recipe=recipe))


def test_compensated_codes_have_no_cells() -> None:
    case = golden("fp8_dynamic")
    recipe = case.module.recipe.replace("QuantizationModifier", "GPTQModifier")
    plain, matrix = read_matrix(case.module), read_matrix(replace(case.module, recipe=recipe))
    assert plain is not None
    assert matrix is not None
    assert not matrix.has_cells
    known, found = state(plain), state(matrix)
    np.testing.assert_array_equal(found.value, known.value)
    assert np.all(np.isneginf(found.lower) & np.isposinf(found.upper))
    assert np.all(found.variance > known.variance)


def test_searched_scales_may_clip() -> None:
    """The largest code is open where the recipe or the configuration says so."""
    codes = np.full((2, 16), 0x7E, np.uint8).view(ml_dtypes.float8_e4m3fn)
    arrays = {"weight": codes, "weight_scale": np.full((2, 1), 0.3, np.float32)}
    config = {"config_groups": {"group_0": {"weights": {"observer": "memoryless_mse"}}}}
    for more in ({"config": config}, {"recipe": json.dumps(config)}):
        assert np.isinf(state(matrix_of(arrays, **more)).upper).all()
    assert np.isfinite(state(matrix_of(arrays)).upper).all()


def test_damaged_modules(rng: np.random.Generator) -> None:
    w = heavy_tailed(rng, 8, 32)
    for extent, config in (("block", {"weight_block_size": [4, 16]}), ("row", {}), ("tensor", {})):
        assert check_hostile(fp8.encode(w, extent), config=config) > 10

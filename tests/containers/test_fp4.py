"""NVFP4 and MXFP4 weights of safetensors: what their codes prove of the weights."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recover.containers.huggingface.formats import Matrix, read_matrix
from recover.containers.huggingface.formats.fp4 import MXFP4, NVFP4, NVFP4_FITTED
from recover.containers.huggingface.rows import Rows
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.errors import SafetensorsError
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Source
from recover.quants import F32Array
from tests.support.encoders.fp4 import encode_mxfp4, encode_nvfp4
from tests.support.foreign_modules import (
    FLOATS,
    Array,
    heavy_tailed,
    module_of,
    n_outside,
    rounded,
    state,
)
from tests.support.format_checks import check_matrix, check_widened, matrix_of
from tests.support.golden import golden
from tests.support.hostile_modules import check_hostile, is_refused

FITTED = {"config_groups": {"group_0": {"weights": {"observer": "memoryless_minmax"}}}}
SEARCHED = {"config_groups": {"group_0": {"weights": {"observer": "memoryless_mse"}}}}
WAYS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "ModelOpt": (encode_nvfp4, {}, {}),
    "compressed-tensors": (encode_nvfp4, {"by": "compressed-tensors"}, FITTED),
    "in BF16": (encode_nvfp4, {"by": "compressed-tensors", "arithmetic": "BF16"}, FITTED),
    "of F32": (encode_nvfp4, {"seen_as": "F32"}, FITTED),
    "MXFP4": (encode_mxfp4, {"how": "floor"}, {}),
    "MXFP4 to even": (encode_mxfp4, {"how": "even"}, {}),
    "MXFP4 up": (encode_mxfp4, {"how": "up"}, {}),
}


def check(rng: np.random.Generator, shape: tuple[int, int], way: str) -> Matrix:
    w = heavy_tailed(rng, *shape)
    encode, how, config = WAYS[way]
    seen = how.get("seen_as", "BF16")
    matrix = matrix_of(encode(w, **how), config=config)
    check_matrix(matrix, rounded(w, seen), within=0.12)
    for original in FLOATS:  # cast to what the encoder saw
        if original != seen:
            x = rounded(w, original)
            check_widened(matrix_of(encode(x, **how), config=config), x)
    return matrix


@pytest.mark.parametrize("way", WAYS)
def test_weights_lie_in_their_cells(way: str, rng: np.random.Generator) -> None:
    matrix = check(rng, (91, 1024), way)
    assert matrix.has_cells
    fitted = NVFP4_FITTED if WAYS[way][2] else NVFP4
    assert matrix.type is (MXFP4 if way.startswith("MXFP4") else fitted)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_many_weights_lie_in_their_cells(way: str, rng: np.random.Generator) -> None:
    check(rng, (3000, 1600), way)


@pytest.mark.parametrize("scheme", ["nvfp4a16", "mxfp4a16"])
def test_llm_compressor(scheme: str) -> None:
    case = golden(scheme)
    matrix = read_matrix(case.module)
    assert matrix is not None
    stated = state(matrix)
    assert n_outside(stated, case.original) == 0
    value = stated.value.reshape(case.original.shape)
    np.testing.assert_array_equal(rounded(value, "BF16"), case.decoded)


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_mlx(mode: str) -> None:
    case = golden(f"mlx_{mode}")
    matrix = read_matrix(case.module)
    assert matrix is not None
    assert matrix.leaves >= set(case.module.tensors)
    stated = state(matrix)
    assert n_outside(stated, case.original) == 0
    np.testing.assert_array_equal(stated.value.reshape(case.original.shape), case.decoded)
    assert is_refused(replace(case.module, config={"mode": "other"}))
    module = replace(case.module, config={})
    assert not is_refused(module)
    arrays = {leaf: tensor.raw.view(np.uint8) for leaf, tensor in module.tensors.items()}
    weight = arrays["weight"].view("<u4").reshape(64, -1).astype(np.uint32)
    assert check_hostile({"weight": weight, "scales": arrays["scales"].reshape(64, -1)}) > 10


def test_signs_of_zeros_are_told(rng: np.random.Generator) -> None:
    w = heavy_tailed(rng, 64, 256)
    arrays = encode_nvfp4(w)
    stated = state(matrix_of(arrays))
    at_zero = stated.value == 0
    assert np.all(stated.lower[at_zero & ~np.signbit(stated.value)] > -1e-30)
    assert np.all(stated.upper[at_zero & np.signbit(stated.value)] < 1e-30)
    # Not where the encoder dropped them.
    low, high = arrays["weight"] & 15, arrays["weight"] >> 4
    low[low == 8], high[high == 8] = 0, 0
    dropped = state(matrix_of({**arrays, "weight": low | high << 4}))
    assert n_outside(dropped, rounded(w, "BF16")) == 0
    np.testing.assert_array_equal(dropped.upper[at_zero], -dropped.lower[at_zero])


@pytest.mark.parametrize("shrink", [1.0, 0.7])
def test_the_largest_weight_is_confined_where_scales_are_known_to_fit(
    shrink: float, rng: np.random.Generator
) -> None:
    w = rounded(heavy_tailed(rng, 64, 256), "BF16")
    arrays = encode_nvfp4(w, shrink=shrink)
    ends = np.abs(w).reshape(-1, 16) == np.abs(w).reshape(-1, 16).max(1, keepdims=True)
    ends = ends.reshape(-1)
    for config in ({}, SEARCHED):
        stated = state(matrix_of(arrays, config=config))
        assert n_outside(stated, w) == 0
        assert np.all(np.isinf(stated.upper - stated.lower)[ends])
    if shrink == 1:
        stated = state(matrix_of(arrays, config=FITTED))
        assert np.mean(np.isinf(stated.upper - stated.lower)) < 1e-3  # the block of scale 448
        width = (stated.upper - stated.lower)[ends] / np.abs(w.reshape(-1)[ends])
        assert np.quantile(width, 0.3) < 0.15


def test_blocks_that_were_not_fitted_are_open(rng: np.random.Generator) -> None:
    """As where scales are searched for: some blocks have no outermost code."""
    w = rounded(heavy_tailed(rng, 64, 256), "BF16")
    arrays = encode_nvfp4(w, shrink=1.15)
    stated = state(matrix_of(arrays, config=FITTED))
    assert n_outside(stated, w) == 0
    scale = arrays["weight_scale"].astype(np.float32).reshape(-1) * arrays["weight_scale_2"]
    is_end = np.abs(stated.value).reshape(-1, 16) == 6 * scale[:, None]
    assert is_end.any()
    np.testing.assert_array_equal(np.isinf(stated.upper - stated.lower), is_end.reshape(-1))


def test_exponents_may_be_stored_as_such(rng: np.random.Generator) -> None:
    arrays = encode_mxfp4(heavy_tailed(rng, 8, 64))
    module = module_of(arrays)
    scale = replace(module.tensors["weight_scale"], dtype="F8_E8M0")
    other = read_matrix(replace(module, tensors={**module.tensors, "weight_scale": scale}))
    assert other is not None
    for one, same in zip(state(matrix_of(arrays)), state(other), strict=True):
        np.testing.assert_array_equal(one, same)


def changed(arrays: dict[str, Array], **more: Array) -> dict[str, Array]:
    return {**arrays, **more}


def test_weights_that_were_changed_before_are_refused(rng: np.random.Generator) -> None:
    arrays = encode_nvfp4(heavy_tailed(rng, 8, 64))
    one = np.ones(64, np.float32)
    for leaf in ("pre_quant_scale", "weight_zero_point", "weight_global_scale"):
        with pytest.raises(SafetensorsError, match=leaf):
            matrix_of(changed(arrays, **{leaf: one}))
    for recipe in ("SmoothQuantModifier", "AWQModifier", "QuIPModifier"):
        assert is_refused(module_of(arrays, recipe=recipe))
    matrix = matrix_of(arrays, recipe="GPTQModifier")
    assert not matrix.has_cells
    assert np.all(np.isinf(state(matrix).upper))


def test_scales_that_no_encoder_writes_prove_nothing(rng: np.random.Generator) -> None:
    arrays = encode_nvfp4(heavy_tailed(rng, 8, 64))
    for common in (0, -1, np.nan, np.inf):
        scale = np.array(common, np.float32)
        stated = state(matrix_of(changed(arrays, weight_scale_2=scale)))
        assert np.all(np.isinf(stated.lower) & np.isinf(stated.upper) & np.isinf(stated.variance))


def test_damaged_modules(rng: np.random.Generator) -> None:
    w = heavy_tailed(rng, 8, 64)
    for config in ({}, FITTED):
        assert check_hostile(encode_nvfp4(w), config=config) > 30
        assert check_hostile(encode_nvfp4(w, by="compressed-tensors"), config=config) > 30
    assert check_hostile(encode_mxfp4(w)) > 20


@pytest.mark.parametrize("how", ["floor", "even", "up"])
def test_codes_tell_how_exponents_were_rounded(how: str, rng: np.random.Generator) -> None:
    w = rounded(heavy_tailed(rng, 256, 512), "BF16")
    found = state(matrix_of(encode_mxfp4(w, how=how)))
    error = np.sum((found.value - w.reshape(-1)) ** 2.0)
    assert np.sum(found.variance) == pytest.approx(error, rel=0.06)


def uneven(rng: np.random.Generator) -> F32Array:
    """Normal weights in rows of different sizes."""
    rows = rng.standard_normal((256, 512)) * rng.uniform(1, 8, (256, 1))
    return rows.astype(np.float32)


@pytest.mark.parametrize("how", ["floor", "even", "up"])
def test_errors_of_outermost_codes(how: str, rng: np.random.Generator) -> None:
    """Where exponents are rounded down they are clipped, up to a third."""
    w = rounded(uneven(rng), "BF16")
    matrix = matrix_of(encode_mxfp4(w, how=how))
    found = state(matrix)
    scale = matrix.coded(0, w.size).by_weight().scale
    is_last = np.abs(found.value) == 6 * scale
    error = np.sum(((found.value - w.reshape(-1)) ** 2.0)[is_last])
    assert np.sum(found.variance[is_last]) == pytest.approx(error, rel=0.06)


def test_what_the_middle_expects_of_open_cells(rng: np.random.Generator) -> None:
    """Weights without an upper bound have errors of their own, not the mean of their group's."""
    w = rounded(uneven(rng), "BF16")
    matrix, out = matrix_of(encode_mxfp4(w)), np.empty(w.size, np.float32)
    tensor = QuantizedTensor("weight", (512, 256), (Rows(matrix),), 0)
    tally = UncorrectedTileEstimator([Source(tensor.type)], "midpoint").estimate(
        [tensor], 0, w.size, out
    )
    assert tally.variance == pytest.approx(np.sum((out - w.reshape(-1)) ** 2.0), rel=0.08)

"""AutoRound: what is decoded, what moved codes prove, and what is refused."""

import numpy as np
import pytest

from recover.containers.huggingface.formats._grid import Grid
from recover.errors import SafetensorsError
from tests.support.encoders.autoround import config, encode
from tests.support.foreign_modules import Array, heavy_tailed, n_outside, rounded, state
from tests.support.format_checks import check_widened, matrix_of
from tests.support.hostile_modules import check_hostile


def weights_of(seed: int, n_rows: int = 64, row_length: int = 512) -> Array:
    weights = heavy_tailed(np.random.default_rng(seed), n_rows, row_length)
    weights[1] = np.abs(weights[1]) + 0.01
    weights[2] = 0
    return weights


def matrix(arrays: dict[str, Array], **settings: object) -> Grid:
    found = matrix_of(arrays, config=config(**settings))  # type: ignore[arg-type]
    assert isinstance(found, Grid)
    return found


@pytest.mark.parametrize("n_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("iters", [None, 0, 1000])
def test_bounds_hold(n_bits: int, symmetric: bool, iters: int | None) -> None:
    weights = weights_of(n_bits)
    reach = {None: 0.5025, 0: 0.0, 1000: 1.001 if n_bits <= 3 else 0.5005}[iters]
    arrays = encode(weights, n_bits, reach=reach, symmetric=symmetric, shrink=0.95)
    found = matrix(arrays, iters=iters)
    assert found.has_cells
    stated = state(found)
    assert n_outside(stated, rounded(weights, "BF16")) == 0
    check_widened(found, weights)
    for part, whole in zip(state(found, 700, 1300), stated, strict=True):
        assert np.array_equal(part, whole[700:1300])


@pytest.mark.slow
@pytest.mark.parametrize("n_bits", [2, 4, 8])
@pytest.mark.parametrize("iters", [None, 0])
def test_bounds_hold_of_many_weights(n_bits: int, iters: int | None) -> None:
    weights = heavy_tailed(np.random.default_rng(n_bits), 2560, 4096)
    found = matrix(encode(weights, n_bits, reach=0.0 if iters == 0 else 0.5025), iters=iters)
    assert n_outside(state(found), rounded(weights, "BF16")) == 0


def test_values_are_those_of_gptq() -> None:
    arrays = encode(weights_of(1))
    gptq = matrix_of(arrays, config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    assert np.array_equal(state(matrix(arrays)).value, state(gptq).value)


def test_codes_reach_as_far_as_the_steps_of_the_tuning() -> None:
    arrays = encode(weights_of(1))
    for settings, reach in (
        ({}, 0.5 + 0.5025),
        ({"iters": 0}, 0.5),
        ({"iters": 100, "lr": 0.02}, 0.5 + 1.01),
    ):
        stated = state(matrix(arrays, **settings))
        widths = (stated.upper - stated.lower).reshape(-1, 128)
        steps = np.repeat(arrays["scales"].T.astype(np.float32).reshape(-1, 1), 128, 1)
        closed = np.isfinite(widths)
        assert closed.mean() > 0.5
        assert np.allclose((widths / np.abs(steps))[closed], 2 * reach, rtol=1e-3)


@pytest.mark.parametrize("iters", [None, 0])
def test_errors_are_as_expected(iters: int | None) -> None:
    weights = np.random.default_rng(1).normal(0, 0.02, (256, 1024)).astype(np.float32)
    found = matrix(encode(weights, reach=0.5025 if iters is None else 0.0), iters=iters)
    seen, stated = rounded(weights, "BF16"), state(found)
    measured = np.mean(np.square(stated.value.astype(np.float64) - seen.reshape(-1)))
    # what random moves cost is not what tuned ones cost
    assert stated.variance.mean() == pytest.approx(measured, rel=0.3 if iters is None else 0.05)


@pytest.mark.parametrize(
    ("settings", "v2"),
    [
        ({"packing_format": "auto_round:auto_gptq"}, False),
        ({"packing_format": "auto_round:gptqmodel"}, True),
        ({"packing_format": "auto_round"}, True),
        ({"packing_format": "auto_round", "act_bits": 8}, False),
        ({"quant_method": "gptq", "provider": "auto-round"}, False),
        (
            {"quant_method": "gptq", "autoround_version": "0.5", "checkpoint_format": "gptq_v2"},
            True,
        ),
    ],
)
def test_zero_points_by_packing(settings: dict[str, object], v2: bool) -> None:
    weights = weights_of(1)
    found = matrix(encode(weights, symmetric=False, v2=v2), **settings)
    assert "AutoRound" in found.label
    assert n_outside(state(found), rounded(weights, "BF16")) == 0


def test_strange_settings_leave_no_cells() -> None:
    for settings in ({"iters": "many"}, {"lr": "fast"}, {"lr": float("nan")}, {"iters": -1}):
        found = matrix(encode(weights_of(1)), **settings)
        assert not found.has_cells
        assert np.isinf(state(found).upper).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"rotation_config": {"hadamard": True}},
        {"packing_format": "auto_round:auto_awq"},  # the arrays are GPTQ's
    ],
)
def test_what_cannot_be_read_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(SafetensorsError):
        matrix(encode(weights_of(1)), **settings)


def test_types_are_shared() -> None:
    one, two = matrix(encode(weights_of(1))), matrix(encode(weights_of(2), group=64))
    assert one.type is two.type
    assert one.type.name == "AutoRound4"
    assert matrix(encode(weights_of(1)), iters=0).type is not one.type


def test_damaged_arrays() -> None:
    assert check_hostile(encode(weights_of(1, 32, 256)), config=config()) > 20


def test_reads_the_layout_of_awq() -> None:
    weights = weights_of(1)
    arrays = encode(weights, symmetric=False, v2=True)
    plain = matrix(arrays, packing_format="auto_round:gptqmodel")
    words = {leaf: unpacked(arrays[leaf], axis) for leaf, axis in (("qweight", 0), ("qzeros", 1))}
    repacked = {leaf: interleaved(codes) for leaf, codes in words.items()}
    repacked["scales"] = arrays["scales"]
    for settings in (
        {"packing_format": "auto_round:auto_awq"},
        {"quant_method": "awq", "provider": "auto-round"},
    ):
        found = matrix(repacked, **settings)
        for part, other in zip(state(found), state(plain), strict=True):
            assert np.array_equal(part, other)


def unpacked(words: Array, axis: int) -> Array:
    """Codes of 4 bits, the lowest first, along an axis."""
    moved = np.moveaxis(words.view(np.uint32), axis, -1)
    fields = (moved[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & np.uint32(15)
    return np.moveaxis(fields.reshape(*moved.shape[:-1], -1), -1, axis)


def interleaved(codes: Array) -> Array:
    """Words of eight columns in the order of AWQ."""
    order = codes.reshape(len(codes), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].astype(np.uint32)
    shifted = order << np.arange(0, 32, 4, dtype=np.uint32)
    return np.bitwise_or.reduce(shifted, axis=2).view(np.int32)

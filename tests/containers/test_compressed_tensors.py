"""compressed-tensors' integers: what is decoded, what codes prove, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from recover.containers.huggingface.formats import read_matrix
from recover.containers.huggingface.formats._grid import Grid
from recover.containers.huggingface.scaled import ScaledMatrix, Scales
from recover.errors import SafetensorsError
from tests.golden.foreign_files import load
from tests.support.encoders.compressed_tensors import RECIPE, config, encode
from tests.support.encoders.mlx import pack
from tests.support.foreign_modules import (
    FLOATS,
    Array,
    heavy_tailed,
    module_of,
    n_outside,
    rounded,
    state,
)
from tests.support.format_checks import check_says_nothing, matrix_of

GOLDEN = load("compressed_tensors")
KINDS = [
    *((4, 128, True), (4, 32, False), (4, "channel", True), (2, 64, True), (2, 64, False)),
    *((8, 128, True), (8, 128, False), (8, "channel", True), (8, "channel", False)),
    (8, "tensor", True),
]


def matrix(
    arrays: dict[str, Array], recipe: str = RECIPE, observer: str | None = "memoryless_minmax"
) -> Grid:
    found = matrix_of(arrays, config(observer), recipe)
    assert isinstance(found, Grid)
    return found


def weights_of(seed: int, n_rows: int = 64, row_length: int = 512) -> Array:
    weights = heavy_tailed(np.random.default_rng(seed), n_rows, row_length)
    weights[1] = np.abs(weights[1]) + 0.01
    weights[2] = -np.abs(weights[2]) - 0.01
    weights[3] = 0
    return weights


@pytest.mark.parametrize("case", GOLDEN)
def test_reads_what_llm_compressor_wrote(case: str) -> None:
    arrays, original, decoded, settings, recipe = GOLDEN[case]
    found = matrix_of(arrays, settings, recipe)
    assert found.has_cells
    assert (found.n_rows, found.row_length) == original.shape
    stated = state(found)
    # the package rounds what it decodes to the type of the scales
    value = rounded(stated.value, found.seen_as)
    assert np.array_equal(value, decoded.reshape(-1))
    assert n_outside(stated, original) == 0
    assert np.isfinite(stated.lower).all() == ("searched" not in case)


@pytest.mark.parametrize("case", [case for case in GOLDEN if "searched" not in case])
def test_own_encoder_is_llm_compressor(case: str) -> None:
    arrays, original, _, settings, _ = GOLDEN[case]
    found = settings["config_groups"]["group_0"]["weights"]
    own = encode(
        original,
        found["num_bits"],
        found["group_size"] or found["strategy"],
        next(kind for kind, dtype in FLOATS.items() if arrays["weight_scale"].dtype == dtype),
        symmetric=found["symmetric"],
        packed="weight_packed" in arrays,
    )
    assert own.keys() == arrays.keys()
    for leaf, array in arrays.items():
        assert np.array_equal(own[leaf], array), leaf


@pytest.mark.parametrize("kind", ["BF16", "F16", "F32"])
@pytest.mark.parametrize(("n_bits", "group", "symmetric"), KINDS)
@pytest.mark.parametrize("search", [False, True])
def test_bounds_hold(
    n_bits: int, group: int | str, symmetric: bool, kind: str, search: bool
) -> None:
    weights = weights_of(n_bits)
    arrays = encode(weights, n_bits, group, kind, symmetric=symmetric, search=search)
    found = matrix(arrays, observer="mse" if search else "minmax")
    assert found.has_cells
    assert found.seen_as == kind
    assert n_outside(state(found), rounded(weights, kind)) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("n_bits", "group", "symmetric"), KINDS)
def test_bounds_hold_of_many_weights(n_bits: int, group: int | str, symmetric: bool) -> None:
    weights = heavy_tailed(np.random.default_rng(n_bits), 2560, 4096)
    for kind in ("BF16", "F16", "F32"):
        found = matrix(encode(weights, n_bits, group, kind, symmetric=symmetric))
        assert n_outside(state(found), rounded(weights, kind)) == 0


def test_even_codes_have_wider_cells_where_quotients_are_halves() -> None:
    weights = np.linspace(-1, 1, 256, dtype=np.float32)[None].repeat(2, 0)
    stated = state(matrix(encode(weights, 8, "channel")))
    step = float(encode(weights, 8, "channel")["weight_scale"][0, 0])
    widths = ((stated.upper - stated.lower) / step)[:256]
    codes = np.rint(stated.value[:256] / step).astype(int)
    large = (np.abs(codes) > 64) & (np.abs(codes) < 127)
    assert np.allclose(widths[large & (codes % 2 == 0)], 1.5, atol=1e-3)
    assert np.allclose(widths[large & (codes % 2 == 1)], 0.5, atol=1e-3)


@pytest.mark.parametrize(("n_bits", "group", "symmetric"), [(4, 128, True), (8, 128, False)])
@pytest.mark.parametrize("search", [False, True])
def test_errors_are_as_expected(n_bits: int, group: int, symmetric: bool, search: bool) -> None:
    weights = np.random.default_rng(1).normal(0, 0.02, (256, 1024)).astype(np.float32)
    seen = rounded(weights, "BF16")
    arrays = encode(weights, n_bits, group, symmetric=symmetric, search=search)
    stated = state(matrix(arrays, observer="mse" if search else "minmax"))
    measured = np.mean(np.square(stated.value.astype(np.float64) - seen.reshape(-1)))
    assert stated.variance.mean() == pytest.approx(measured, rel=0.04)


@pytest.mark.parametrize("symmetric", [True, False])
def test_columns_in_another_order(symmetric: bool) -> None:
    rng = np.random.default_rng(2)
    weights = weights_of(1)
    order = rng.permutation(512)
    arrays = encode(weights, 4, 64, symmetric=symmetric)
    in_order = state(matrix(arrays)).value.reshape(weights.shape)
    moved = encode(weights[:, np.argsort(order)], 4, 64, symmetric=symmetric)
    # the columns of `moved` are put back, each with its group
    place = np.argsort(np.argsort(order))
    codes = np.empty_like(weights, np.uint8)
    matrix(moved).codes(0, codes.reshape(-1))
    moved["weight_packed"] = pack(codes[:, place], 4).view(np.int32)
    moved["weight_g_idx"] = (place // 64).astype(np.int32)
    found = matrix(moved)
    assert "act-order" in found.label
    stated = state(found)
    assert n_outside(stated, rounded(weights, "BF16")) == 0
    assert not np.array_equal(stated.value.reshape(weights.shape), in_order)
    for part, whole in zip(state(found, 700, 1300), stated, strict=True):
        assert np.array_equal(part, whole[700:1300])


def test_without_a_recipe_cells_are_there_to_be_tried() -> None:
    weights = weights_of(1)
    found = matrix(encode(weights), recipe="")
    assert not found.has_cells
    stated = state(found)
    assert np.isinf(stated.lower).all()
    assert np.isinf(stated.upper).all()
    tried = found.with_cells()
    assert tried.has_cells
    assert tried.is_tried
    assert n_outside(state(tried), rounded(weights, "BF16")) == 0
    assert np.array_equal(state(tried).value, stated.value)


def test_gptq_has_no_cells() -> None:
    found = matrix(encode(weights_of(1)), recipe="GPTQModifier: {}\nQuantizationModifier: {}")
    assert not found.has_cells
    assert found.with_cells() is found
    assert np.isfinite(state(found).variance).all()


@pytest.mark.parametrize("name", ["SmoothQuantModifier", "AWQModifier"])
def test_nothing_is_known_of_scaled_columns_without_the_scales(name: str) -> None:
    weights = weights_of(1)
    columns = np.exp2(np.arange(512) % 3).astype(np.float32)
    found = matrix_of(encode(weights * columns), config(), f"{name}: {{}}\n{RECIPE}")
    assert isinstance(found, ScaledMatrix)
    assert not found.has_cells
    assert "scaled" in found.label
    assert np.isposinf(state(found).variance).all()
    original = found.with_scales(Scales(columns, np.zeros_like(columns)))
    assert original.has_cells
    assert n_outside(state(original), rounded(weights, "BF16")) == 0


def test_scaled_columns_may_have_codes_without_cells() -> None:
    recipe = "SmoothQuantModifier: {}\nGPTQModifier: {}\n"
    found = matrix_of(encode(weights_of(1)), config(), recipe)
    assert isinstance(found, ScaledMatrix)
    assert not found.stored.has_cells


def _mapped(items: str) -> str:
    return f"    SmoothQuantModifier:\n      mappings:{items}\n    QuantizationModifier: {{}}\n"


TUPLES = "\n      - - ['re:.*q_proj', 're:.*k_proj']\n        - re:.*input_layernorm"
LISTS = ' [[["re:.*q_proj", "re:.*k_proj"], "re:.*input_layernorm"]]'
NAMED = "\n      - smooth_layer: re:.*norm$\n        balance_layers: ['re:.*q_proj$']"


@pytest.mark.parametrize(
    ("recipe", "is_scaled"),
    [
        *((_mapped(items), (True, False)) for items in (TUPLES, LISTS, NAMED)),
        *(
            (_mapped(items), (True, True))
            for items in (
                *("", " null", " []", TUPLES.replace("re:.*input_layernorm", "re:.*v_proj")),
                *(TUPLES.replace("q_proj", other) for other in ("(q|o)_proj", "[qo]_proj")),
                *(TUPLES.replace("q_proj", other) for other in ("attn.*", "proj")),
            )
        ),
        (_mapped(TUPLES.replace("q_proj", "o_proj")), (False, True)),
        (f"SmoothQuantModifier: {{}}\nGPTQModifier:\n{TUPLES}", (True, True)),
    ],
)
def test_mappings_of_a_recipe_tell_what_is_scaled(
    recipe: str, is_scaled: tuple[bool, bool]
) -> None:
    names = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"
    module = module_of(encode(weights_of(1)), config(), recipe)
    found = [read_matrix(replace(module, name=name)) for name in names]
    assert tuple(isinstance(each, ScaledMatrix) for each in found) == is_scaled


def test_rotated_weights_are_refused() -> None:
    with pytest.raises(SafetensorsError, match=r"rotated \(SpinQuantModifier\)"):
        matrix(encode(weights_of(1)), recipe=f"SpinQuantModifier: {{}}\n{RECIPE}")
    settings = config() | {"transform_config": {"config_groups": {}}}
    with pytest.raises(SafetensorsError, match="rotated"):
        matrix_of(encode(weights_of(1)), settings, RECIPE)


def test_equal_settings_share_a_type() -> None:
    one, two = matrix(encode(weights_of(1))), matrix(encode(weights_of(2), 4, 32))
    assert one.type is two.type
    assert one.type.name == "INT4"
    assert matrix(encode(weights_of(1)), recipe="").type is not one.type


@pytest.mark.parametrize(
    "change",
    [
        {"weight_scale": None},
        {"weight_scale": np.zeros((64, 3), np.float32)},
        {"weight_scale": np.zeros((64, 0), np.float32)},
        {"weight_scale": np.zeros((64, 4), np.int32)},
        {"weight_shape": np.array([64, 511])},
        {"weight_shape": np.array([64, -512])},
        {"weight_shape": np.array([1 << 60, 512])},
        {"weight_shape": np.array([64.0, 512.0], np.float32)},
        {"weight_shape": np.array([64, 512, 1])},
        {"weight_packed": np.zeros((64, 64), np.float32)},
        {"weight_packed": np.zeros((63, 64), np.int32)},
        {"weight_packed": np.zeros((64, 0), np.int32)},
        {"weight_zero_point": np.zeros((8, 3), np.int32)},
        {"weight_zero_point": np.zeros((8, 4), np.float32)},
        {"weight_g_idx": np.zeros(511, np.int32)},
        {"weight_g_idx": np.full(512, 4, np.int32)},
        {"weight_g_idx": np.full(512, -1, np.int64)},
    ],
)
def test_damaged_arrays_are_refused(change: dict[str, Array | None]) -> None:
    arrays = encode(weights_of(1)) | change
    with pytest.raises(SafetensorsError):
        matrix({leaf: array for leaf, array in arrays.items() if array is not None})


def test_odd_settings_are_taken_for_nothing_known() -> None:
    arrays = encode(weights_of(1))
    groups: tuple[object, ...] = (5, {"a": 3}, {})
    for each in groups:
        found = matrix_of(arrays, {"config_groups": each}, RECIPE)
        assert np.isinf(state(found).upper).any()


def test_numbers_that_mean_nothing_state_nothing() -> None:
    arrays = encode(weights_of(1))
    arrays["weight_scale"][0, :4] = np.nan, np.inf, 0, -1
    check_says_nothing(matrix(arrays), 512)

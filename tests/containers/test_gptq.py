"""GPTQ: what its arrays stand for, by its own encoder and by the packages that write it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recover.containers.huggingface.formats import read_matrix
from recover.containers.huggingface.formats._columns import fields, unpack_columns
from recover.containers.huggingface.formats._compensated import CompensatedMatrix
from recover.errors import SafetensorsError
from recover.inputs.foreign import measure_ratio
from recover.quants import F32Array, quantize, type_by_name
from tests.golden.foreign_files import load
from tests.support.encoders import gptq
from tests.support.foreign_modules import heavy_tailed, module_of, state
from tests.support.format_checks import check_strip
from tests.support.layer_inputs import synthetic_inputs
from tests.support.stated_intervals import tensor_of

N, K = 64, 256
GOLDEN = load("gptq")


def config(n_bits: int = 4, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": n_bits} | more


def read(arrays: dict[str, Any], settings: dict[str, Any]) -> CompensatedMatrix:
    found = read_matrix(module_of(arrays, settings))
    assert isinstance(found, CompensatedMatrix)
    return found


Weights = tuple[F32Array, F32Array]


@pytest.fixture(scope="module")
def weights() -> Weights:
    rng = np.random.default_rng(1)
    return heavy_tailed(rng, N, K), synthetic_inputs(rng, 500, K)


@pytest.mark.parametrize("case", GOLDEN)
def test_reads_what_gptqmodel_wrote(case: str) -> None:
    arrays, original, decoded, settings, _ = GOLDEN[case]
    matrix = read(arrays, settings)
    stated = state(matrix)
    assert np.array_equal(stated.value, decoded.reshape(-1))
    error = np.square(stated.value - original.reshape(-1), dtype=np.float64).mean()
    assert 0.6 < stated.variance.mean(dtype=np.float64) / error < 1.2
    assert ("importance" in case) == (matrix.places is not None)


@pytest.mark.parametrize("n_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 128, -1])
@pytest.mark.parametrize("act_order", [False, True])
def test_values_are_what_the_codes_stand_for(
    weights: Weights, n_bits: int, group: int, act_order: bool
) -> None:
    symmetric = group != 32
    codes = gptq.quantize(*weights, n_bits, group, act_order=act_order, symmetric=symmetric)
    for is_v2 in (False, True):
        form = "gptq_v2" if is_v2 else "gptq"
        arrays = gptq.pack(codes, n_bits, v2=is_v2)
        if (codes.zeros == 0).any() and not is_v2:
            continue  # one less than 0 has no room
        matrix = read(arrays, config(n_bits, group_size=group, checkpoint_format=form))
        stated = state(matrix)
        assert np.array_equal(stated.value, codes.values.reshape(-1))
        assert np.isneginf(stated.lower).all()
        assert np.isposinf(stated.upper).all()
        squares = np.square(codes.scales)[:, codes.groups].reshape(-1) * 1.4 / 12
        np.testing.assert_allclose(stated.variance, squares, rtol=1e-6)
        assert not matrix.has_cells
        assert matrix.type is read(arrays, config(n_bits, group_size=group)).type
        assert (matrix.n_rows, matrix.row_length) == (N, K)
        for start, end in ((5, 6), (100, 900), (K - 3, 3 * K + 7), (N * K - 1, N * K)):
            part = state(matrix, start, end)
            for one, other in zip(part, stated, strict=True):
                assert np.array_equal(one, other[start:end])


@pytest.mark.parametrize("act_order", [False, True])
def test_some_columns_alone(weights: Weights, act_order: bool) -> None:
    """The one that an encoder began with is among those of which its file says so."""
    w, inputs = weights
    for n_bits in (2, 3, 4, 8):
        found = gptq.quantize(w, inputs, n_bits, 64, act_order=act_order)
        matrix = read(gptq.pack(found, n_bits), config(n_bits))
        check_strip(matrix)
        stated = state(matrix.as_rounded)
        is_outside = (w.reshape(-1) < stated.lower) | (w.reshape(-1) > stated.upper)
        counts = np.count_nonzero(is_outside.reshape(w.shape), axis=0)
        assert counts[matrix.first_columns].min() == 0
        assert np.median(counts) > 0


def test_rows_whose_last_group_is_short(weights: Weights) -> None:
    w, inputs = weights
    codes = gptq.quantize(w[:, :160], inputs[:, :160], group=64)
    arrays = gptq.pack(codes)
    for given in (arrays, {name: x for name, x in arrays.items() if name != "g_idx"}):
        stated = state(read(given, config(group_size=64)))
        assert np.array_equal(stated.value, codes.values.reshape(-1))


def test_groups_of_zeros_mean_order(weights: Weights) -> None:
    codes = gptq.quantize(*weights, group=64)
    arrays = gptq.pack(codes) | {"g_idx": np.zeros(K, np.int32)}
    stated = state(read(arrays, config(group_size=64)))
    assert np.array_equal(stated.value, codes.values.reshape(-1))


@pytest.mark.parametrize("act_order", [False, True])
def test_the_error_is_measured_beside_another_input(weights: Weights, act_order: bool) -> None:
    rng = np.random.default_rng(2)
    w, inputs = heavy_tailed(rng, 256, K), weights[1]
    codes = gptq.quantize(w, inputs, act_order=act_order)
    matrix = read(gptq.pack(codes), config(group_size=128))
    error = np.square(codes.values - w, dtype=np.float64).mean()
    for name in ("Q4_K", "Q6_K"):
        known = tensor_of(quantize(w, type_by_name(name)), name, w.size)
        measured = matrix.with_noise(matrix.noise * measure_ratio(matrix, known))
        expected = state(measured).variance.mean(dtype=np.float64)
        assert 0.96 < expected / error < 1.04, name


def test_a_scale_that_says_nothing_has_no_error(weights: Weights) -> None:
    arrays = gptq.pack(gptq.quantize(*weights, group=64))
    arrays["scales"] = arrays["scales"].copy()
    arrays["scales"][0, :3] = 0, np.inf, np.nan
    stated = state(read(arrays, config(group_size=64)))
    assert np.isinf(stated.variance.reshape(N, K)[:3, :64]).all()
    assert np.isfinite(stated.variance.reshape(N, K)[3:]).all()


@pytest.mark.parametrize("n_bits", [2, 3, 4, 5, 6, 8])
def test_codes_are_packed_end_to_end(n_bits: int) -> None:
    rng = np.random.default_rng(n_bits)
    codes = rng.integers(0, 1 << n_bits, (7, 96)).astype(np.uint8)
    bits = np.unpackbits(codes[..., None], axis=2, bitorder="little")[..., :n_bits]
    words = np.packbits(bits.reshape(7, -1), axis=1, bitorder="little").view("<u4")
    found = np.full((7, 100), 77, np.uint8)
    unpack_columns(np.ascontiguousarray(words.T), n_bits, 3, found[:, : 3 + 96])
    assert np.array_equal(found[:, 3:99], codes)
    assert (found[:, [0, 1, 2, 99]] == 77).all()
    assert np.array_equal(fields(words, n_bits, 5, 90), codes[:, 5:90])


class TestRefusals:
    @pytest.fixture
    def arrays(self, weights: Weights) -> dict[str, Any]:
        return gptq.pack(gptq.quantize(*weights, group=64, act_order=True))

    def refused(self, arrays: dict[str, Any], settings: dict[str, Any], words: str) -> None:
        with pytest.raises(SafetensorsError, match=words):
            read_matrix(module_of(arrays, settings))

    def test_rotated_weights(self, arrays: dict[str, Any]) -> None:
        self.refused(arrays, config(group_size=64, rotation="hadamard"), "rotated")
        self.refused(arrays, config(group_size=64, meta={"rotation": "random"}), "rotated")
        read(arrays, config(group_size=64, meta={"rotation": None}))

    def test_other_layouts(self, arrays: dict[str, Any]) -> None:
        for form in ("gptq_p", "marlin", "bitblas", 5):
            self.refused(arrays, config(group_size=64, checkpoint_format=form), "layout")

    def test_groups_that_are_not_there(self, arrays: dict[str, Any]) -> None:
        for wrong in (-1, 4):
            g_idx = arrays["g_idx"].copy()
            g_idx[5] = wrong
            self.refused(arrays | {"g_idx": g_idx}, config(group_size=64), "g_idx")

    def test_shapes_that_do_not_fit(self, arrays: dict[str, Any]) -> None:
        rng = np.random.default_rng(3)
        for leaf, array in arrays.items():
            for axis in range(array.ndim):
                n = array.shape[axis]
                cut = array.take(np.arange(int(rng.integers(1, n))), axis)
                self.refused(arrays | {leaf: cut}, config(group_size=64), "layer")
                twice = np.repeat(array, 2, axis)
                self.refused(arrays | {leaf: twice}, config(group_size=64), "layer")
            self.refused(arrays | {leaf: array[..., None]}, config(group_size=64), leaf)
            self.refused(arrays | {leaf: array[:0]}, config(group_size=64), leaf)
            self.refused(arrays | {leaf: array.astype(np.int8)}, config(group_size=64), leaf)
            if leaf != "g_idx":
                rest = {name: each for name, each in arrays.items() if name != leaf}
                if leaf == "qweight":
                    assert read_matrix(module_of(rest, config(group_size=64))) is None
                else:
                    self.refused(rest, config(group_size=64), leaf)

    def test_settings_that_do_not_fit(self, arrays: dict[str, Any]) -> None:
        self.refused(arrays, config(8, group_size=64), "8 bits")
        self.refused(arrays, config(group_size=128), "groups of 128")

    def test_other_formats_are_not_its_own(self, arrays: dict[str, Any]) -> None:
        module = module_of(arrays, {"quant_method": "something"})
        assert read_matrix(module) is None
        assert read_matrix(replace(module, tensors={})) is None

"""EXL2: what its arrays stand for, by its own encoder."""

from typing import Any

import numpy as np
import pytest

from recover.containers.huggingface.formats import read_matrix
from recover.containers.huggingface.formats._compensated import CompensatedMatrix
from recover.errors import SafetensorsError
from recover.inputs.foreign import measure_ratio
from recover.quants import quantize, type_by_name
from tests.support.encoders import gptq
from tests.support.foreign_modules import heavy_tailed, module_of, state
from tests.support.format_checks import check_strip
from tests.support.layer_inputs import synthetic_inputs
from tests.support.stated_intervals import tensor_of

N, K = 64, 352
Arrays = dict[str, Any]
EXL2 = {"quant_method": "exl2"}


def read(arrays: Arrays) -> CompensatedMatrix:
    found = read_matrix(module_of(arrays, EXL2))
    assert isinstance(found, CompensatedMatrix)
    return found


def encoded(bits: tuple[int, ...], group: int = 32, n_rows: int = N, k: int = K) -> Any:
    rng = np.random.default_rng(1)
    w = heavy_tailed(rng, n_rows, k)
    return w, gptq.exl2(w, synthetic_inputs(rng, 600, k), bits, group)


@pytest.mark.parametrize("bits", [(4,), (8, 6), (5, 4, 3, 2), (3,)])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_values_are_what_the_codes_stand_for(bits: tuple[int, ...], group: int) -> None:
    _, found = encoded(bits, group)
    matrix = read(found.arrays)
    stated = state(matrix)
    assert np.array_equal(stated.value, found.values.reshape(-1))
    assert np.isneginf(stated.lower).all()
    assert np.isposinf(stated.upper).all()
    assert np.isfinite(stated.variance).all()
    assert (matrix.n_rows, matrix.row_length, matrix.has_cells) == (N, K, False)
    assert matrix.type is read(found.arrays).type
    for start, end in ((5, 6), (100, 900), (K - 3, 3 * K + 7), (N * K - 1, N * K)):
        for one, other in zip(state(matrix, start, end), stated, strict=True):
            assert np.array_equal(one, other[start:end])


def test_some_columns_alone() -> None:
    """Groups of all numbers of bits, and the column that the encoder began with."""
    for bits in ((8, 6), (5, 4, 3, 2)):
        w, found = encoded(bits)
        matrix = read(found.arrays)
        check_strip(matrix)
        stated = state(matrix.as_rounded.strip(matrix.first_columns))
        first = w[:, matrix.first_columns].reshape(-1)
        assert first.size == N
        assert np.all((stated.lower <= first) & (first <= stated.upper))


def test_a_last_group_may_be_short() -> None:
    for bits in ((4,), (6,), (8,)):
        _, found = encoded(bits, 32, k=88)
        assert np.array_equal(state(read(found.arrays)).value, found.values.reshape(-1))


def test_the_error_is_measured_beside_another_input() -> None:
    w, found = encoded((5, 4), 32, 256, 256)
    matrix = read(found.arrays)
    error = np.square(found.values - w, dtype=np.float64).mean()
    known = tensor_of(quantize(w, type_by_name("Q6_K")), "Q6_K", w.size)
    measured = matrix.with_noise(matrix.noise * measure_ratio(matrix, known))
    assert 0.96 < state(measured).variance.mean(dtype=np.float64) / error < 1.04


def refused(arrays: Arrays, words: str) -> None:
    with pytest.raises(SafetensorsError, match=words):
        read_matrix(module_of(arrays, EXL2))


def test_a_trellis_is_refused() -> None:
    arrays = {"trellis": np.zeros((4, 4, 64), np.int16), "suh": np.zeros(64, np.float16)}
    refused(arrays, "EXL3")


def test_places_that_are_no_order_are_refused() -> None:
    arrays = encoded((4,))[1].arrays
    for wrong in (-1, K, int(arrays["q_invperm"][1])):
        places = arrays["q_invperm"].copy()
        places[0] = wrong
        refused(arrays | {"q_invperm": places}, "q_invperm")


def test_groups_that_do_not_fit_are_refused() -> None:
    arrays = encoded((5, 4))[1].arrays
    for at, right in enumerate(arrays["q_groups"]):
        wrong_bits, wrong_words = (0, 1, 2, 3, 6, 7, 9), (0, 999, right - 4, right + 5)
        for wrong in (-1, *(wrong_words if at % 2 else wrong_bits)):
            groups = arrays["q_groups"].copy()
            if groups[at] != wrong:
                groups[at] = wrong
                refused(arrays | {"q_groups": groups}, "q_groups")


def test_shapes_that_do_not_fit_are_refused() -> None:
    arrays = encoded((5, 4))[1].arrays
    for leaf, array in arrays.items():
        for axis in range(array.ndim):
            refused(arrays | {leaf: array.take(np.arange(array.shape[axis] - 1), axis)}, "layer")
            refused(arrays | {leaf: np.repeat(array, 2, axis)}, "layer")
        refused(arrays | {leaf: array[..., None]}, leaf)
        refused(arrays | {leaf: array[:0]}, leaf)
        refused(arrays | {leaf: array.astype(np.int8)}, leaf)
        rest = {name: each for name, each in arrays.items() if name != leaf}
        if leaf == "q_weight":
            assert read_matrix(module_of(rest, EXL2)) is None
        else:
            refused(rest, leaf)

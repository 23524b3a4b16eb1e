"""Vectors of sixteen lanes and 16-bit floats: every operation is that of NumPy on each lane."""

from typing import Any

import numba
import numpy as np
import pytest
from numba.core.errors import TypingError
from numpy.typing import NDArray

from recover._compiled import across, doubles, float16, lanes

N = 16
F32 = np.float32
Array = NDArray[Any]

load, store, store_bytes = lanes.load, lanes.store, lanes.store_bytes
to_f64, store_f64 = doubles.to_f64, doubles.store_f64


@numba.njit
def _numbers(x: Array, y: Array, table: Array, place: int, out: Array) -> None:
    """Row by row one operation on float32 numbers."""
    a, b = load(x, 0), load(y, 0)
    store(out[0], 0, lanes.splat(F32(1.5)))
    store(out[1], 0, lanes.where(a < b, a, F32(7)))
    store(out[2], 0, lanes.fused(a, b, a))
    store(out[3], 0, lanes.larger(a, b))
    store(out[4], 0, lanes.smaller(a, b))
    store(out[5], 0, lanes.sqrt(abs(a)))
    store(out[6], 0, lanes.round_away(b))
    store(out[7], 0, lanes.to_f32(lanes.truncate(b)))
    store(out[8], 0, doubles.from_bits(lanes.bits(a) ^ 1))
    store(out[9], 0, lanes.gather(table, lanes.truncate(abs(b))))
    store(out[10], 0, lanes.load_strided(table, place, 3))
    store(out[11], 0, doubles.load_two(table, place, 40))
    store(out[12], 0, doubles.as_f16(a))
    store(out[13], 0, doubles.nearest_f32(to_f64(a) / to_f64(b)))
    store(out[14], 0, a * b - a / b + F32(2))
    store(out[16], 0, lanes.spread(table, place))
    store(out[15], 0, lanes.where((a < b) | ~(b > a) & (b < F32(0)), -a, b))


@numba.njit
def _stored(x: Array, words: Array, octets: Array, wide: Array, long: Array) -> None:
    """What is stored otherwise than as float32."""
    a = load(x, 0)
    lanes.store_f16(words, 0, a)
    doubles.store_words(words, 16, lanes.bits(a))
    store_bytes(octets, 0, lanes.bits(a))
    store_bytes(octets, 16, lanes.load_bytes(octets, 32) + 3)
    store_bytes(octets, 48, lanes.bytes_of_words(long[0], long[1]))
    store_f64(wide, 0, to_f64(a) * doubles.load_f64(wide, 16))


@numba.njit
def _across(x: Array, y: Array, out: Array) -> None:
    """One number of all lanes."""
    a, b = load(x, 0), load(y, 0)
    out[0], out[1] = across.add_up(a), across.sum_lanes(a)
    out[2] = across.largest_lane(a)
    out[3], out[4] = across.any_lane(a > F32(1e9)), across.any_lane(a < b)
    out[5], out[6] = across.first_lane(a > F32(1e9), a < b), doubles.n_true(a < b)
    out[7] = across.mask_bits(a < b, a > F32(0))
    out[8] = across.sum_lanes(doubles.to_f64(a))


@numba.njit
def _halves(words: Array, x: Array, raw: Array, out: Array, back: Array) -> None:
    """16-bit floats, number by number."""
    for i in range(words.size):
        out[0, i] = float16.f16_to_f32(words[i])
        out[1, i] = float16.read_f16(raw, 2 * i + 1)
        out[2, i] = float16.f32_from_bits(float16.f32_bits(x[i]))
        back[0, i] = float16.f32_to_f16(x[i])
        float16.write_f16(back[1].view(np.uint8), 2 * i, x[i])


@pytest.fixture
def pair(rng: np.random.Generator) -> tuple[Array, Array]:
    """Numbers of all sizes and both signs; small ones, halves among them."""
    x = (rng.standard_normal(N) * 10.0 ** rng.integers(-3, 3, N)).astype(F32)
    y = (rng.integers(-60, 60, N) / 2).astype(F32)
    y[y == 0] = 0.5
    return x, y


def test_numbers(pair: tuple[Array, Array], rng: np.random.Generator) -> None:
    x, y = pair
    table = rng.standard_normal(64).astype(F32)
    out = np.empty((N + 1, N), F32)
    _numbers(x, y, table, 5, out)
    wide, far = x.astype(float), y.astype(float)
    once = (wide * far + wide).astype(F32)
    twice = x * y + x
    expected = {
        0: np.full(N, 1.5),
        1: np.where(x < y, x, F32(7)),
        3: np.maximum(x, y),
        4: np.minimum(x, y),
        5: np.sqrt(abs(x)),
        6: np.trunc(far + np.copysign(0.5, far)),
        7: np.trunc(y),
        8: (x.view(np.int32) ^ 1).view(F32),
        9: table[np.trunc(abs(y)).astype(int)],
        10: table[5 : 5 + 3 * N : 3],
        11: np.append(table[5:13], table[40:48]),
        12: x.astype(np.float16),
        13: (wide / far).astype(F32),
        14: x * y - x / y + F32(2),
        16: np.full(N, table[5]),
        15: np.where((x < y) | (y < 0), -x, y),
    }
    for row, numbers in expected.items():
        np.testing.assert_array_equal(out[row], numbers, err_msg=str(row))
    assert np.all((out[2] == once) | (out[2] == twice))  # as the CPU can


def test_what_does_not_fit_an_integer_is_the_lowest_one() -> None:
    @numba.njit
    def cut(x: Array, out: Array) -> None:
        store(out, 0, doubles.from_bits(lanes.truncate(load(x, 0))))

    x = np.array([np.nan, np.inf, -np.inf, 2.0**31, -(2.0**31), 3e9, -3e9, 2.0**30] * 2, F32)
    out = np.empty(N, F32)
    cut(x, out)
    expected = [-(2**31)] * 7 + [2**30]
    np.testing.assert_array_equal(out.view(np.int32), expected * 2)


def test_what_is_stored(pair: tuple[Array, Array], rng: np.random.Generator) -> None:
    x, _ = pair
    words, octets = np.empty(32, np.uint16), rng.integers(0, 256, 64, np.uint8)
    wide, long = rng.standard_normal(32), rng.integers(0, 1 << 63, 2).astype(np.uint64)
    before = octets[32:48].copy()
    _stored(x, words, octets, wide, long)
    np.testing.assert_array_equal(words[:16].view(np.float16), x.astype(np.float16))
    np.testing.assert_array_equal(words[16:], x.view(np.uint16)[::2])
    np.testing.assert_array_equal(octets[:16], x.view(np.uint8)[::4])
    np.testing.assert_array_equal(octets[16:32], before + np.uint8(3))
    np.testing.assert_array_equal(octets[48:], long.view(np.uint8))
    np.testing.assert_array_equal(wide[:16], x.astype(float) * wide[16:])


def test_numbers_of_all_lanes(pair: tuple[Array, Array]) -> None:
    x, y = pair
    out = np.empty(9)
    _across(x, y, out)
    one_by_one = F32(0)
    for each in x:
        one_by_one = F32(one_by_one + each)
    total, wide = x, x.astype(float)
    while total.size > 1:
        total = total[: total.size // 2] + total[total.size // 2 :]
        wide = wide[: wide.size // 2] + wide[wide.size // 2 :]
    less = x < y
    bits = np.append(less, x > 0).astype(int) << np.arange(2 * N)
    numbers = [one_by_one, total[0], x.max(), 0, less.any(), N + less.argmax(), less.sum()]
    np.testing.assert_array_equal(out, [*numbers, bits.sum(), wide[0]])


def test_sums_of_rows_are_those_of_each(rng: np.random.Generator) -> None:
    @numba.njit
    def rows(x: Array, out: Array) -> None:
        store(out, 0, across.sum_rows(x, 8))
        for k in range(N):
            out[N + k] = across.sum_lanes(load(x, 8 + N * k))

    x, out = rng.standard_normal(8 + N * N).astype(F32), np.empty(2 * N, F32)
    rows(x, out)
    np.testing.assert_array_equal(out[:N], out[N:])
    np.testing.assert_allclose(out[:N], x[8:].reshape(N, N).sum(1, dtype=float), rtol=0, atol=1e-5)


def test_16_bit_floats_are_those_of_numpy() -> None:
    """All of them there, and back from numbers between them."""
    words = np.arange(1 << 16, dtype=np.uint16)
    halves = words.view(np.float16)
    x = np.where(np.isfinite(halves), halves, np.float16(0)).astype(F32)
    x *= np.linspace(1 - 2.0**-10, 1 + 2.0**-10, x.size, dtype=F32)
    raw = np.concatenate([np.zeros(1, np.uint8), words.view(np.uint8)])
    out, back = np.empty((3, words.size), F32), np.empty((2, words.size), np.uint16)
    _halves(words, x, raw, out, back)
    for decoded in out[:2]:
        np.testing.assert_array_equal(decoded, halves.astype(F32))
    np.testing.assert_array_equal(out[2], x)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    for encoded in back:
        np.testing.assert_array_equal(encoded.view(np.float16), expected)


@pytest.mark.parametrize("scalar", [np.float64(2), 2])
def test_nothing_is_promoted(scalar: object) -> None:
    """A vector of float32 mixes with float32 alone."""

    @numba.njit
    def add(x: Array, number: Any) -> None:
        store(x, 0, load(x, 0) + number)

    with pytest.raises(TypingError):
        add(np.zeros(N, F32), scalar)


@pytest.mark.parametrize(
    "function",
    [lanes.splat, across.add_up, across.sum_lanes, doubles.n_true, lanes.sqrt, lanes.bits],
    ids=lambda each: str(each.__name__),
)
def test_functions_of_vectors_refuse_other_numbers(function: Any) -> None:
    @numba.njit
    def call(number: Any) -> None:
        function(number)

    with pytest.raises(TypingError):
        call(2.0)


def test_arrays_of_another_kind_are_refused() -> None:
    @numba.njit
    def strided(table: Array) -> None:
        lanes.load_strided(table, 0, 2)

    @numba.njit
    def two(table: Array) -> None:
        doubles.load_two(table, 0, 8)

    @numba.njit
    def half(table: Array) -> None:
        float16.read_f16(table, 0)

    @numba.njit
    def one(table: Array) -> None:
        lanes.spread(table, 0)

    @numba.njit
    def rows(table: Array) -> None:
        across.sum_rows(table, 0)

    for function in (strided, two, half, one, rows):
        with pytest.raises(TypingError):
            function(np.zeros(64))

"""Every encoder makes the same bytes as ggml."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recover.errors import QuantError
from recover.quants import ScalarType, all_types, quantize, type_by_name
from recover.quants.base import F32Array
from recover.quants.floats import F16
from tests.oracle import libggml
from tests.oracle.weights import IMATRICES, SYNTHETIC, gguf_weights, sentence_encoder_weights
from tests.support.models import SHARED, TINY

SCALAR_TYPES = [kind for kind in all_types() if isinstance(kind, ScalarType)]
N_REAL = 150_000
N_SLOW = 10_000_000

each_type = pytest.mark.parametrize("kind", SCALAR_TYPES, ids=lambda kind: kind.name)


def assert_same(kind: ScalarType, x: F32Array, imatrix: F32Array | None, label: str = "") -> None:
    """Compares block by block; the message shows the first one that differs."""
    ours = quantize(x, kind, imatrix).reshape(-1, kind.type_size)
    theirs = libggml.quantize(kind.type_id, x, imatrix).reshape(-1, kind.type_size)
    differs = np.flatnonzero((ours != theirs).any(1))
    if differs.size:
        first = differs[0]
        block = x.reshape(-1, kind.block_size)[first]
        pytest.fail(
            f"{kind.name} {label}: {differs.size} of {len(ours)} blocks differ, first {first}:\n"
            f"{ours[first]}\n{theirs[first]}\n{block.tolist()}"
        )


def row_lengths(kind: ScalarType) -> tuple[tuple[int, int], ...]:
    """Shapes whose superblocks and rows fall in all ways on batches of sixteen sub-blocks."""
    block = kind.block_size
    return (7, 3 * block), (37, block), (2, 19 * block), (1, block)


@each_type
@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_weights(kind: ScalarType, name: str, rng: np.random.Generator) -> None:
    for shape in row_lengths(kind):
        x = SYNTHETIC[name](rng, shape)
        for imatrix_name, make in IMATRICES.items():
            imatrix = make(rng, shape[1])
            assert_same(kind, x, imatrix, f"{name}, imatrix {imatrix_name}, {shape}")


@each_type
@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    n_rows=st.integers(1, 20),
    n_blocks=st.integers(1, 5),
    exponents=st.tuples(st.integers(0, 254), st.integers(0, 254)).map(sorted),
    with_imatrix=st.booleans(),
)
def test_arbitrary_bits(
    kind: ScalarType,
    seed: int,
    n_rows: int,
    n_blocks: int,
    exponents: list[int],
    with_imatrix: bool,
) -> None:
    rng = np.random.default_rng(seed)
    shape = (n_rows, n_blocks * kind.block_size)
    words = rng.integers(0, 2**32, shape, np.uint32) & np.uint32(0x807FFFFF)
    words |= rng.integers(exponents[0], exponents[1] + 1, shape, np.uint32) << np.uint32(23)
    imatrix = rng.random(shape[1]).astype(np.float32) if with_imatrix else None
    assert_same(kind, words.view(np.float32), imatrix)


def real_weights() -> Iterator[NDArray[np.float32]]:
    """Trained weights in rows of 384 to 1536; the last two models only where they are present."""
    yield from gguf_weights(TINY)
    if (path := SHARED / "llama-29m-bf16.gguf").exists():
        yield from gguf_weights(path)
    yield from sentence_encoder_weights()


@cache
def real_rows(block_size: int, n_weights: int) -> list[NDArray[np.float32]]:
    """About as many trained weights, from all tensors whose rows are whole blocks."""
    tensors = [x for x in real_weights() if x.shape[1] % block_size == 0]
    total = sum(x.size for x in tensors)
    step = max(1, total // n_weights)
    return [np.ascontiguousarray(x[::step]) for x in tensors]


@each_type
@pytest.mark.parametrize("name", ["none", "random", "with zeros", "constant"])
@pytest.mark.parametrize(
    "n_weights", [N_REAL, pytest.param(N_SLOW, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_real_weights(
    kind: ScalarType, name: str, n_weights: int, rng: np.random.Generator
) -> None:
    for x in real_rows(kind.block_size, n_weights):
        assert_same(kind, x, IMATRICES[name](rng, x.shape[1]), name)


@pytest.mark.slow
@each_type
@pytest.mark.parametrize("name", ["normal", "student-t", "scales of their own", "bf16-valued"])
def test_many_synthetic_weights(kind: ScalarType, name: str, rng: np.random.Generator) -> None:
    for _ in range(N_SLOW // 2**20 + 1):
        x = SYNTHETIC[name](rng, (1024, 1024))
        assert_same(kind, x, None, name)
        assert_same(kind, x[:256], IMATRICES["random"](rng, 1024), name)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_float_types(name: str, rng: np.random.Generator) -> None:
    kind = type_by_name(name)
    for kind_of_weights in ("normal", "tiny", "denormals", "zeros of both signs"):
        x = SYNTHETIC[kind_of_weights](rng, (3, 256))
        assert quantize(x, kind).tobytes() == libggml.quantize(kind.type_id, x).tobytes()


def assert_same_float16(words: NDArray[np.uint32]) -> None:
    x = words.view(np.float32)
    raw = np.empty(2 * x.size, np.uint8)
    F16.encode(x, raw)
    ours, theirs = raw.view(np.uint16), libggml.to_float16(x)
    is_nan = np.isnan(x)
    assert np.array_equal(ours[~is_nan], theirs[~is_nan])
    # ggml makes all NaN of a sign the same; that arithmetic made is that one already.
    assert np.array_equal(ours[is_nan] & 0xFE00, theirs[is_nan])


def test_float16_rounding(rng: np.random.Generator) -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    words = halves.view(np.uint32)
    middles = words + np.uint32(0x1000)  # half-way to the next float16, where that is not denormal
    near = [(base + np.int64(step)) for base in (words, middles) for step in (-1, 0, 1)]
    assert_same_float16(np.concatenate(near).astype(np.uint32))
    assert_same_float16(rng.integers(0, 2**32, 2**20, np.uint32))
    denormals = rng.integers(0x33000000 - 10, 0x38800000 + 10, 2**20, np.uint32)
    assert_same_float16(denormals)


@pytest.mark.slow
def test_float16_rounding_of_every_float32() -> None:
    for start in range(0, 2**32, 2**24):
        assert_same_float16(np.arange(start, start + 2**24, dtype=np.uint32))


def test_what_cannot_be_encoded() -> None:
    kind = type_by_name("Q4_K")
    x = np.ones((2, 256), np.float32)
    with pytest.raises(QuantError, match="255 weights are no whole number of Q4_K blocks of 256"):
        quantize(x[:, 1:], kind)
    with pytest.raises(QuantError, match="cannot be encoded as IQ2_XXS"):
        quantize(x, type_by_name("IQ2_XXS"))
    with pytest.raises(QuantError, match="cannot be encoded as I32"):
        quantize(x, type_by_name("I32"))
    with pytest.raises(QuantError, match="take 288 bytes"):
        quantize(x, kind, out=np.empty(287, np.uint8))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_must_be_finite(bad: float) -> None:
    x = np.ones((2, 256), np.float32)
    x[1, 7] = bad
    for name in ("Q4_K", "Q8_0", "F16"):
        with pytest.raises(QuantError, match="1 of 512 weights are infinite or not a number"):
            quantize(x, type_by_name(name))


def test_weights_beyond_the_range_of_a_float_type() -> None:
    x = np.array([1, 65520, -1e6], np.float32)
    with pytest.raises(QuantError, match="2 of 3 weights are too large for F16"):
        quantize(x, F16)
    assert quantize(x, type_by_name("BF16")).size == 6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e-9])
def test_importances_must_be_finite_and_not_negative(bad: float) -> None:
    x, imatrix = np.ones((2, 256), np.float32), np.ones(256, np.float32)
    imatrix[3] = bad
    with pytest.raises(QuantError, match="negative or not finite"):
        quantize(x, type_by_name("Q4_K"), imatrix)


@pytest.mark.parametrize("n", [0, 255, 512])
def test_importances_must_fit_the_rows(n: int) -> None:
    x = np.ones((2, 256), np.float32)
    with pytest.raises(QuantError, match="rows of 256 weights"):
        quantize(x, type_by_name("Q4_K"), np.ones(n, np.float32))


@each_type
def test_shapes_and_output(kind: ScalarType, rng: np.random.Generator) -> None:
    x = SYNTHETIC["normal"](rng, (12, 2 * kind.block_size))
    expected = quantize(x, kind)
    out = np.empty_like(expected)
    assert quantize(x.reshape(3, 4, -1), kind, out=out) is out
    assert np.array_equal(out, expected)
    assert np.array_equal(quantize(np.asfortranarray(x), kind), expected)
    assert np.array_equal(quantize(x[0], kind), expected[: expected.size // 12])
    assert quantize(x[:0], kind).size == 0
    assert quantize(x[:0], kind, np.ones(x.shape[1], np.float32)).size == 0

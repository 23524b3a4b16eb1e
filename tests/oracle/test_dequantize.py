"""Decoders against libggml's `to_float` and gguf-py, bit for bit."""

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from recover import QuantError
from recover.quants import (
    TILE,
    FloatType,
    OpaqueType,
    ScalarType,
    TensorType,
    VectorType,
    all_types,
    dequantize,
    type_by_id,
    type_by_name,
)
from tests.oracle import libggml

TYPES = [t for t in all_types() if t.name in gguf.GGMLQuantizationType.__members__]
DECODABLE = [
    t
    for t in TYPES
    if not isinstance(t, OpaqueType) and t.type_id is not None and t.type_id <= libggml.LAST_TYPE_ID
]
QUANTIZED = [t for t in DECODABLE if not isinstance(t, FloatType)]
NEEDS_IMATRIX = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"}


def by_name(tensor_type: TensorType) -> str:
    return tensor_type.name


def bits(x: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(x).view(np.uint32)


def gguf_py(tensor_type: TensorType, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    if tensor_type.name == "F32":
        return raw.view(np.float32)
    if tensor_type.name == "F16":
        return raw.view(np.float16).astype(np.float32)
    blocks = raw.reshape(-1, tensor_type.type_size)
    with np.errstate(all="ignore"):
        kind = gguf.GGMLQuantizationType(tensor_type.type_id)
        return gguf.quants.dequantize(blocks, kind).reshape(-1)


@pytest.mark.parametrize("tensor_type", TYPES, ids=by_name)
def test_sizes_are_those_of_gguf_py(tensor_type: TensorType) -> None:
    kind = gguf.GGMLQuantizationType[tensor_type.name]
    assert kind == tensor_type.type_id
    assert gguf.GGML_QUANT_SIZES[kind] == (tensor_type.block_size, tensor_type.type_size)


def test_every_type_that_gguf_py_decodes_is_here() -> None:
    names = {kind.name for kind in gguf.quants._type_traits} | {"F32", "F16"}
    assert names <= {tensor_type.name for tensor_type in DECODABLE}


@pytest.mark.parametrize("tensor_type", DECODABLE, ids=by_name)
def test_random_bytes(tensor_type: TensorType, rng: np.random.Generator) -> None:
    """Any bytes: NaN, infinite, subnormal and negative scales; more than one tile."""
    n_blocks = TILE // tensor_type.block_size + 999
    raw = rng.integers(0, 256, n_blocks * tensor_type.type_size, dtype=np.uint8)
    ours = dequantize(raw, tensor_type)
    assert np.isfinite(ours).any()
    theirs = gguf_py(tensor_type, raw)
    ggml = raw.view(np.float32) if tensor_type.name == "F32" else None
    if ggml is None:
        ggml = libggml.dequantize(tensor_type.type_id, raw)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(ggml))
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    numbers = ~np.isnan(ours)
    np.testing.assert_array_equal(bits(ours)[numbers], bits(ggml)[numbers])
    np.testing.assert_array_equal(bits(ours)[numbers], bits(theirs)[numbers])
    if isinstance(tensor_type, ScalarType):  # down to the sign and payload of every NaN
        np.testing.assert_array_equal(bits(ours), bits(ggml))


@pytest.mark.parametrize("tensor_type", QUANTIZED, ids=by_name)
def test_real_weights(tensor_type: TensorType, real_rows: NDArray[np.float32]) -> None:
    imatrix = np.ones(real_rows.shape[1], np.float32)
    raw = libggml.quantize(
        tensor_type.type_id, real_rows, imatrix if tensor_type.name in NEEDS_IMATRIX else None
    )
    ours = dequantize(raw, tensor_type)
    np.testing.assert_array_equal(bits(ours), bits(libggml.dequantize(tensor_type.type_id, raw)))
    np.testing.assert_array_equal(bits(ours), bits(gguf_py(tensor_type, raw)))


@pytest.mark.parametrize("tensor_type", QUANTIZED, ids=by_name)
def test_declared_error_is_the_measured_one(
    tensor_type: TensorType, rng: np.random.Generator
) -> None:
    """`relative_mse` and `noise` of the declarations, on Gaussian weights."""
    x = rng.standard_normal((256, 1024), np.float32)
    imatrix = np.ones(x.shape[1], np.float32)
    raw = libggml.quantize(
        tensor_type.type_id, x, imatrix if tensor_type.name in NEEDS_IMATRIX else None
    )
    error = dequantize(raw, tensor_type).astype(np.float64) - x.reshape(-1)
    assert isinstance(tensor_type, ScalarType | VectorType)
    assert np.mean(error**2) / np.mean(x**2) == pytest.approx(tensor_type.relative_mse, rel=0.1)
    if isinstance(tensor_type, ScalarType):
        codes = np.empty(x.size, np.uint8)
        scale, offset = np.empty((2, x.size // 16), np.float32)
        tensor_type.unpack(raw, codes, scale, offset)
        squares = np.repeat(scale.astype(np.float64) ** 2, 16)
        assert np.mean(error**2) / np.mean(squares) == pytest.approx(tensor_type.noise, rel=0.03)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_16_bit_floats_are_rounded_to_nearest_even(name: str, rng: np.random.Generator) -> None:
    import ml_dtypes

    float_type = type_by_name(name)
    assert isinstance(float_type, FloatType)
    dtype = {"F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}[name]
    patterns = rng.integers(0, 2**32, 500_000, dtype=np.uint64).astype(np.uint32)
    x = patterns.view(np.float32)
    x = np.concatenate((x[np.isfinite(x)], rng.standard_normal(100_000, np.float32)))
    ties = dequantize(np.arange(65536, dtype=np.uint16).view(np.uint8), float_type)
    ties = ties[np.isfinite(ties)]
    x = np.concatenate((x, ties, np.unique(ties)[1:] / 2 + np.unique(ties)[:-1] / 2))
    x = x.astype(np.float32)
    raw = np.empty(2 * x.size, np.uint8)
    n_bad = float_type.encode(x, raw)
    with np.errstate(over="ignore"):
        expected = x.astype(dtype)
    np.testing.assert_array_equal(raw.view(np.uint16), expected.view(np.uint16))
    assert n_bad == np.count_nonzero(~np.isfinite(expected.astype(np.float32)))


def test_wrong_sizes_and_types_are_refused() -> None:
    with pytest.raises(QuantError, match="no whole number of Q4_K blocks"):
        dequantize(np.zeros(145, np.uint8), type_by_name("Q4_K"))
    with pytest.raises(QuantError, match="I32 holds no weights"):
        dequantize(np.zeros(4, np.uint8), type_by_name("I32"))
    with pytest.raises(QuantError, match="tensor type 999 is unknown"):
        type_by_id(999)
    with pytest.raises(QuantError, match=r"tensor type 97 is Q8_0_X4 \(of ik_llama.cpp"):
        type_by_id(97)
    with pytest.raises(QuantError, match="'Q9_K' is unknown"):
        type_by_name("Q9_K")
    assert type_by_name("q4_k") is type_by_id(12)

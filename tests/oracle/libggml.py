"""The reference: ggml itself, prebuilt in the package `libggml-python`, called through ctypes."""

import ctypes
import importlib.util
from functools import cache
from hashlib import sha1
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LAST_TYPE_ID = 40
"""NVFP4; of others it has no encoder, or they are other programs'."""
_MOST_KEPT = 64 << 20
_kept: dict[tuple[object, ...], NDArray[np.uint8]] = {}
"""What was quantized, about so many bytes: tests often begin with the same weights."""


class _TypeTraits(ctypes.Structure):
    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


@cache
def library() -> ctypes.CDLL:
    """libggml-base; an import error here must fail the tests, never skip them."""
    spec = importlib.util.find_spec("libggml")
    assert spec is not None, "the test extra is not installed: package libggml-python is missing"
    assert spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations)))
    path = next(path for path in sorted(folder.rglob("*ggml-base*")) if path.is_file())
    lib = ctypes.CDLL(str(path))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    )
    lib.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    lib.ggml_get_type_traits.argtypes = (ctypes.c_int,)
    return lib


def block_and_type_size(type_id: int | None) -> tuple[int, int]:
    """Weights and bytes per block of a type that ggml has a number for."""
    assert type_id is not None, "ggml has no such type"
    traits = library().ggml_get_type_traits(type_id).contents
    return traits.blck_size, traits.type_size


def quantize(
    type_id: int | None, x: NDArray[np.float32], imatrix: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Rows of weights (n_rows, ne0) to the stored bytes (n_rows * row_bytes,)."""
    x = np.ascontiguousarray(x, np.float32)
    n_rows, n_per_row = x.shape
    block_size, type_size = block_and_type_size(type_id)
    out = np.zeros(n_rows * (n_per_row // block_size) * type_size, np.uint8)
    weights = None if imatrix is None else np.ascontiguousarray(imatrix, np.float32)
    key = (type_id, x.shape, _digest(x), None if weights is None else _digest(weights))
    if (known := _kept.get(key)) is not None:
        return known.copy()
    written = library().ggml_quantize_chunk(
        type_id,
        x.ctypes.data,
        out.ctypes.data,
        0,
        n_rows,
        n_per_row,
        None if weights is None else weights.ctypes.data,
    )
    assert written == out.size
    if sum(each.size for each in _kept.values()) + out.size > _MOST_KEPT:
        _kept.clear()
    _kept[key] = out.copy()
    return out


def _digest(x: NDArray[np.float32]) -> bytes:
    """Of numbers in the order of memory."""
    return sha1(x.reshape(-1).view(np.uint8).data, usedforsecurity=False).digest()


def dequantize(type_id: int | None, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Stored bytes to weights."""
    raw = np.ascontiguousarray(raw)
    block_size, type_size = block_and_type_size(type_id)
    out = np.empty(raw.size // type_size * block_size, np.float32)
    to_float = _TO_FLOAT(library().ggml_get_type_traits(type_id).contents.to_float)
    to_float(raw.ctypes.data, out.ctypes.data, out.size)
    return out


def to_float16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest float16 to each number."""
    x = np.ascontiguousarray(x, np.float32)
    out = np.empty(x.size, np.uint16)
    library().ggml_fp32_to_fp16_row(
        ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(x.size)
    )
    return out

"""Modules of Hugging Face folders made of arrays, and what their matrices state."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.formats import Matrix
from recover.containers.huggingface.modules import Module
from recover.containers.safetensors.reader import Tensor
from recover.quants import TILE, F32Array, Stated

Array = NDArray[Any]
FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_NAMES = {
    **{np.dtype(kind): name for name, kind in FLOATS.items()},
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",
    np.dtype(np.int16): "I16",
    np.dtype(np.int32): "I32",
    np.dtype(np.uint32): "U32",
    np.dtype(np.int64): "I64",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
    np.dtype(ml_dtypes.float8_e5m2): "F8_E5M2",
}


def stored(name: str, array: Array) -> Tensor:
    """An array as in a file; its bytes begin at an odd address."""
    data = np.ascontiguousarray(array)
    raw = np.empty(data.nbytes + 1, np.uint8)[1:]
    raw[:] = np.frombuffer(data.tobytes(), np.uint8)
    raw.flags.writeable = False
    return Tensor(name, _NAMES[data.dtype], array.shape, raw, Path("model.safetensors"))


def module_of(
    arrays: Mapping[str, Array], config: Mapping[str, Any] | None = None, recipe: str = ""
) -> Module:
    tensors = {name: stored(f"layer.{name}", array) for name, array in arrays.items()}
    return Module("layer", tensors, config or {}, recipe)


def state(matrix: Matrix, start: int = 0, end: int | None = None) -> Stated:
    """What a matrix states of a range, tile by tile; flat."""
    end = matrix.n_rows * matrix.row_length if end is None else end
    all_of_it = Stated(*np.full((4, end - start), np.nan, np.float32))
    for first in range(start, end, TILE):
        last = min(first + TILE, end)
        matrix.intervals(first, last, all_of_it.part(first - start, last - start))
    return all_of_it


def rounded(x: F32Array, kind: str) -> F32Array:
    """Weights in the precision that an encoder sees."""
    return x.astype(FLOATS[kind]).astype(np.float32)


def n_outside(stated: Stated, seen: F32Array) -> int:
    """How many weights lie outside their bounds, or have a bound that says nothing."""
    flat = seen.reshape(-1)
    return int(np.count_nonzero(~((stated.lower <= flat) & (flat <= stated.upper))))


def heavy_tailed(rng: np.random.Generator, n_rows: int, row_length: int) -> F32Array:
    """Weights as trained ones are: rows of different sizes, some large weights."""
    x = rng.standard_normal((n_rows, row_length)) + 0.02 * rng.standard_t(2, (n_rows, row_length))
    return (x * rng.uniform(0.005, 0.05, (n_rows, 1))).astype(np.float32)

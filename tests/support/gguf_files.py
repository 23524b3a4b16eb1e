"""GGUF files as the tests make and read them: through gguf-py and libggml, not `recover`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize
from numpy.typing import NDArray

from tests.oracle import libggml

F32Array = NDArray[np.float32]
F64Array = NDArray[np.float64]


class Stored(NamedTuple):
    """A tensor's bytes, in rows."""

    kind: str
    rows: NDArray[Any]


def stored(kind: str, x: NDArray[Any], *, imatrix: bool = False) -> Stored:
    """An array as it is (kind ``F32``, ``F16``, ``I32``), or quantized by libggml.

    The importance matrix (types that want one always get it) finds all weights equally important.
    """
    if kind in ("F32", "F16", "I32"):
        return Stored(kind, x.astype({"F32": np.float32, "F16": np.float16, "I32": np.int32}[kind]))
    wanted = imatrix or kind.startswith(("IQ1", "IQ2", "IQ3"))
    weights = np.ones(x.shape[-1], np.float32) if wanted else None
    raw = libggml.quantize(GGMLQuantizationType[kind], x.reshape(-1, x.shape[-1]), weights)
    return Stored(kind, raw.reshape(*x.shape[:-1], -1))


def write_out(writer: GGUFWriter) -> None:
    """Write what a writer was told of, and close it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf(
    path: Path,
    tensors: Mapping[str, Stored],
    *,
    architecture: str = "llama",
    add: Callable[[GGUFWriter], None] | None = None,
    split_max_tensors: int = 0,
    split_max_size: int = 0,
) -> Path:
    """Write a model, perhaps in parts of so many tensors or bytes; `add` adds metadata."""
    writer = GGUFWriter(
        path, architecture, split_max_tensors=split_max_tensors, split_max_size=split_max_size
    )
    if add is not None:
        add(writer)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.rows, raw_dtype=GGMLQuantizationType[tensor.kind])
    write_out(writer)
    return path


def read_tensors(path: Path) -> dict[str, Stored]:
    """Every tensor's type and bytes (numbers, of types that are no blocks)."""
    return {
        tensor.name: Stored(tensor.tensor_type.name, np.array(tensor.data))
        for tensor in GGUFReader(path).tensors
    }


def tensor_bytes(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor's type, shape and bytes."""
    return {
        name: (tensor.kind, tensor.rows.shape, tensor.rows.tobytes())
        for name, tensor in read_tensors(path).items()
    }


def read_weights(path: Path) -> dict[str, F32Array]:
    """Every tensor, decoded by gguf-py."""
    return {
        name: dequantize(tensor.rows, GGMLQuantizationType[tensor.kind])
        for name, tensor in read_tensors(path).items()
    }


def squared_error(weights: Mapping[str, F32Array], truth: Mapping[str, F32Array]) -> float:
    """Sum of squared errors over the tensors of `weights`, in double precision."""
    return sum(
        float(np.square(w.astype(np.float64) - truth[name].astype(np.float64)).sum())
        for name, w in weights.items()
    )

"""Importance matrices as llama.cpp stores them, in either format; as distrustful as the header.

The GGUF format holds two F32 tensors per tensor of the model: ``NAME.in_sum2``, the sums of squares
of the activations (one row per expert), and ``NAME.counts``, how many were added up. The older one,
all little-endian::

    i32 n_entries
    n_entries x  i32 length, name, i32 n_calls, i32 n_values, f32 values[n_values]
    i32 n_chunks, i32 length, name of the data set (may be missing)

where the values are `n_calls` times the importance.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recover._text import printable, quoted, some
from recover.containers.gguf.header import (
    MAGIC,
    MAX_NAME,
    Header,
    TensorInfo,
    ValueType,
    parse_header,
)
from recover.containers.mapping import map_file
from recover.errors import GGUFError
from recover.quants import F32Array, U8Array

_MAX_ENTRIES = 1 << 17
_MAX_MATRICES = 1 << 16
_SMALLEST_ENTRY = 16
_I32 = struct.Struct("<i")
_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Importance:
    """What an importance matrix says of one tensor; the sums stay in the mapped file.

    Attributes
    ----------
    sums : float32 (n_matrices * ne0,)
        Sums of squares of the activations of each column, matrix after matrix.
    counts : float32 (n_matrices,)
        How many squares were added up.
    """

    sums: F32Array
    counts: F32Array

    @property
    def n_values(self) -> int:
        """Number of columns of all matrices."""
        return self.sums.size

    def means(self, start: int = 0, end: int | None = None) -> F32Array:
        """The importance of a range of columns (n,): 1 for matrices that were never used."""
        sums = self.sums[start:end]
        places = np.arange(start, start + sums.size) // (self.sums.size // self.counts.size)
        counts = self.counts[places]
        return np.divide(sums, counts, out=np.ones(sums.size, np.float32), where=counts > 0)


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix.

    Attributes
    ----------
    entries : mapping of str to Importance
        By the names of the model's tensors.
    datasets : tuple of str
        Names of the texts that it was computed on.
    n_chunks : int
        Number of pieces of text; 0 if the file does not say.
    """

    entries: Mapping[str, Importance]
    datasets: tuple[str, ...]
    n_chunks: int


def load_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """Open an importance matrix.

    Parameters
    ----------
    path : path-like
        A file that llama-imatrix wrote, in either format.

    Returns
    -------
    Imatrix

    Raises
    ------
    GGUFError
        If it cannot be read, or is no valid importance matrix.
    """
    try:
        return parse_imatrix(map_file(Path(path)))
    except GGUFError as error:
        raise GGUFError(f"{printable(path)}: {error}") from None


def parse_imatrix(data: U8Array) -> Imatrix:
    """Read an importance matrix from the file's bytes (n_bytes,); the errors of `load_imatrix`."""
    imatrix = _parse_gguf(data) if bytes(data[:4]) == MAGIC else _parse_legacy(data)
    if not imatrix.entries:
        raise GGUFError("is no importance matrix: it has no entries")
    return imatrix


def _parse_gguf(data: U8Array) -> Imatrix:
    header = parse_header(data.data)
    sums, counts = (
        {
            tensor.name.removesuffix(suffix): _numbers(data, header, tensor)
            for tensor in header.tensors
            if tensor.name.endswith(suffix)
        }
        for suffix in (_SUMS, _COUNTS)
    )
    if alone := sums.keys() ^ counts.keys():
        names = some([quoted(name) for name in sorted(alone)])
        raise GGUFError(f"only one of {_SUMS} and {_COUNTS} is there of {names}")
    entries = {name: _entry(name, values, counts[name]) for name, values in sums.items()}
    datasets = _value(header, "imatrix.datasets", ValueType.ARRAY, [])
    n_chunks = _value(header, "imatrix.chunk_count", ValueType.UINT32, 0)
    return Imatrix(entries, tuple(text for text in datasets if isinstance(text, str)), n_chunks)


def _numbers(data: U8Array, header: Header, info: TensorInfo) -> F32Array:
    if info.type.name != "F32":
        raise GGUFError(f"tensor {quoted(info.name)} is {info.type.name}, not F32")
    start = header.data_start + info.offset
    return data[start : start + info.n_bytes].view(np.float32)


def _value(header: Header, key: str, kind: ValueType, default: Any) -> Any:
    entry = header.metadata.get(key)
    if entry is None:
        return default
    if entry.value_type != kind:
        raise GGUFError(f"metadata {key!r} is {entry.value_type.name}, not {kind.name}")
    return entry.value


def _entry(name: str, sums: F32Array, counts: Any) -> Importance:
    """An entry whose numbers make sense."""
    if len(counts) > _MAX_MATRICES:
        raise GGUFError(
            f"entry {quoted(name)}: {len(counts)} counts; more than {_MAX_MATRICES} are not read"
        )
    counts = np.floor(np.asarray(counts, np.float64) + 0.5).astype(np.float32)
    if sums.size % counts.size:
        raise GGUFError(f"entry {quoted(name)}: {sums.size} sums, but {counts.size} counts")
    for what, numbers in (("sums", sums), ("counts", counts)):
        low, high = numbers.min(), numbers.max()
        if not (low >= 0 and high < np.inf):  # also if there is a NaN: it is both
            raise GGUFError(f"entry {quoted(name)}: its {what} are negative or not finite")
    return Importance(sums, counts)


class _Cursor:
    """Reads forward through the older format; every step is checked against the end."""

    def __init__(self, data: U8Array) -> None:
        self._data = data
        self._position = 0
        self.what = "header"

    @property
    def n_left(self) -> int:
        return self._data.size - self._position

    def take(self, n_bytes: int) -> U8Array:
        if not 0 <= n_bytes <= self.n_left:
            raise GGUFError(
                f"{self.what}: needs {n_bytes} bytes at position {self._position},"
                f" but {self.n_left} are left"
            )
        self._position += n_bytes
        return self._data[self._position - n_bytes : self._position]

    def i32(self) -> int:
        return int(_I32.unpack(bytes(self.take(4)))[0])


def _parse_legacy(data: U8Array) -> Imatrix:
    cursor = _Cursor(data)
    n_entries = cursor.i32()
    if not 1 <= n_entries <= min(_MAX_ENTRIES, cursor.n_left // _SMALLEST_ENTRY):
        raise GGUFError(
            f"is no importance matrix: it begins neither with {MAGIC!r} nor with a number of"
            f" entries that {data.size} bytes can hold ({n_entries})"
        )
    entries: dict[str, Importance] = {}
    for number in range(1, n_entries + 1):
        cursor.what = f"entry {number} of {n_entries}"
        name = _name(cursor)
        cursor.what = f"entry {quoted(name)}"
        n_calls, n_values = cursor.i32(), cursor.i32()
        if n_values < 1:
            raise GGUFError(f"{cursor.what}: has {n_values} values")
        values = cursor.take(4 * n_values).view(np.float32)
        # Without a number of calls the values are taken as they are.
        entry = _entry(name, values, [n_calls if n_calls > 0 else 1])
        if entries.setdefault(name, entry) is not entry:
            raise GGUFError(f"{cursor.what} is there twice")
    if not cursor.n_left:
        return Imatrix(entries, (), 0)
    cursor.what = "end"
    n_chunks = cursor.i32()
    dataset = bytes(cursor.take(cursor.i32())) if cursor.n_left else b""
    dataset = dataset.split(b"\0")[0]
    return Imatrix(entries, (dataset.decode(errors="replace"),) if dataset else (), n_chunks)


def _name(cursor: _Cursor) -> str:
    raw = bytes(cursor.take(cursor.i32()))
    if len(raw) > MAX_NAME:
        raise GGUFError(f"{cursor.what}: name of {len(raw)} bytes; at most {MAX_NAME} are read")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise GGUFError(f"{cursor.what}: its name is not UTF-8") from None

"""Bytes to `Header` and back; pure, and distrustful of every count, length and offset.

The format, all little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)::

    "GGUF"  u32 version  u64 n_tensors  u64 n_kv
    n_kv      x  string key, u32 value type, value
    n_tensors x  string name, u32 n_dims, u64 dims[n_dims], u32 tensor type, u64 offset
    padding to the alignment, then the tensors' data, offsets counted from here

where a string is a u64 length and that many bytes, and an array value is a u32 element type, a u64
count and the elements.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

from recover.errors import GGUFError, QuantError
from recover.gguf.text import quoted
from recover.quants import TensorType, type_by_id

MAGIC = b"GGUF"
READABLE_VERSIONS = (2, 3)
WRITTEN_VERSION = 3
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_NAME = 65_535
"""Bytes of a key or of a tensor's name; the format sets this limit for keys."""

# Far beyond every model, so that a hostile file costs seconds and megabytes at most.
_MAX_TEXT = 1 << 27
_MAX_ITEMS = {
    "tensors": 1 << 18,
    "metadata entries": 1 << 18,
    "strings": 1 << 23,
    "arrays": 1 << 20,
    "elements": 1 << 23,
}

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class ValueType(IntEnum):
    """Types of metadata values (`enum gguf_type`)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_FORMATS = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
_MAX_ARRAY_DEPTH = 4


@dataclass(frozen=True)
class KeyValue:
    """One metadata entry; its bytes stay where they are and are parsed only when asked.

    Attributes
    ----------
    key : str
        For instance ``general.architecture``.
    value_type : ValueType
        Type of the value.
    stored : memoryview
        Key, type and value: a view of the buffer that was parsed.
    """

    key: str
    value_type: ValueType
    stored: memoryview

    @property
    def span(self) -> bytes:
        """Key, type and value, byte for byte as stored."""
        return bytes(self.stored)

    @cached_property
    def value(self) -> Any:
        """The value as int, float, bool, str or (nested) list.

        Raises
        ------
        GGUFError
            If a string in an array is not UTF-8, or an array is too long to become a list.
        """
        cursor = _Cursor(self.stored, f"metadata {quoted(self.key)}")
        cursor.string(MAX_NAME)
        return cursor.value(ValueType(cursor.u32()))


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is.

    Attributes
    ----------
    name : str
        For instance ``blk.0.attn_q.weight``.
    dims : tuple of int
        As GGUF stores them: ``dims[0]`` is the row length (ne0).
    type : TensorType
        How the weights are stored.
    offset : int
        Bytes from the start of the data section.
    """

    name: str
    dims: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return prod(self.dims)

    @property
    def n_bytes(self) -> int:
        """Number of stored bytes."""
        return self.type.n_bytes(self.n_weights)


@dataclass(frozen=True)
class Header:
    """Everything in front of the tensors' data.

    Attributes
    ----------
    version : int
        2 or 3.
    metadata : mapping of str to KeyValue
        In file order.
    tensors : tuple of TensorInfo
        In file order.
    alignment : int
        Of the data section and of every tensor in it.
    data_start : int
        Position of the data section in the file.
    """

    version: int
    metadata: Mapping[str, KeyValue]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_start: int

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a metadata key, or `default`."""
        entry = self.metadata.get(key)
        return default if entry is None else entry.value


class _Cursor:
    """Reads forward through a buffer; every step is checked against its end."""

    def __init__(self, buffer: memoryview, what: str) -> None:
        self.buffer = buffer
        self.size = len(buffer)
        self.position = 0
        self.what = what
        self.items_left = dict(_MAX_ITEMS)

    def skip(self, n_bytes: int) -> int:
        """Step over `n_bytes`; their position."""
        start = self.position
        if n_bytes > self.size - start:
            raise GGUFError(
                f"{self.what}: needs {n_bytes} bytes at position {start},"
                f" but only {self.size - start} are left"
            )
        self.position = start + n_bytes
        return start

    def u32(self) -> int:
        return int(_U32.unpack_from(self.buffer, self.skip(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack_from(self.buffer, self.skip(8))[0])

    def count(self, smallest: int, of_what: str) -> int:
        """A number of items that take at least `smallest` bytes each."""
        number = self.u64()
        if number * smallest > self.size - self.position:
            raise GGUFError(
                f"{self.what}: announces {number} {of_what},"
                f" more than the {self.size - self.position} bytes that follow can hold"
            )
        self.items_left[of_what] -= number
        if self.items_left[of_what] < 0:
            raise GGUFError(
                f"{self.what}: announces {number} {of_what}; more than {_MAX_ITEMS[of_what]}"
                " in one file are not supported"
            )
        return number

    def string(self, most: int = _MAX_TEXT) -> str:
        """A text of at most `most` bytes."""
        length = self.u64()
        start = self.skip(length)
        if length > most:
            raise GGUFError(
                f"{self.what}: text of {length} bytes at position {start}; more than {most}"
                " are not supported"
            )
        try:
            return str(self.buffer[start : start + length], "utf-8")
        except UnicodeDecodeError:
            raise GGUFError(f"{self.what}: text at position {start} is not UTF-8") from None

    def value_type(self) -> ValueType:
        number = self.u32()
        try:
            return ValueType(number)
        except ValueError:
            raise GGUFError(f"{self.what}: value type {number} is unknown") from None

    def skip_value(self, value_type: ValueType, depth: int = 0) -> None:
        """Step over a value without building it."""
        if value_type == ValueType.STRING:
            self.string()
        elif value_type != ValueType.ARRAY:
            self.skip(struct.calcsize(_FORMATS[value_type]))
        else:
            self._skip_array(depth)

    def _skip_array(self, depth: int) -> None:
        if depth == _MAX_ARRAY_DEPTH:
            raise GGUFError(f"{self.what}: arrays are nested more than {depth} deep")
        element = self.value_type()
        if element == ValueType.STRING:
            self._skip_strings(self.count(8, "strings"))
        elif element == ValueType.ARRAY:
            for _ in range(self.count(12, "arrays")):
                self._skip_array(depth + 1)
        else:
            size = struct.calcsize(_FORMATS[element])
            self.skip(size * self.u64())

    def _skip_strings(self, number: int) -> None:
        # Vocabularies have 10^5 strings: the position only grows, so that an impossible length
        # shows at the next step or at the end.
        position, buffer, unpack_from = self.position, self.buffer, _U64.unpack_from
        try:
            for _ in range(number):
                position += 8 + unpack_from(buffer, position)[0]
        except (struct.error, OverflowError):
            position = self.size + 1
        if position > self.size:
            raise GGUFError(f"{self.what}: a string reaches beyond the end of the file")
        self.position = position

    def value(self, value_type: ValueType) -> Any:
        if value_type == ValueType.STRING:
            return self.string()
        if value_type != ValueType.ARRAY:
            layout = f"<{_FORMATS[value_type]}"
            return struct.unpack_from(layout, self.buffer, self.skip(struct.calcsize(layout)))[0]
        element = self.value_type()
        if element == ValueType.STRING:
            return [self.string() for _ in range(self.count(8, "strings"))]
        if element == ValueType.ARRAY:
            return [self.value(element) for _ in range(self.count(12, "arrays"))]
        size = struct.calcsize(_FORMATS[element])
        number = self.count(size, "elements")
        layout = f"<{number}{_FORMATS[element]}"
        return list(struct.unpack_from(layout, self.buffer, self.skip(size * number)))


def align(position: int, alignment: int) -> int:
    """The first multiple of `alignment` at or behind `position`."""
    return -(-position // alignment) * alignment


def parse_header(buffer: bytes | memoryview) -> Header:
    """Read the header of a GGUF file from the file's bytes.

    Parameters
    ----------
    buffer : bytes-like
        The whole file (usually mapped: only the header is touched).

    Returns
    -------
    Header

    Raises
    ------
    GGUFError
        If anything announced does not fit into the file, overlaps, or is not understood.
    """
    cursor = _Cursor(memoryview(buffer), "header")
    version = _parse_version(cursor)
    n_tensors = cursor.count(24, "tensors")
    n_kv = cursor.count(13, "metadata entries")
    metadata: dict[str, KeyValue] = {}
    for _ in range(n_kv):
        entry = _parse_key_value(cursor)
        if metadata.setdefault(entry.key, entry) is not entry:
            raise GGUFError(f"metadata {quoted(entry.key)} is there twice")
    alignment = _alignment(metadata)
    tensors: dict[str, TensorInfo] = {}
    for _ in range(n_tensors):
        tensor = _parse_tensor(cursor)
        if tensors.setdefault(tensor.name, tensor) is not tensor:
            raise GGUFError(f"tensor {quoted(tensor.name)} is there twice")
    data_start = align(cursor.position, alignment) if tensors else cursor.position
    _check_extents(tensors.values(), alignment, cursor.size - data_start)
    return Header(version, metadata, tuple(tensors.values()), alignment, data_start)


def _parse_version(cursor: _Cursor) -> int:
    if cursor.size == 0:
        raise GGUFError("the file is empty")
    magic = bytes(cursor.buffer[:4])
    if magic != MAGIC:
        raise GGUFError(f"not a GGUF file: it begins with {magic!r} instead of {MAGIC!r}")
    cursor.skip(4)
    version = cursor.u32()
    if version not in READABLE_VERSIONS:
        if int.from_bytes(_U32.pack(version), "big") in READABLE_VERSIONS:
            raise GGUFError(
                "big-endian GGUF files are not supported; convert it with gguf-convert-endian"
                " of the package gguf"
            )
        known = " and ".join(map(str, READABLE_VERSIONS))
        raise GGUFError(f"GGUF version {version} is not supported, only {known}")
    return version


def _parse_key_value(cursor: _Cursor) -> KeyValue:
    start = cursor.position
    cursor.what = "metadata"
    key = cursor.string(MAX_NAME)
    cursor.what = f"metadata {quoted(key)}"
    value_type = cursor.value_type()
    cursor.skip_value(value_type)
    return KeyValue(key, value_type, cursor.buffer[start : cursor.position])


def _alignment(metadata: Mapping[str, KeyValue]) -> int:
    entry = metadata.get("general.alignment")
    if entry is None:
        return DEFAULT_ALIGNMENT
    if entry.value_type != ValueType.UINT32:
        raise GGUFError(f"metadata 'general.alignment' is {entry.value_type.name}, not UINT32")
    alignment = int(entry.value)
    if alignment == 0 or alignment & (alignment - 1):
        raise GGUFError(f"metadata 'general.alignment' is {alignment}, not a power of two")
    return alignment


def _parse_tensor(cursor: _Cursor) -> TensorInfo:
    cursor.what = "tensor table"
    name = cursor.string(MAX_NAME)
    cursor.what = f"tensor {quoted(name)}"
    n_dims = cursor.u32()
    if n_dims > MAX_DIMS:
        raise GGUFError(f"{cursor.what}: {n_dims} dimensions, more than {MAX_DIMS}")
    dims = tuple(cursor.u64() for _ in range(n_dims)) or (1,)
    try:
        tensor_type = type_by_id(cursor.u32())
    except QuantError as error:
        raise GGUFError(f"{cursor.what}: {error}") from None
    if 0 in dims:
        raise GGUFError(f"{cursor.what}: shape {dims} has no weights")
    if dims[0] % tensor_type.block_size:
        raise GGUFError(
            f"{cursor.what}: rows of {dims[0]} weights are no multiple"
            f" of the {tensor_type.block_size} weights in a {tensor_type.name} block"
        )
    return TensorInfo(name, dims, tensor_type, cursor.u64())


def _check_extents(tensors: Iterable[TensorInfo], alignment: int, available: int) -> None:
    end, previous = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        what = f"tensor {quoted(tensor.name)}"
        if tensor.offset % alignment:
            raise GGUFError(
                f"{what}: offset {tensor.offset} is no multiple of the alignment {alignment}"
            )
        if tensor.offset < end:
            raise GGUFError(f"{what} overlaps {previous}")
        end, previous = tensor.offset + tensor.n_bytes, what
        if end > available:
            raise GGUFError(
                f"{what} ends {end - available} bytes beyond the end of the file;"
                " the file is truncated, or its header damaged"
            )


def encode_string(text: str) -> bytes:
    """A GGUF string; what has no UTF-8 form, as in some names of files, becomes a question mark."""
    raw = text.encode(errors="replace")
    return _U64.pack(len(raw)) + raw


def encode_key_value(key: str, value_type: ValueType, value: Any) -> bytes:
    """A metadata entry; a list becomes an array of `value_type`."""
    head = encode_string(key)
    if isinstance(value, list):
        head += _U32.pack(ValueType.ARRAY) + _U32.pack(value_type) + _U64.pack(len(value))
        return head + b"".join(_encode_scalar(value_type, element) for element in value)
    return head + _U32.pack(value_type) + _encode_scalar(value_type, value)


def _encode_scalar(value_type: ValueType, value: Any) -> bytes:
    if value_type == ValueType.STRING:
        return encode_string(value)
    return struct.pack(f"<{_FORMATS[value_type]}", value)


def encode_header(
    metadata_spans: Iterable[bytes], tensors: Iterable[TensorInfo], alignment: int
) -> bytes:
    """The bytes in front of the data section, padded to the alignment."""
    spans, infos = list(metadata_spans), list(tensors)
    parts = [
        MAGIC,
        _U32.pack(WRITTEN_VERSION),
        _U64.pack(len(infos)),
        _U64.pack(len(spans)),
        *spans,
    ]
    for tensor in infos:
        parts += [encode_string(tensor.name), _U32.pack(len(tensor.dims))]
        parts += [_U64.pack(dim) for dim in tensor.dims]
        parts += [_U32.pack(tensor.type.type_id), _U64.pack(tensor.offset)]
    header = b"".join(parts)
    return header.ljust(align(len(header), alignment), b"\0")


def place_tensors(
    tensors: Iterable[tuple[str, tuple[int, ...], TensorType]], alignment: int
) -> tuple[list[TensorInfo], int]:
    """Give tensors consecutive aligned offsets; also the size of the data section.

    Raises
    ------
    QuantError
        If a row is no whole number of blocks of its type.
    """
    placed: list[TensorInfo] = []
    end = 0
    for name, dims, tensor_type in tensors:
        placed.append(TensorInfo(name, dims, tensor_type, end))
        end = align(end + placed[-1].n_bytes, alignment)
    return placed, end


class Layout(NamedTuple):
    """A file before its data: every byte has its place."""

    header: bytes
    """Padded to where the data begins."""
    positions: tuple[int, ...]
    """Of each tensor's first byte in the file."""
    n_bytes: int
    """Size of the file."""


def lay_out(
    metadata_spans: Iterable[bytes],
    tensors: Iterable[tuple[str, tuple[int, ...], TensorType]],
    alignment: int,
) -> Layout:
    """Encode a header for tensors (name, dims, type) whose data follow it in that order.

    Raises
    ------
    QuantError
        If a row is no whole number of blocks of its type.
    """
    placed, data_size = place_tensors(tensors, alignment)
    header = encode_header(metadata_spans, placed, alignment)
    positions = tuple(len(header) + info.offset for info in placed)
    return Layout(header, positions, len(header) + data_size)

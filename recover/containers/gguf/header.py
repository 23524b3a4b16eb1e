"""Bytes to `Header` and back; pure, and distrustful of every count, length and offset.

The format, all little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)::

    "GGUF"  u32 version  u64 n_tensors  u64 n_kv
    n_kv      x  string key, u32 value type, value
    n_tensors x  string name, u32 n_dims, u64 dims[n_dims], u32 tensor type, u64 offset
    padding to the alignment, then the tensors' data, offsets counted from here

where a string is a u64 length and that many bytes, and an array value is a u32 element type, a u64
count and the elements. In version 1 (August 2023) counts, lengths and dims are u32; offsets are u64
as well (https://github.com/ggml-org/llama.cpp/pull/2821).
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from recover._text import quoted
from recover.containers.gguf.cursor import (
    FORMATS,
    MAX_ITEMS,
    MAX_NAME,
    MAX_READ,
    U32,
    U64,
    Cursor,
    ValueType,
)
from recover.containers.gguf.extents import TensorInfo, align, check_extents, told_by_size
from recover.containers.gguf.older import described_older, widened
from recover.errors import GGUFError, QuantError
from recover.quants import TensorType, types_by_id

__all__ = [
    "MAX_NAME",
    "Header",
    "KeyValue",
    "Layout",
    "TensorInfo",
    "ValueType",
    "align",
    "encode_header",
    "encode_key_value",
    "encode_string",
    "lay_out",
    "parse_header",
    "place_tensors",
]

MAGIC = b"GGUF"
READABLE_VERSIONS = (1, 2, 3)
WRITTEN_VERSION = 3
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 8
"""Dimensions of a tensor. ggml has 4; programs for images and video store more, and gguf-py too."""


@dataclass(frozen=True)
class KeyValue:
    """One metadata entry; its bytes stay where they are and are parsed only when asked."""

    key: str
    """For instance ``general.architecture``."""
    value_type: ValueType
    """Type of the value."""
    stored: memoryview
    """Key, type and value, as versions 2 and 3 have them: a view of the buffer that was parsed."""

    @property
    def span(self) -> bytes:
        """Key, type and value, byte for byte as stored (of version 1: as version 2 does)."""
        return bytes(self.stored)

    @cached_property
    def value(self) -> Any:
        """The value as int, float, bool, str or (nested) list.

        Raises
        ------
        GGUFError
            If a string in an array is not UTF-8, or a value is too long to be read.
        """
        cursor = Cursor(self.stored, f"metadata {quoted(self.key)}", MAX_READ)
        cursor.string(MAX_NAME)
        return cursor.value(ValueType(cursor.u32()))


@dataclass(frozen=True)
class Header:
    """Everything in front of the tensors' data."""

    version: int
    """1, 2 or 3."""
    metadata: Mapping[str, KeyValue]
    """In file order."""
    tensors: tuple[TensorInfo, ...]
    """In file order."""
    alignment: int
    """Of the data section and of every tensor in it."""
    data_start: int
    """Position of the data section in the file."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a metadata key, or `default`."""
        entry = self.metadata.get(key)
        return default if entry is None else entry.value


def parse_header(buffer: bytes | memoryview, n_bytes: int | None = None) -> Header:
    """Read the header of a GGUF file from the file's bytes.

    Parameters
    ----------
    buffer : bytes-like
        The whole file (usually mapped: only the header is touched), or the beginning of it.
    n_bytes : int, optional
        Size of the file; default: that of the buffer.

    Returns
    -------
    Header

    Raises
    ------
    GGUFError
        If anything announced does not fit into the file, overlaps, or is not understood.
    ShortError
        If the header goes on behind the buffer.
    """
    cursor = Cursor(memoryview(buffer), "header", MAX_ITEMS, n_bytes)
    version = _parse_version(cursor)
    n_tensors = cursor.count(16, "tensors", n_lengths=1)
    n_kv = cursor.count(5, "metadata entries", n_lengths=1)
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
    infos = told_by_size(tuple(tensors.values()), alignment, cursor.total - data_start)
    check_extents(infos, alignment, cursor.total - data_start)
    return Header(version, metadata, infos, alignment, data_start)


def _parse_version(cursor: Cursor) -> int:
    if cursor.total == 0:
        raise GGUFError("the file is empty")
    magic = bytes(cursor.buffer[:4])
    if magic != MAGIC:
        older = described_older(cursor.buffer)
        other = f"it begins with {magic!r} instead of {MAGIC!r}"
        raise GGUFError(f"not a GGUF file: {older or other}")
    cursor.skip(4)
    version = cursor.u32()
    if version not in READABLE_VERSIONS:
        if int.from_bytes(U32.pack(version), "big") in READABLE_VERSIONS:
            raise GGUFError(
                "big-endian GGUF files are not supported; convert it with gguf-convert-endian"
                " of the package gguf"
            )
        known = ", ".join(map(str, READABLE_VERSIONS))
        raise GGUFError(f"GGUF version {version} is not supported, only {known}")
    if version == 1:
        cursor.length = U32
    return version


def _parse_key_value(cursor: Cursor) -> KeyValue:
    start = cursor.position
    cursor.begin("metadata")
    key = cursor.string(MAX_NAME)
    cursor.begin("metadata", key)
    value_type = cursor.value_type()
    value_start = cursor.position
    cursor.skip_value(value_type)
    cursor.check_end()
    stored = cursor.buffer[start : cursor.position]
    if cursor.length is not U64:
        value = cursor.buffer[value_start : cursor.position]
        stored = memoryview(encode_string(key) + U32.pack(value_type) + widened(value, value_type))
    return KeyValue(key, value_type, stored)


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


def _parse_tensor(cursor: Cursor) -> TensorInfo:
    cursor.begin("tensor table")
    name = cursor.string(MAX_NAME)
    cursor.begin("tensor", name)
    n_dims = cursor.u32()
    if n_dims > MAX_DIMS:
        raise GGUFError(f"{cursor.what}: {n_dims} dimensions, more than {MAX_DIMS}")
    dims = cursor.sizes(n_dims) or (1,)
    try:
        kinds = types_by_id(cursor.u32())
    except QuantError as error:
        raise GGUFError(f"{cursor.what}: {error}") from None
    if 0 in dims:
        raise GGUFError(f"{cursor.what}: shape {dims} has no weights")
    offset = cursor.u64()
    kind = next((each for each in kinds if dims[0] % each.block_size == 0), None)
    if kind is None:
        raise GGUFError(
            f"{cursor.what}: rows of {dims[0]} weights are no multiple"
            f" of the {kinds[0].block_size} weights in a {kinds[0].name} block"
        )
    info = TensorInfo(name, dims, kind, offset)
    try:
        _ = info.n_bytes
    except QuantError as error:
        raise GGUFError(f"{cursor.what}: {error}") from None
    cursor.check_end()
    return info


def encode_string(text: str) -> bytes:
    """A GGUF string; what has no UTF-8 form, as in some names of files, becomes a question mark."""
    raw = text.encode(errors="replace")
    return U64.pack(len(raw)) + raw


def encode_key_value(key: str, value_type: ValueType, value: Any) -> bytes:
    """A metadata entry; a list becomes an array of `value_type`."""
    head = encode_string(key)
    if isinstance(value, list):
        head += U32.pack(ValueType.ARRAY) + U32.pack(value_type) + U64.pack(len(value))
        return head + b"".join(_encode_scalar(value_type, element) for element in value)
    return head + U32.pack(value_type) + _encode_scalar(value_type, value)


def _encode_scalar(value_type: ValueType, value: Any) -> bytes:
    if value_type == ValueType.STRING:
        return encode_string(value)
    return struct.pack(f"<{FORMATS[value_type]}", value)


def encode_header(
    metadata_spans: Iterable[bytes], tensors: Iterable[TensorInfo], alignment: int
) -> bytes:
    """The bytes in front of the data section, padded to the alignment.

    Raises
    ------
    GGUFError
        If a tensor has a type that GGUF files have no number for.
    """
    spans, infos = list(metadata_spans), list(tensors)
    parts = [
        MAGIC,
        U32.pack(WRITTEN_VERSION),
        U64.pack(len(infos)),
        U64.pack(len(spans)),
        *spans,
    ]
    for tensor in infos:
        if tensor.type.type_id is None:
            raise GGUFError(
                f"tensor {quoted(tensor.name)}: GGUF files cannot store {tensor.type.name}"
            )
        parts += [encode_string(tensor.name), U32.pack(len(tensor.dims))]
        parts += [U64.pack(dim) for dim in tensor.dims]
        parts += [U32.pack(tensor.type.type_id), U64.pack(tensor.offset)]
    length = sum(map(len, parts))
    return b"".join([*parts, bytes(align(length, alignment) - length)])


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

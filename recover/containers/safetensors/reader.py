"""Opening safetensors files, mapped read-only: one file, or a model folder with its index.

The format (https://github.com/huggingface/safetensors#format)::

    u64 header length, little-endian
    the header, JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}
    the tensors' data, offsets counted from here, without gaps

The key ``__metadata__`` holds texts. Shapes are row-major, so the row length comes last.
"""

import os
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from recover._json import MOST_BYTES, JSONError, parse_object
from recover._text import printable, quoted, some
from recover.containers.mapping import check_unchanged, map_file, name_tensors
from recover.containers.safetensors.folder import INDEX, indexed_files, read_json, what_it_is
from recover.errors import GGUFError, SafetensorsError
from recover.quants import U8Array

BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Bits of one number of each type that the format knows."""

CONFIG = "config.json"

# Limits far beyond every model.
_MAX_DIMS = 8
_MAX_NAME = 65_535
_MAX_SIZE = 1 << 62
_COMPARED = 1 << 24  # bytes at once
_SLICE = re.compile(r"-TP-\d+\b")
_N_TELLING = 64  # bytes at the start that tell other kinds of files


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a header."""

    name: str
    """Name of the tensor."""
    dtype: str
    """One of `BITS`."""
    shape: tuple[int, ...]
    """Row length last; empty for a single number."""
    start: int
    end: int
    """First byte and one past the last, counted from the start of the data."""


@dataclass(frozen=True)
class Header:
    """Everything in front of the data."""

    tensors: tuple[TensorInfo, ...]
    """By ascending position."""
    metadata: Mapping[str, str]
    """The texts of ``__metadata__``."""
    data_start: int
    """Position of the data in the file."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of an open model."""

    name: str
    """Name of the tensor."""
    dtype: str
    """One of `BITS`."""
    shape: tuple[int, ...]
    """Row length last; empty for a single number."""
    raw: U8Array
    """uint8 (n_bytes,): a read-only view of the mapped file, perhaps not aligned."""
    part: Path
    """The file that holds it."""

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@dataclass(frozen=True)
class Model:
    """A safetensors file, or all files of a model folder, opened read-only."""

    path: Path
    """As given."""
    parts: tuple[Path, ...]
    """All files that were opened."""
    tensors: Mapping[str, Tensor]
    """In the order of the files, by position in each."""
    metadata: Mapping[str, str]
    """Of the first file."""
    config: Mapping[str, Any]
    """``config.json`` beside the files; empty if there is none."""


def parse_header(buffer: bytes | memoryview) -> Header:
    """Read the header of a safetensors file from the file's bytes.

    Parameters
    ----------
    buffer : bytes-like
        The whole file (usually mapped: only the header is touched).

    Returns
    -------
    Header

    Raises
    ------
    SafetensorsError
        If anything announced does not fit into the file, overlaps, or is not understood.
    """
    view = memoryview(buffer)
    if len(view) < 8:
        raise SafetensorsError(f"the file has {len(view)} bytes, too few for a header")
    length = int.from_bytes(view[:8], "little")
    if length > min(MOST_BYTES, len(view) - 8):
        if found := what_it_is(bytes(view[:_N_TELLING])):
            raise SafetensorsError(f"not a safetensors file: {found}")
        raise SafetensorsError(
            f"not a safetensors file, or truncated: announces a header of {length} bytes, but"
            f" {len(view) - 8} follow and more than {MOST_BYTES} are not supported"
        )
    try:
        document = parse_object(bytes(view[8 : 8 + length]))
    except JSONError as error:
        raise SafetensorsError(f"header: {error}") from None
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise SafetensorsError("header: '__metadata__' is no object of texts")
    tensors = [_parse_tensor(name, entry) for name, entry in document.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    _check_extents(tensors, len(view) - 8 - length)
    return Header(tuple(tensors), MappingProxyType(metadata), 8 + length)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_SIZE


def _parse_tensor(name: str, entry: Any) -> TensorInfo:
    what = f"tensor {quoted(name)}"
    if len(name) > _MAX_NAME:
        raise SafetensorsError(f"{what}: names of more than {_MAX_NAME} characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise SafetensorsError(f"{what}: its entry is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise SafetensorsError(f"{what}: type {quoted(str(dtype))} is unknown")
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise SafetensorsError(f"{what}: its shape is no list of sizes")
    if len(shape) > _MAX_DIMS:
        raise SafetensorsError(f"{what}: {len(shape)} dimensions, more than {_MAX_DIMS}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise SafetensorsError(f"{what}: its data_offsets are no two positions")
    start, end = offsets
    n_bits = prod(shape) * BITS[dtype]
    if n_bits % 8 or end - start != n_bits // 8:
        raise SafetensorsError(
            f"{what}: {end - start} bytes from {start} to {end}, but {dtype} numbers of shape"
            f" {shape} take {n_bits / 8:g}"
        )
    return TensorInfo(name, dtype, tuple(shape), start, end)


def _check_extents(tensors: list[TensorInfo], available: int) -> None:
    end, previous = 0, "the start of the data"
    for tensor in tensors:
        what = f"tensor {quoted(tensor.name)}"
        if tensor.start < end:
            raise SafetensorsError(f"{what} overlaps {previous}")
        if tensor.start > end:
            raise SafetensorsError(f"{what} begins {tensor.start - end} bytes behind {previous}")
        end, previous = tensor.end, what
        if end > available:
            raise SafetensorsError(
                f"{what} ends {end - available} bytes beyond the end of the file; the file is"
                " truncated, or its header damaged"
            )
    if end != available:
        raise SafetensorsError(f"{available - end} bytes behind {previous} belong to no tensor")


def open_safetensors(path: str | os.PathLike[str]) -> Model:
    """Open a safetensors file, or the files of a model folder.

    Parameters
    ----------
    path : path-like
        A file, or a folder: the files that ``model.safetensors.index.json`` names, or all of them
        if there is none.

    Returns
    -------
    Model

    Raises
    ------
    SafetensorsError
        If a file cannot be read or is no valid safetensors file, or the index does not fit.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    wanted = indexed_files(folder) if path.is_dir() else {path: None}
    all_names = {name for names in wanted.values() for name in names or ()}
    tensors: dict[str, Tensor] = {}
    metadata: Mapping[str, str] = {}
    for number, (part, names) in enumerate(wanted.items()):
        header = _open_part(part, tensors)
        metadata = header.metadata if number == 0 else metadata
        if names is not None:
            _check_indexed(part, names, {tensor.name for tensor in header.tensors}, all_names)
    config = read_json(folder / CONFIG)
    return Model(path, tuple(wanted), MappingProxyType(tensors), metadata, MappingProxyType(config))


def _open_part(part: Path, tensors: dict[str, Tensor]) -> Header:
    """Map a file and add its tensors; those that another one holds, too, are taken once."""
    try:
        data = map_file(part)
        header = parse_header(data.data)
        name_tensors(part, [(header.data_start + t.end, t.name) for t in header.tensors])
        for info in header.tensors:
            raw = data[header.data_start + info.start : header.data_start + info.end]
            tensor = Tensor(info.name, info.dtype, info.shape, raw, part)
            if not _is_same(tensors.setdefault(info.name, tensor), tensor):
                raise SafetensorsError(_of_two(info.name, part, tensors[info.name].part))
    except (GGUFError, SafetensorsError) as error:
        check_unchanged([part])
        raise SafetensorsError(f"{printable(part)}: {error}") from None
    return header


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two arrays are of one type and shape, and have the same bytes."""
    if one is other:
        return True
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    parts = range(0, one.raw.size, _COMPARED)
    return all(
        np.array_equal(one.raw[i : i + _COMPARED], other.raw[i : i + _COMPARED]) for i in parts
    )


def _of_two(name: str, one: Path, other: Path) -> str:
    """What to say of a tensor that two files hold with other numbers."""
    what = f"tensor {quoted(name)} is in {printable(other)}, too"
    if _SLICE.search(one.name) and _SLICE.search(other.name):
        return (
            f"{what}, with other numbers: each file holds a slice for one GPU (tensor parallel);"
            " join the slices, and name the result"
        )
    return f"{what}; move one of the files out of the folder, or name the file that is meant"


def _check_indexed(part: Path, names: Set[str], held: Set[str], all_names: Set[str]) -> None:
    """Refuse a file that holds other tensors than the index says.

    Several files may hold a tensor, of which the index names one.
    """
    for odd, what in ((names - held, "does not hold what"), (held - all_names, "holds more than")):
        if odd:
            raise SafetensorsError(
                f"{printable(part)}: {what} {INDEX} says:"
                f" {some([quoted(name) for name in sorted(odd)])}; they are not of one download;"
                " load both again"
            )

"""Opening GGUF files: mapped read-only, split files read as one."""

import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from recover.errors import GGUFError
from recover.gguf.header import Header, KeyValue, TensorInfo, parse_header
from recover.quants import TensorType, U8Array

_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class Tensor:
    """A tensor of an open model.

    Attributes
    ----------
    info : TensorInfo
        Name, dims, type.
    raw : uint8 (n_bytes,)
        The stored bytes: a read-only view of the mapped file.
    """

    info: TensorInfo
    raw: U8Array

    @property
    def name(self) -> str:
        """Name of the tensor."""
        return self.info.name

    @property
    def dims(self) -> tuple[int, ...]:
        """Sizes, row length first."""
        return self.info.dims

    @property
    def type(self) -> TensorType:
        """How it is stored."""
        return self.info.type

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return self.info.n_weights


@dataclass(frozen=True)
class Model:
    """A GGUF file, or all parts of a split one, opened read-only.

    Attributes
    ----------
    path : Path
        As given (of a split file: the first part).
    parts : tuple of Path
        All files that were opened.
    n_bytes : int
        Their total size.
    header : Header
        Of the first part, which carries the metadata.
    tensors : mapping of str to Tensor
        Of all parts, in file order.
    """

    path: Path
    parts: tuple[Path, ...]
    n_bytes: int
    header: Header
    tensors: Mapping[str, Tensor]

    @property
    def metadata(self) -> Mapping[str, KeyValue]:
        """Metadata entries by key."""
        return self.header.metadata

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a metadata key, or `default`."""
        return self.header.get(key, default)

    @cached_property
    def n_weights(self) -> int:
        """Number of weights in all tensors."""
        return sum(tensor.n_weights for tensor in self.tensors.values())


def open_gguf(path: str | os.PathLike[str]) -> Model:
    """Open a GGUF file; one part of a split file stands for all of them.

    Parameters
    ----------
    path : path-like
        The file, or any part named ``...-00001-of-0000N.gguf``.

    Returns
    -------
    Model

    Raises
    ------
    GGUFError
        If a file cannot be read, or is no valid GGUF file, or parts are missing or do not fit.
    """
    parts = _part_paths(Path(path))
    headers: list[Header] = []
    tensors: dict[str, Tensor] = {}
    n_bytes = 0
    for number, part in enumerate(parts):
        data = _map(part)
        n_bytes += data.size
        try:
            header = parse_header(data.data)
            if len(parts) > 1:
                _check_part(header, number, len(parts))
            for info in header.tensors:
                start = header.data_start + info.offset
                tensor = Tensor(info, data[start : start + info.n_bytes])
                if tensors.setdefault(info.name, tensor) is not tensor:
                    raise GGUFError(f"tensor {info.name!r} is in two parts")
        except GGUFError as error:
            raise GGUFError(f"{part}: {error}") from None
        headers.append(header)
    return Model(parts[0], parts, n_bytes, headers[0], MappingProxyType(tensors))


def _part_paths(path: Path) -> tuple[Path, ...]:
    match = _PART_NAME.fullmatch(path.name)
    if match is None:
        return (path,)
    total = int(match["total"])
    if not 1 <= int(match["number"]) <= total:
        raise GGUFError(f"{path}: part {match['number']} of {match['total']} cannot exist")
    parts = [path.with_name(f"{match['stem']}-{i + 1:05}-of-{total:05}.gguf") for i in range(total)]
    for part in parts:
        if not part.exists():
            raise GGUFError(f"{part}: this part of the split file is missing")
    return tuple(parts)


def _check_part(header: Header, number: int, total: int) -> None:
    stored = header.get("split.no"), header.get("split.count")
    if stored != (number, total):
        raise GGUFError(
            f"the name says part {number + 1} of {total}, but its metadata split.no and split.count"
            f" are {stored[0]} and {stored[1]}"
        )


def _map(path: Path) -> U8Array:
    """The file's bytes, read-only; pages are loaded when touched."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise GGUFError(f"{path}: the file is empty")
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        reason = getattr(error, "strerror", None) or error
        raise GGUFError(f"{path}: cannot be read: {reason}") from None

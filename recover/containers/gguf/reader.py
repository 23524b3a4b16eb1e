"""Opening GGUF files: mapped read-only, split files read as one."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from recover._text import printable, quoted, url_of
from recover.containers.gguf.cursor import ShortError
from recover.containers.gguf.header import MAGIC, Header, KeyValue, ValueType, parse_header
from recover.containers.gguf.parts import described_piece, parse_part_name, part_paths
from recover.containers.gguf.remote import read_remote
from recover.containers.gguf.side_scales import with_side_scales
from recover.containers.gguf.tensor import Tensor
from recover.containers.identity import identity_of
from recover.containers.mapping import check_unchanged, map_file, name_tensors
from recover.containers.model import BriefModel, Container, StoredTensor
from recover.containers.rows import Stored
from recover.errors import GGUFError

__all__ = ["CONTAINER", "GGUFModel", "Tensor", "open_gguf"]

T = TypeVar("T", bound=StoredTensor, covariant=True)

_NO_INTEGERS = (ValueType.FLOAT32, ValueType.FLOAT64, ValueType.STRING, ValueType.ARRAY)


@dataclass(frozen=True, repr=False, eq=False)
class GGUFModel(BriefModel, Generic[T]):
    """A GGUF file, or all parts of a split one, opened read-only.

    A `recover.containers.model.Model` that has a header besides. Its tensors are `Tensor`, unless
    others were put in the place of some.

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
    tensors : mapping of str to T
        Of all parts, in file order; side tensors are with their matrix.
    header_sizes : tuple of int
        Bytes in front of the data, of each part.
    """

    path: Path
    parts: tuple[Path, ...]
    n_bytes: int
    header: Header
    tensors: Mapping[str, T]
    header_sizes: tuple[int, ...]

    @property
    def metadata(self) -> Mapping[str, KeyValue]:
        """Metadata entries by key."""
        return self.header.metadata

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a metadata key, or `default`.

        Raises
        ------
        GGUFError
            As `KeyValue.value` does.
        """
        try:
            return self.header.get(key, default)
        except GGUFError as error:
            raise GGUFError(f"{printable(self.path)}: {error}") from None

    def keys_of(self, prefix: str) -> tuple[str, ...]:
        """The keys that begin with a text; asked for again, they are not looked for again."""
        if prefix not in self._keys_of:
            keys = (key for key in self.metadata if key.startswith(prefix))
            self._keys_of[prefix] = tuple(keys)
        return self._keys_of[prefix]

    @cached_property
    def _keys_of(self) -> dict[str, tuple[str, ...]]:
        return {}

    @cached_property
    def stored(self) -> Mapping[str, StoredTensor]:
        """All tensors that the files hold, each followed by its side tensors."""
        found: dict[str, StoredTensor] = {}
        for tensor in self.tensors.values():
            found[tensor.name] = tensor
            found.update((side.name, side) for side in tensor.side_tensors)
        return MappingProxyType(found)

    @cached_property
    def n_weights(self) -> int:
        """Number of weights in all tensors."""
        return sum(tensor.n_weights for tensor in self.tensors.values())

    def with_tensors(self, tensors: Mapping[str, StoredTensor]) -> "GGUFModel[StoredTensor]":
        """The same model with others in the place of some tensors."""
        changed: GGUFModel[StoredTensor] = self
        return replace(changed, tensors=MappingProxyType({**self.tensors, **tensors}))

    @property
    def left_out(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def without(self, names: Collection[str]) -> "GGUFModel[T]":
        """The same model without some tensors."""
        kept = {name: each for name, each in self.tensors.items() if name not in names}
        return replace(self, tensors=MappingProxyType(kept))

    def fitted(self, names: Collection[str]) -> "GGUFModel[T]":
        """The same model: it has one layout."""
        return self

    def fingerprint(self) -> str:
        """A digest of names, sizes, times of change and headers of the files, as they are now.

        Raises
        ------
        GGUFError
            If a file cannot be read any more.
        """
        files = []
        for part, n_bytes in zip(self.parts, self.header_sizes, strict=True):
            header = hashlib.sha256(_first_bytes(part, n_bytes)).hexdigest()
            files.append([*identity_of(part), header])
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def open_gguf(path: str | os.PathLike[str]) -> GGUFModel[Tensor]:
    """Open a GGUF file; one part of a split file stands for all of them.

    Parameters
    ----------
    path : path-like
        The file, or any part named ``...-00001-of-0000N.gguf``.

    Returns
    -------
    GGUFModel

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
        try:
            header, data, size = _read_part(part, is_part=len(parts) > 1)
            headers.append(header)
            ends = [(header.data_start + t.offset + t.n_bytes, t.name) for t in header.tensors]
            name_tensors(part, sorted(ends))
            _check_part(header, headers[0], number, len(parts))
            for info in header.tensors:
                start = header.data_start + info.offset
                tensor = Tensor(info, data(start, start + info.n_bytes))
                if tensors.setdefault(info.name, tensor) is not tensor:
                    raise GGUFError(f"tensor {quoted(info.name)} is in another part, too")
            if number + 1 == len(parts) > 1:
                _check_total(header, len(tensors))
        except GGUFError as error:
            check_unchanged([part])
            raise GGUFError(f"{printable(part)}: {error}") from None
        n_bytes += size
    try:
        tensors = with_side_scales(tensors)
    except GGUFError as error:
        check_unchanged(parts)
        raise GGUFError(f"{printable(parts[0])}: {error}") from None
    sizes = tuple(header.data_start for header in headers)
    return GGUFModel(parts[0], parts, n_bytes, headers[0], MappingProxyType(tensors), sizes)


def _read_part(path: Path, *, is_part: bool) -> tuple[Header, Callable[[int, int], Stored], int]:
    """The header of a file, what gives a range of its bytes, and their number."""
    if (url := url_of(path)) is not None:
        return read_remote(url, partial(_header_of, path))
    data = map_file(path, is_part=is_part)
    return _header_of(path, data.data, data.size), lambda start, end: data[start:end], data.size


def _header_of(path: Path, data: bytes | memoryview, n_bytes: int) -> Header:
    """The header in the bytes of a file, or in the first ones of `n_bytes`."""
    try:
        return parse_header(data, n_bytes)
    except ShortError:
        raise
    except GGUFError as error:
        raise GGUFError(described_piece(path.name) or str(error)) from None


def _first_bytes(path: Path, n_bytes: int) -> bytes:
    """The first bytes of a file, which may have been changed since it was opened."""
    if (url := url_of(path)) is not None:
        from recover.containers.remote.fetching import first_bytes

        return first_bytes(url, n_bytes)[1]
    try:
        return map_file(path, is_watched=False)[:n_bytes].tobytes()
    except GGUFError as error:
        raise GGUFError(f"{printable(path)}: {error}") from None


def _is_gguf(path: Path) -> bool:
    """Whether a regular file begins as GGUF files do; URLs are taken for such files unasked."""
    if url_of(path) is not None:
        return True
    with suppress(OSError, ValueError):
        if path.is_file():
            with path.open("rb") as file:
                return file.read(len(MAGIC)) == MAGIC
    return False


CONTAINER = Container("GGUF", _is_gguf, open_gguf)


def _part_paths(path: Path) -> tuple[Path, ...]:
    named = parse_part_name(path.name)
    if named is None:
        return (path,)
    if not 1 <= named.number <= named.total:
        raise GGUFError(
            f"{printable(path)}: part {named.number:05} of {named.total:05} cannot exist"
        )
    return part_paths(path, named.total)


def _check_part(header: Header, first: Header, number: int, total: int) -> None:
    """Refuse a part whose metadata contradict its name or the first part."""
    stored_number, stored_total = _integer(header, "split.no"), _integer(header, "split.count")
    if total == 1:
        if stored_total not in (None, 0, 1):
            raise GGUFError(
                f"is one of {stored_total} parts of a split file; parts are found by their names,"
                f" which must end in -00001-of-{stored_total:05}.gguf and so on"
            )
        return
    if (stored_number, stored_total) != (number, total):
        raise GGUFError(
            f"the name says part {number + 1} of {total}, but its metadata say split.no"
            f" {stored_number} (counted from 0) and split.count {stored_total}"
        )
    for key, entry in header.metadata.items():
        if key != "split.no" and key in first.metadata and entry != first.metadata[key]:
            raise GGUFError(f"metadata {quoted(key)} differs from that of the first part")


def _check_total(header: Header, n_tensors: int) -> None:
    announced = _integer(header, "split.tensors.count")
    if announced not in (None, n_tensors):
        raise GGUFError(
            f"metadata 'split.tensors.count' is {announced}, but the parts hold {n_tensors} tensors"
        )


def _integer(header: Header, key: str) -> int | None:
    entry = header.metadata.get(key)
    if entry is None:
        return None
    if entry.value_type in _NO_INTEGERS:
        raise GGUFError(f"metadata {key!r} is {entry.value_type.name}, not an integer")
    return int(entry.value)

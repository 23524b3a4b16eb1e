"""Folders that are written: shards, their index, and the place of every weight in them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from recover._text import quoted, some
from recover._version import __version__
from recover.containers.gguf.parts import cut
from recover.containers.huggingface.naming import Share
from recover.containers.places import Axis, FilePlan, Place
from recover.containers.safetensors.folder import INDEX
from recover.containers.safetensors.writer import lay_out
from recover.errors import PlanError
from recover.quants import TensorType, type_by_name

DTYPES = ("F32", "F16", "BF16")
"""Types of the arrays of a folder that is written."""

MAX_SHARD_SIZE = 5 * 10**9
"""Bytes; what transformers takes."""

_MOST_SHARDS = 99_999


class Shared(NamedTuple):
    """A tensor of the model, and the arrays that its weights go to."""

    name: str
    kind: TensorType
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class FolderLayout:
    """A folder before its weights are written."""

    path: Path
    """The folder."""
    files: tuple[FilePlan, ...]
    """All that becomes of it; the shards come first."""
    places: Mapping[str, tuple[Place, ...]]
    """By tensor of the model, where its weights go."""
    n_shards: int
    """So many of the files are shards."""


@dataclass
class _Array:
    """An array of the folder."""

    shape: tuple[int, ...]
    kind: TensorType
    tensors: list[str] = field(default_factory=list)
    n_given: int = 0

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.kind.type_size


def lay_out_folder(
    path: Path,
    tensors: Sequence[Shared],
    others: Mapping[str, bytes],
    max_shard_size: int | None = None,
) -> FolderLayout:
    """Give all weights their places.

    Parameters
    ----------
    path : Path
        The folder.
    tensors : sequence of Shared
        In the order in which their arrays lie in the folder.
    others : mapping of str to bytes
        Files beside the shards and their index, by name.
    max_shard_size : int, optional
        Most bytes of weights in a shard; an array that is larger has a shard of its own.

    Raises
    ------
    OutputError
        If a name cannot be used.
    PlanError
        If two tensors give the same array, or one is given in part only; or there were more shards
        than can be numbered.
    """
    arrays = _arrays(tensors)
    names = list(arrays)
    most = MAX_SHARD_SIZE if max_shard_size is None else max_shard_size
    ranges = cut([arrays[name].n_bytes for name in names], most)
    if len(ranges) > _MOST_SHARDS:
        raise PlanError(
            f"shards of {most:,} bytes would be {len(ranges):,}, more than {_MOST_SHARDS:,}; allow"
            " larger ones"
        )
    files, starts, weight_map = [], dict[str, tuple[int, int]](), dict[str, str]()
    metadata = {"format": "pt", "recover": __version__}
    for number, chosen in enumerate(ranges):
        file = "model.safetensors"
        if len(ranges) > 1:
            file = f"model-{number + 1:05}-of-{len(ranges):05}.safetensors"
        own = [names[i] for i in chosen]
        entries = [(name, arrays[name].kind.name, arrays[name].shape) for name in own]
        layout = lay_out(entries, metadata)
        files.append(FilePlan(path / file, layout.header, layout.n_bytes))
        for name, position in zip(own, layout.positions, strict=True):
            starts[name], weight_map[name] = (number, position), file
    texts = dict(others)
    if len(ranges) > 1:
        n_bytes = sum(each.n_bytes for each in arrays.values())
        index = {"metadata": {"total_size": n_bytes}, "weight_map": weight_map}
        texts[INDEX] = as_json(index)
    files += [FilePlan(path / name, text, len(text)) for name, text in sorted(texts.items())]
    places = {
        name: tuple(_placed(share, kind, *starts[share.array]) for share in shares)
        for name, kind, shares in tensors
    }
    return FolderLayout(path, tuple(files), MappingProxyType(places), len(ranges))


def as_json(document: object) -> bytes:
    """A document as people read it."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _arrays(tensors: Sequence[Shared]) -> dict[str, _Array]:
    """The arrays that tensors give, all of each."""
    found: dict[str, _Array] = {}
    for name, kind, shares in tensors:
        for share in shares:
            array = found.setdefault(share.array, _Array(share.shape, kind))
            if array.shape != share.shape or array.kind is not kind:
                given = some([quoted(each) for each in (*array.tensors, name)])
                raise PlanError(f"tensors {given} do not fit together in {quoted(share.array)}")
            array.n_given += share.end - share.start
            array.tensors.append(name)
    for name, array in found.items():
        if array.n_given != math.prod(array.shape):
            raise PlanError(
                f"the folder's {quoted(name)} needs {math.prod(array.shape):,} weights, but"
                f" {some([quoted(each) for each in array.tensors])} have {array.n_given:,}"
            )
    return found


def _placed(share: Share, kind: TensorType, file: int, position: int) -> Place:
    size = kind.type_size
    axes = tuple(Axis(n, stride * size) for n, stride in share.axes)
    return Place(file, position + share.offset * size, share.start, share.end, axes)


def plain_kind(name: str) -> TensorType:
    """The type of floats with that name, in capitals or not."""
    return type_by_name(name.upper())

"""Golden rows of ik_llama.cpp's types, and files of them."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover.quants import F32Array, TensorType, U8Array, type_by_name
from tests.hostile.builder import gguf, tensor

GOLDEN = Path(__file__).parents[1] / "golden" / "ik.npz"


class Rows(NamedTuple):
    """Some rows as that program stores them."""

    kind: TensorType
    raw: U8Array
    """(n_rows, row_bytes)"""
    original: F32Array
    """(n_rows, row_length)"""
    decoded: str
    """A digest; see `tests.golden.make_ik`."""


@cache
def names() -> tuple[str, ...]:
    """The types."""
    with np.load(GOLDEN) as golden:
        return tuple(sorted(name.removesuffix(".raw") for name in golden if name.endswith(".raw")))


@cache
def rows_of(name: str) -> Rows:
    """The rows of a type."""
    with np.load(GOLDEN) as golden:
        original: NDArray[np.float32] = golden[f"{name}.original"]
        if original.dtype != np.float32:
            original = (original.astype(np.uint32) << 16).view(np.float32)
        raw = golden[f"{name}.raw"]
        return Rows(type_by_name(name), raw, original, str(golden[f"{name}.decoded"]))


class Part(NamedTuple):
    """A tensor of a file."""

    name: str
    dims: tuple[int, ...]
    number: int
    raw: bytes
    room: int = -1
    """Bytes up to the next one, if they are not those of `raw`, padded."""


def file_of(parts: Sequence[Part], entries: Sequence[bytes] = ()) -> bytes:
    """A GGUF file of tensors with any numbers and sizes."""
    infos, data = [], b""
    for part in parts:
        infos.append(tensor(part.name, dims=part.dims, kind=part.number, offset=len(data)))
        room = part.room if part.room >= 0 else -(-len(part.raw) // 32) * 32
        data += part.raw[:room].ljust(room, b"\0")
    return gguf(entries, infos, data)


def interleave(name: str, raw: U8Array, table: NDArray[np.int64]) -> U8Array:
    """Rows (n_rows, row_bytes) of plain blocks without headers as a type interleaves them.

    Parameters
    ----------
    name : str
        The type.
    raw : uint8 (n_rows, row_bytes)
        Rows of the plain type.
    table : int64 (n_together, n_bits)
        Where the bits of a row's block go.
    """
    kind = type_by_name(name)
    blocks = raw.reshape(-1, len(table), raw.shape[1] // kind.type_size, kind.type_size)
    bits = np.unpackbits(blocks.swapaxes(1, 2), axis=-1, bitorder="little")
    mixed = np.empty((*bits.shape[:2], table.size), np.uint8)
    mixed[..., table.reshape(-1)] = bits.reshape(*bits.shape[:2], -1)
    return np.packbits(mixed, axis=-1, bitorder="little").reshape(raw.shape)


def table_of(name: str) -> NDArray[np.int64]:
    """The table of bits of an interleaved type."""
    with np.load(GOLDEN.parents[2] / "recover" / "data" / "interleaved.npz") as tables:
        steps = tables[name]
        found: NDArray[np.int64] = np.cumsum(steps, dtype=np.int64).reshape(steps.shape)
        return found

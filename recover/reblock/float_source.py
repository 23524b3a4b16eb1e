"""Float models that hide integers or 4-bit floats, as sources of re-blocking."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from recover._text import quoted
from recover.containers.gguf.header import ValueType, encode_key_value
from recover.containers.gguf.metadata import derived_metadata
from recover.containers.gguf.reader import open_gguf
from recover.containers.safetensors.reader import open_safetensors
from recover.errors import ReblockError
from recover.inputs.originals._fit import STORAGES
from recover.inputs.originals.grid import Floats
from recover.quants import OpaqueType, TensorType, U8Array, type_by_name
from recover.reblock.blocks import BlockRows, block_tensor, with_scales
from recover.reblock.floats import copied
from recover.reblock.grids import CONDITIONS, GridRows, OffGrid, about_kept, on_grid
from recover.reblock.integers import Request, by_rows, exact_tensor
from recover.reblock.metadata import file_type_entries
from recover.reblock.source import Original, OriginalTensor


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """A tensor of the input."""

    name: str
    dims: tuple[int, ...]
    type_name: str
    raw: U8Array


def open_float_original(path: Path, request: Request, *, n_threads: int | None = None) -> Original:
    """Open a float model and look for the grids in it.

    Parameters
    ----------
    path : Path
        A GGUF file, or a safetensors file or model folder.
    request : Request
        What the user wants: the type of the tensors with a grid (None: the smallest that holds each
        exactly), and whether weights off it may get the nearest code.
    n_threads : int, optional
        Default: the cores that this process may use.

    Returns
    -------
    Original
        Tensors without a grid, or whose grid no type holds exactly, are copied. A tensor with rows
        off the grid is copied, too, unless a type is wanted: then its rows are written as two
        tensors, ``NAME.grid_rows`` and ``NAME.float_rows`` with ``NAME.float_row_index``. If
        inexact tensors are allowed, both become tensors of the type, and keep all codes that there
        are.

    Raises
    ------
    RecoverError
        If the input cannot be read, or holds what GGUF has no type for.
    """
    if path.is_dir() or path.suffix == ".safetensors":
        parts, stored, metadata = _read_safetensors(path)
    else:
        parts, stored, metadata = _read_gguf(path)
    found = [pair for each in stored for pair in _output_tensors(each, request, n_threads)]
    tensors = [tensor for tensor, _ in found]
    has_grid = any(tensor.group is not None for tensor in tensors)
    return Original(
        path=path,
        parts=parts,
        metadata=tuple(metadata(tensors)),
        tensors=tuple(tensors),
        conditions=CONDITIONS if has_grid else (),
        warnings=tuple(about_kept([kind for _, kind in found if kind])),
    )


_Opened = tuple[tuple[Path, ...], Iterator[_Stored], Callable[[list[OriginalTensor]], list[bytes]]]


def _read_gguf(path: Path) -> _Opened:
    model = open_gguf(path)
    stored = (
        _Stored(
            name=each.name,
            dims=each.dims,
            type_name=each.type.name,
            raw=each.part(0, each.n_weights),
        )
        for each in model.stored.values()
    )

    def metadata(tensors: list[OriginalTensor]) -> list[bytes]:
        return derived_metadata(model.metadata, ("split.",), file_type_entries(tensors))

    return model.parts, stored, metadata


def _read_safetensors(path: Path) -> _Opened:
    model = open_safetensors(path)

    def stored() -> Iterator[_Stored]:
        for each in model.tensors.values():
            if not each.n_weights:
                continue
            if each.dtype not in STORAGES and not isinstance(_known(each.dtype), OpaqueType):
                raise ReblockError(
                    f"tensor {quoted(each.name)} is {each.dtype}, for which GGUF has no type"
                )
            dims = each.shape[::-1] or (1,)
            yield _Stored(name=each.name, dims=dims, type_name=each.dtype, raw=each.raw)

    def metadata(tensors: list[OriginalTensor]) -> list[bytes]:
        kind = model.config.get("model_type")
        architecture = kind if isinstance(kind, str) and kind else "unknown"
        entries = [
            ("general.architecture", ValueType.STRING, architecture),
            ("general.name", ValueType.STRING, model.path.resolve().stem),
            *file_type_entries(tensors),
        ]
        return [encode_key_value(*entry) for entry in entries]

    return model.parts, stored(), metadata


def _known(dtype: str) -> TensorType | None:
    return type_by_name(dtype) if dtype in ("I8", "I16", "I32", "I64", "F64") else None


def _output_tensors(
    stored: _Stored, request: Request, n_threads: int | None
) -> Iterator[tuple[OriginalTensor, str]]:
    """The output tensors of one tensor; with the type that would hold all but some weights."""
    floats = Floats(stored.raw, stored.type_name, stored.dims[0])
    found = on_grid(stored.name, floats, request, n_threads)
    if isinstance(found, GridRows):
        for tensor in _of_grid(stored.name, stored.dims, stored.type_name, found, found.said):
            yield tensor, ""
    elif not isinstance(found, OffGrid):
        yield _kept(stored, found), ""
    elif request.outtype is None or found.on_rows is None:
        yield _kept(stored, found.said), found.type_name
    else:
        for tensor in _split(stored, floats, found):
            yield tensor, ""


def _of_grid(
    name: str, dims: tuple[int, ...], stored_as: str, found: GridRows, said: str
) -> Iterator[OriginalTensor]:
    """Rows on a grid in the type that holds them, which was asked for or allowed before."""
    wanted = Request(outtype=found.type_name, allow_inexact=True)
    if isinstance(found.rows, BlockRows):
        yield from with_scales(block_tensor(name, dims, stored_as, found.rows, wanted, said))
    else:
        yield exact_tensor(name, dims, stored_as, found.rows, wanted, said)


def _kept(stored: _Stored, reason: str) -> OriginalTensor:
    kept = copied(stored.name, stored.dims, stored.type_name, stored.raw)
    return replace(kept, reason=reason)


def _split(stored: _Stored, floats: Floats, found: OffGrid) -> Iterator[OriginalTensor]:
    """The rows on the grid and the others as tensors of their own."""
    assert found.on_rows is not None
    length, off_rows = floats.row_length, found.off_rows
    is_on = np.ones(floats.n_rows, np.bool_)
    is_on[off_rows] = False
    if is_on.any():
        on = found.on_rows(np.flatnonzero(is_on))
        name, dims = f"{stored.name}.grid_rows", (length, on.rows.n_rows)
        said = f"{on.said}; {found.off} are in {stored.name}.float_rows"
        yield from _of_grid(name, dims, stored.type_name, on, said)
    lines, kind = stored.raw.reshape(floats.n_rows, -1), type_by_name(stored.type_name)

    def encode(first: int, last: int, out: U8Array) -> None:
        out[:] = lines[off_rows[first:last]].reshape(-1)

    yield OriginalTensor(
        name=f"{stored.name}.float_rows",
        dims=(length, off_rows.size),
        stored_as=stored.type_name,
        outtype=kind,
        group=None,
        exact=True,
        reason=f"kept in float: {found.off}",
        encode=by_rows(length, kind, encode),
        reference=None,
    )
    index = off_rows.astype("<i4").view(np.uint8)
    indexed = copied(f"{stored.name}.float_row_index", (off_rows.size,), "I32", index)
    shape = "x".join(map(str, stored.dims))
    yield replace(indexed, reason=f"which rows of {quoted(stored.name)} ({shape}) are in float")

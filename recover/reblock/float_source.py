"""Float models that hide integer grids, as sources of re-blocking."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted, some
from recover.containers.gguf.header import ValueType, encode_key_value
from recover.containers.gguf.metadata import derived_metadata
from recover.containers.gguf.reader import open_gguf
from recover.containers.safetensors.reader import open_safetensors
from recover.errors import ReblockError
from recover.inputs.originals._fit import ON_GRID, STORAGES, ZERO
from recover.inputs.originals.codes import (
    BLOCK,
    holds,
    n_bits,
    pack_codes,
    products,
    read_once,
    types_for,
)
from recover.inputs.originals.grid import LONGEST_ROW, Floats, Grid, Runs, find_grid, read
from recover.quants import OpaqueType, TensorType, U8Array, type_by_name
from recover.reblock.floats import copied
from recover.reblock.integers import by_rows, flat_reference
from recover.reblock.metadata import file_type_entries
from recover.reblock.source import Original, OriginalTensor

_PROVEN = (
    "every number of a tensor with a group is an integer code of at most 128 times the F16 scale of"
    " its run, rounded to nearest even (proven bit for bit); that it was made so is not proven, but"
    " anything else would be a coincidence"
)
_COARSEST = (
    "the scale of a run is the coarsest that fits: a run with few different codes may have had a"
    " finer one"
)
CONDITIONS = (_PROVEN, _COARSEST, "the sign of a zero does not matter")


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """A tensor of the input."""

    name: str
    dims: tuple[int, ...]
    type_name: str
    raw: U8Array


def open_float_original(
    path: Path, outtype: str | None, *, n_threads: int | None = None
) -> Original:
    """Open a float model and look for the integer grids in it.

    Parameters
    ----------
    path : Path
        A GGUF file, or a safetensors file or model folder.
    outtype : str or None
        Type of the tensors with a grid; None: the smallest that holds each exactly.
    n_threads : int, optional
        Default: the cores that this process may use.

    Returns
    -------
    Original
        Tensors without a grid, or whose grid no type holds exactly, are copied. A tensor with rows
        off the grid is copied, too, unless a type is wanted: then its rows are written as two
        tensors, ``NAME.grid_rows`` and ``NAME.float_rows`` with ``NAME.float_row_index``.

    Raises
    ------
    RecoverError
        If the input cannot be read, or holds what GGUF has no type for.
    """
    if path.is_dir() or path.suffix == ".safetensors":
        parts, stored, metadata = _read_safetensors(path)
    else:
        parts, stored, metadata = _read_gguf(path)
    tensors = [
        tensor
        for each in stored
        for tensor in _output_tensors(each, outtype and outtype.upper(), n_threads)
    ]
    has_grid = any(tensor.group is not None for tensor in tensors)
    return Original(
        path=path,
        parts=parts,
        metadata=tuple(metadata(tensors)),
        tensors=tuple(tensors),
        conditions=CONDITIONS if has_grid else (),
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
    stored: _Stored, outtype: str | None, n_threads: int | None
) -> Iterator[OriginalTensor]:
    """The output tensors of one tensor."""
    is_matrix = sum(dim > 1 for dim in stored.dims) > 1 and stored.dims[0] % BLOCK == 0
    floats = Floats(stored.raw, stored.type_name, stored.dims[0])
    grid = None
    if stored.type_name in STORAGES and is_matrix:
        grid = find_grid(floats, n_threads=n_threads)
    if grid is None:
        is_long = is_matrix and stored.dims[0] > LONGEST_ROW
        long = f"rows of more than {LONGEST_ROW} weights are not looked at"
        yield _kept(stored, long if is_long else "")
        return
    name, obstacle = _exact_type(grid, outtype)
    if obstacle:
        yield _kept(stored, f"{_describe(grid, stored)}, but {obstacle}")
    elif not grid.off_rows.size:
        yield _on_grid(stored, floats, grid, name, None, stored.name)
    elif outtype is None:
        yield _kept(
            stored,
            f"{_describe(grid, stored)}, but {_off(grid)}: no type holds both, so the tensor"
            f" stays {stored.type_name}; with a wanted type ({name}) the rows are written apart",
        )
    else:
        yield from _split(stored, floats, grid, name)


def _kept(stored: _Stored, reason: str) -> OriginalTensor:
    kept = copied(stored.name, stored.dims, stored.type_name, stored.raw)
    return replace(kept, reason=reason)


def _describe(grid: Grid, stored: _Stored) -> str:
    return (
        f"{n_bits(grid.reach)}-bit integers times a scale per {grid.run_length} weights,"
        f" rounded to {stored.type_name}"
    )


def _off(grid: Grid) -> str:
    """Says what is off the grid, and where."""
    rows = some([str(row) for row in grid.off_rows])
    what = [f"{grid.n_off} single weights"] if grid.n_off else []
    what += [f"{grid.n_failed} whole runs"] if grid.n_failed else []
    return f"{' and '.join(what)} off the grid in rows {rows}"


def _exact_type(grid: Grid, wanted: str | None) -> tuple[str, str]:
    """The smallest type that holds a grid, or the wanted one; and what stands against it."""
    size = grid.reach, grid.largest, grid.run_length
    names = types_for(*size)
    if grid.n_inexact:
        return "", f"the scales of {grid.n_inexact} runs are no F16 numbers"
    if not names:
        return "", "a block has codes 128 and -128, and no type holds both"
    if wanted is None:
        return names[0], ""
    if holds(wanted, *size):
        return wanted, ""
    return "", f"{wanted} does not hold it exactly; {' and '.join(names)} would"


def _split(stored: _Stored, floats: Floats, grid: Grid, name: str) -> Iterator[OriginalTensor]:
    """The rows on the grid and the others as tensors of their own."""
    is_on = np.ones(floats.n_rows, np.bool_)
    is_on[grid.off_rows] = False
    if is_on.any():
        part = f"{stored.name}.grid_rows"
        yield _on_grid(stored, floats, grid, name, np.flatnonzero(is_on), part)
    lines, kind = stored.raw.reshape(floats.n_rows, -1), type_by_name(stored.type_name)

    def encode(first: int, last: int, out: U8Array) -> None:
        out[:] = lines[grid.off_rows[first:last]].reshape(-1)

    yield OriginalTensor(
        name=f"{stored.name}.float_rows",
        dims=(floats.row_length, grid.off_rows.size),
        stored_as=stored.type_name,
        outtype=kind,
        group=None,
        exact=True,
        reason=f"kept in float: {_off(grid)}",
        encode=by_rows(floats.row_length, kind, encode),
        reference=None,
    )
    index = grid.off_rows.astype("<i4").view(np.uint8)
    indexed = copied(f"{stored.name}.float_row_index", (grid.off_rows.size,), "I32", index)
    shape = "x".join(map(str, stored.dims))
    yield replace(indexed, reason=f"which rows of {quoted(stored.name)} ({shape}) are in float")


def _on_grid(
    stored: _Stored,
    floats: Floats,
    grid: Grid,
    type_name: str,
    rows: NDArray[np.int64] | None,
    name: str,
) -> OriginalTensor:
    """A tensor of the rows that are on the grid: all of them if `rows` is None."""
    outtype, length = type_by_name(type_name), floats.row_length

    def runs_of(first: int, last: int) -> tuple[NDArray[Any], Runs]:
        if rows is None:
            words = floats.words(first * length, last * length)
        else:
            parts = [floats.words(row * length, (row + 1) * length) for row in rows[first:last]]
            words = np.concatenate(parts)
        runs = read(words, floats.type_name, grid.run_length, grid.expected)
        if not np.isin(runs.status, (ZERO, ON_GRID)).all():
            raise ReblockError(f"tensor {quoted(stored.name)} is not what it was: the file changed")
        return words, runs

    def encode(first: int, last: int, out: U8Array) -> None:
        _, runs = read_once(first, last, runs_of)
        pack_codes(runs.codes.reshape(-1, length), runs.scales, outtype, out)

    def reference(first: int, last: int) -> NDArray[np.float64]:
        words, runs = read_once(first, last, runs_of)
        return products(words, floats.type_name, runs.scales, stored.name).reshape(-1, length)

    dims = stored.dims if rows is None else (length, rows.size)
    return OriginalTensor(
        name=name,
        dims=dims,
        stored_as=stored.type_name,
        outtype=outtype,
        group=grid.run_length,
        exact=True,
        reason=f"{type_name} holds code x scale: {_describe(grid, stored)}"
        + (f"; {_off(grid)} are in {stored.name}.float_rows" if rows is not None else ""),
        encode=by_rows(length, outtype, encode),
        reference=flat_reference(length, reference),
    )

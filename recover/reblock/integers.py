"""Rows of integers with scales, and the GGUF type that holds them exactly."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted
from recover.errors import ReblockError
from recover.quants import (
    TILE,
    F32Array,
    I8Array,
    TensorType,
    U8Array,
    U16Array,
    type_by_name,
    types_of_integers,
)
from recover.reblock.floats import stored_as_float
from recover.reblock.source import OriginalTensor

F64Array = NDArray[np.float64]

_CHUNK = 1 << 20
_LARGEST_TILE = 8 * TILE
_LONGEST_ROW = 1 << 18
_NO_CODES = np.empty(0, np.int8)
_SCRATCH = threading.local()  # fresh memory for every tile would cost as much as the work


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user wants.

    Attributes
    ----------
    outtype : str or None
        Name of a type (``Q8_0``, ``Q4_0``, ``Q4_1``, ``Q5_0``, ``BF16``); None: the smallest exact
        one.
    allow_inexact : bool
        Whether a tensor that no type holds exactly is stored as BF16, F32 or Q8_0 instead of being
        refused.
    """

    outtype: str | None = None
    allow_inexact: bool = False


@dataclass(frozen=True, kw_only=True)
class IntegerRows:
    """A matrix, or a stack of them, whose rows are integers times scales (plus offsets).

    Attributes
    ----------
    n_rows, row_length : int
        All rows of a stack are counted.
    group : int
        Weights along a row that share a scale.
    lowest, highest : int
        The codes that the format can hold.
    codes : Callable
        ``codes(first, last, out: int8 (last - first, row_length))``.
    scales : Callable
        ``scales(first, last) -> float32 (last - first, row_length / group)``, as stored.
    offsets : Callable or None
        The same for what is added.
    reference : Callable
        ``reference(first, last) -> float64 (last - first, row_length)``: code times scale plus
        offset, by plain NumPy from the source.
    scales_are_f16 : bool
        Whether it is known that scales and offsets are float16 numbers, or to be rounded to them.
    obstacle : str
        Why some weights are no code times a scale, so that they get the nearest one; empty if all
        are.
    run_length : int or None
        Weights that share a scale in the source, if they are more than `group`.
    has_zeros : bool
        Whether 0 may be among the codes, beside others.
    """

    n_rows: int
    row_length: int
    group: int
    lowest: int
    highest: int
    codes: Callable[[int, int, I8Array], None]
    scales: Callable[[int, int], F32Array]
    offsets: Callable[[int, int], F32Array] | None = None
    reference: Callable[[int, int], F64Array]
    scales_are_f16: bool = False
    obstacle: str = ""
    run_length: int | None = None
    has_zeros: bool = True

    @property
    def formula(self) -> str:
        """What a weight is, for people."""
        return "code x scale" if self.offsets is None else "code x scale + offset"


def exact_tensor(
    name: str,
    dims: tuple[int, ...],
    stored_as: str,
    rows: IntegerRows,
    request: Request,
    reason: str = "",
) -> OriginalTensor:
    """The output tensor of rows of integers: exact if any type can be.

    Parameters
    ----------
    name, dims, stored_as
        See `OriginalTensor`.
    rows : IntegerRows
        What is to be stored.
    request : Request
        What the user wants.
    reason : str
        Conditions of the claim, in addition.

    Raises
    ------
    ReblockError
        If no type is exact, or not the wanted one, and inexact ones are not allowed.
    """
    check_row_length(name, rows.row_length)
    outtype, obstacle = _type_of_codes(rows, request.outtype)
    if outtype is not None:
        is_kept, said = True, f"{outtype.name} holds {rows.formula}"
        if rows.obstacle:
            said, obstacle = rows.obstacle, rows.obstacle
        elif not rows.scales_are_f16 and (obstacle := _beyond_f16(rows)):
            is_kept = request.outtype == outtype.name
            said = f"every code is kept, but scales are rounded to float16: {obstacle}"
        if not obstacle or (request.allow_inexact and is_kept):
            return OriginalTensor(
                name=name,
                dims=dims,
                stored_as=stored_as,
                outtype=outtype,
                group=rows.run_length or rows.group,
                exact=not obstacle,
                reason="; ".join(filter(None, (said, reason))),
                encode=by_rows(rows.row_length, outtype, _packer(rows, outtype)),
                reference=flat_reference(rows.row_length, rows.reference),
            )
    return inexact(
        name, dims, stored_as, rows.group, obstacle, rows.row_length, rows.reference, request
    )


def inexact(
    name: str,
    dims: tuple[int, ...],
    stored_as: str,
    group: int | None,
    obstacle: str,
    row_length: int,
    reference: Callable[[int, int], F64Array],
    request: Request,
) -> OriginalTensor:
    """A tensor that no type holds exactly: refused, or stored as what the user allows.

    Raises
    ------
    ReblockError
        If inexact types are not allowed.
    """
    if not request.allow_inexact:
        raise ReblockError(
            f"tensor {quoted(name)} ({stored_as}): {obstacle}; --allow-inexact stores it as F32, or"
            " with --type as BF16 or Q8_0, and says how large the error is"
        )
    wanted = request.outtype if request.outtype in ("BF16", "Q8_0") else "F32"
    if wanted == "Q8_0" and dims[0] % 32:
        wanted = "F32"
    return stored_as_float(
        name=name,
        dims=dims,
        stored_as=stored_as,
        group=group,
        outtype=type_by_name(wanted),
        reason=obstacle,
        reference=flat_reference(row_length, reference),
    )


def check_row_length(name: str, row_length: int) -> None:
    """Refuse rows that are longer than those of any matrix: whole ones are worked on."""
    if row_length > _LONGEST_ROW:
        raise ReblockError(
            f"tensor {quoted(name)}: rows of {row_length} weights; more than {_LONGEST_ROW} are not"
            " supported where integers have scales"
        )


def _type_of_codes(rows: IntegerRows, wanted: str | None) -> tuple[TensorType | None, str]:
    """The type that holds the codes of the rows, whatever their scales, or why there is none."""
    if rows.row_length % 32 or rows.group % 32:
        return None, (
            f"rows of {rows.row_length} weights with a scale per {rows.group} are no whole blocks"
            " of 32 weights with one scale"
        )
    names = [
        name
        for name, each in types_of_integers().items()
        if each.has_offset == (rows.offsets is not None)
        and rows.group % type_by_name(name).block_size == 0
        and each.lowest <= rows.lowest
        and rows.highest <= each.highest
        and (each.has_zero or not rows.has_zeros)
    ]
    if not names:
        return None, f"no type holds codes from {rows.lowest} to {rows.highest} with these scales"
    if wanted is not None and wanted not in names:
        return None, f"{wanted} does not hold it exactly, {' and '.join(names)} would"
    return type_by_name(wanted or names[0]), ""


def row_chunks(n_rows: int, n_columns: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold about a million numbers together."""
    step = max(1, _CHUNK // max(n_columns, 1))
    return ((first, min(first + step, n_rows)) for first in range(0, n_rows, step))


def _beyond_f16(rows: IntegerRows) -> str:
    """Says which of the scales or offsets float16 does not hold; empty if it holds all."""
    obstacle = _not_f16(rows, rows.scales, "scale")
    if not obstacle and rows.offsets is not None:
        obstacle = _not_f16(rows, rows.offsets, "offset")
    return obstacle


def _not_f16(rows: IntegerRows, numbers: Callable[[int, int], F32Array], what: str) -> str:
    """See `_beyond_f16`."""
    n_groups = rows.row_length // rows.group
    for first, last in row_chunks(rows.n_rows, n_groups):
        values = numbers(first, last)
        with np.errstate(over="ignore", invalid="ignore"):
            same = values.astype(np.float16).astype(np.float32) == values
        bad = np.argwhere(~(same & np.isfinite(values)))
        if bad.size:
            row, group = bad[0]
            return (
                f"the {what} {values[row, group]:.9g} of row {first + row}, group {group} is not"
                " exact in float16"
            )
    return ""


def f16_bits(values: F32Array) -> U16Array:
    """The bits of float16 numbers, row after row."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.ascontiguousarray(values, np.float32).astype(np.float16)
    return rounded.view(np.uint16).reshape(-1)


def _packer(rows: IntegerRows, outtype: TensorType) -> Callable[[int, int, U8Array], None]:
    pack = types_of_integers()[outtype.name].pack

    def encode(first: int, last: int, out: U8Array) -> None:
        n_codes = (last - first) * rows.row_length
        if getattr(_SCRATCH, "codes", _NO_CODES).size < n_codes:
            _SCRATCH.codes = np.empty(n_codes, np.int8)
        codes = _SCRATCH.codes[:n_codes].reshape(last - first, rows.row_length)
        rows.codes(first, last, codes)
        d = f16_bits(rows.scales(first, last))
        m = d if rows.offsets is None else f16_bits(rows.offsets(first, last))
        pack(codes.reshape(-1), d, m, rows.group, out)

    return encode


def by_rows(
    row_length: int, outtype: TensorType, encode_rows: Callable[[int, int, U8Array], None]
) -> Callable[[int, int, U8Array], None]:
    """`OriginalTensor.encode` from a function of whole rows: ends of rows are encoded and cut."""

    def encode(start: int, end: int, out: U8Array) -> None:
        first, last = start // row_length, -(-end // row_length)
        if start % row_length == 0 and end % row_length == 0:
            encode_rows(first, last, out)
            return
        covering = np.empty(outtype.n_bytes((last - first) * row_length), np.uint8)
        encode_rows(first, last, covering)
        begin = outtype.n_bytes(start - first * row_length)
        out[:] = covering[begin : begin + outtype.n_bytes(end - start)]

    return encode


def flat_reference(
    row_length: int, reference: Callable[[int, int], F64Array]
) -> Callable[[int, int], F64Array]:
    """`OriginalTensor.reference` from a function of whole rows."""

    def flat(start: int, end: int) -> F64Array:
        first, last = start // row_length, -(-end // row_length)
        begin = start - first * row_length
        return reference(first, last).reshape(-1)[begin : begin + end - start]

    return flat


def tile_size(row_length: int) -> int:
    """Weights of a tile: whole rows, if possible 64 or a multiple so that columns fill cache lines.

    Rows that are longer than any matrix has them, as those of a long vector, are cut.
    """
    if row_length > _LARGEST_TILE:
        return TILE
    rows = max(64, TILE // row_length // 64 * 64)
    return min(rows, _LARGEST_TILE // row_length) * row_length

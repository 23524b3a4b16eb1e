"""Rows of floats that are codes times a scale: with the codes, and the scales, found in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted, some
from recover.errors import ReblockError
from recover.inputs.originals._fit import INEXACT, NONE, OFF_GRID, ON_GRID, STORAGES, ZERO
from recover.inputs.originals.codes import (
    BLOCK,
    as_float64,
    holds,
    n_bits,
    products,
    read_once,
    types_for,
)
from recover.inputs.originals.fp4 import GROUPS, Fp4Grid, find_fp4
from recover.inputs.originals.grid import (
    LONGEST_ROW,
    Floats,
    Grid,
    Runs,
    find_grid,
    read,
)
from recover.quants import F32Array, I8Array, types_of_integers
from recover.quants.base import Integers
from recover.reblock.blocks import BlockRows
from recover.reblock.fp4_rows import describe_fp4, fp4_rows
from recover.reblock.integers import IntegerRows, Request

F64Array = NDArray[np.float64]

_PROVEN = (
    "every number of a tensor with a group is an integer code of at most 128 times the F16 scale of"
    " its run, or in MXFP4 and NVFP4 a 4-bit float times the scale or scales of its block, rounded"
    " to nearest even (proven bit for bit); that it was made so is not proven, but anything else"
    " would be a coincidence"
)
_COARSEST = (
    "the scale of a run is the coarsest that fits: a run with few different codes may have had a"
    " finer one"
)
CONDITIONS = (_PROVEN, _COARSEST, "the sign of a zero does not matter")


@dataclass(frozen=True)
class GridRows:
    """Floats that are stored as integers, or as 4-bit floats."""

    rows: IntegerRows | BlockRows
    """What is stored."""
    type_name: str
    """The type that holds them."""
    said: str
    """What was found, for people."""


@dataclass(frozen=True)
class OffGrid:
    """Floats on a grid, but for some."""

    type_name: str
    """The type that holds the others."""
    said: str
    """Why they stay as they are, for people."""
    off: str
    """Which ones are off the grid, for people."""
    off_rows: NDArray[np.int64]
    """Rows with any of them, ascending: shape (n,)."""
    on_rows: Callable[[NDArray[np.int64]], GridRows] | None
    """The others, of which indices are given, as rows that the type holds exactly; None if scales
    are in the way."""


def on_grid(
    name: str, floats: Floats, request: Request, n_threads: int | None = None
) -> GridRows | OffGrid | str:
    """The integers, or the 4-bit floats, behind a matrix of floats.

    Parameters
    ----------
    name : str
        Of the tensor.
    floats : Floats
        What is stored.
    request : Request
        What the user wants.
    n_threads : int, optional
        Default: the cores that this process may use.

    Returns
    -------
    GridRows, OffGrid or str
        The last says why there is no more to it; it may be empty.
    """
    is_matrix = floats.row_length % BLOCK == 0 and min(floats.n_rows, floats.row_length) > 1
    if floats.type_name not in STORAGES or not is_matrix:
        return ""
    if request.outtype in (None, *GROUPS):
        fp4 = find_fp4(floats, request.outtype, n_threads=n_threads)
        if fp4 is not None:
            return _on_fp4(name, floats, fp4, request)
    grid = find_grid(floats, n_threads=n_threads)
    if grid is None:
        is_long = floats.row_length > LONGEST_ROW
        return f"rows of more than {LONGEST_ROW} weights are not looked at" if is_long else ""
    what = describe(grid, floats.type_name)
    type_name, obstacle = type_for(grid, request.outtype)
    if obstacle:
        return f"{what}, but {obstacle}"
    inexact = f"the scales of {grid.n_inexact} runs are no F16 numbers" if grid.n_inexact else ""
    off = what_is_off(grid.n_off, grid.n_failed, grid.off_rows) if grid.off_rows.size else ""
    faults = "; ".join(filter(None, (inexact, off)))
    if not faults:
        return GridRows(grid_rows(name, floats, grid, type_name), type_name, what)
    if request.allow_inexact:
        said = f"{what}, but {faults}: every other code is kept"
        return GridRows(grid_rows(name, floats, grid, type_name, obstacle=said), type_name, "")

    def on_rows(rows: NDArray[np.int64]) -> GridRows:
        return GridRows(grid_rows(name, floats, grid, type_name, rows=rows), type_name, what)

    said = _why_kept(f"{what}, but {faults}", floats, type_name, can_split=not inexact)
    return OffGrid(type_name, said, faults, grid.off_rows, None if inexact else on_rows)


def _on_fp4(name: str, floats: Floats, grid: Fp4Grid, request: Request) -> GridRows | OffGrid:
    """The same of 4-bit floats."""
    type_name, what = grid.steps.type_name, describe_fp4(grid, floats.type_name)
    if not grid.off_rows.size:
        return GridRows(fp4_rows(name, floats, grid), type_name, what)
    off = what_is_off(grid.n_off, grid.n_failed, grid.off_rows)
    if request.allow_inexact:
        said = f"{what}, but {off}: every other code is kept"
        return GridRows(fp4_rows(name, floats, grid, obstacle=said), type_name, "")
    said = _why_kept(f"{what}, but {off}", floats, type_name, can_split=True)
    return OffGrid(
        type_name,
        said,
        off,
        grid.off_rows,
        lambda rows: GridRows(fp4_rows(name, floats, grid, rows=rows), type_name, what),
    )


def _why_kept(what: str, floats: Floats, type_name: str, *, can_split: bool) -> str:
    """Why a tensor on a grid stays as it is, and what else there is, for people."""
    apart = ", and with a wanted type the rows are written apart" if can_split else ""
    return (
        f"{what}: no type holds all, so the tensor stays {floats.type_name}; --allow-inexact keeps"
        f" all other codes in {type_name}{apart}"
    )


def about_kept(type_names: Sequence[str]) -> list[str]:
    """What the user should know of tensors that are nearly on grids, by the types of these."""
    if not type_names:
        return []
    kinds = " and ".join(sorted(set(type_names)))
    said = (
        f"{len(type_names)} tensors lie on a grid but for some weights, and stay as they are stored"
        f" (which is exact): --allow-inexact keeps all their other codes, in {kinds}; the report"
        " says which weights"
    )
    return [said]


def describe(grid: Grid, type_name: str) -> str:
    """What was found, for people."""
    return (
        f"{n_bits(grid.reach)}-bit integers times a scale per {grid.run_length} weights,"
        f" rounded to {type_name}"
    )


def what_is_off(n_off: int, n_failed: int, off_rows: NDArray[np.int64]) -> str:
    """Says what is off the grid (single weights and whole runs), and where."""
    what = [f"{n_off} single weights"] if n_off else []
    what += [f"{n_failed} whole runs"] if n_failed else []
    return f"{' and '.join(what)} off the grid in rows {some([str(row) for row in off_rows])}"


def type_for(grid: Grid, wanted: str | None) -> tuple[str, str]:
    """The smallest type that holds the codes of a grid, or the wanted one; or why there is none."""
    size = grid.reach, grid.largest, grid.run_length
    names = types_for(*size, has_zeros=grid.has_zeros)
    if not names:
        return "", "a block has codes 128 and -128, and no type holds both"
    if wanted is None:
        return names[0], ""
    if holds(wanted, *size, has_zeros=grid.has_zeros):
        return wanted, ""
    return "", f"{wanted} does not hold it exactly; {' and '.join(names)} would"


def grid_rows(
    name: str,
    floats: Floats,
    grid: Grid,
    type_name: str,
    *,
    rows: NDArray[np.int64] | None = None,
    obstacle: str = "",
) -> IntegerRows:
    """The rows of a matrix as integers that a type holds, with scales.

    Parameters
    ----------
    name : str
        Of the tensor.
    floats : Floats
        What is stored.
    grid : Grid
        Of it.
    type_name : str
        From `type_for`.
    rows : int64 (n,), optional
        Which rows; default: all.
    obstacle : str
        Why not every weight is a code times a float16 scale; empty if they are. Otherwise weights
        off the grid get the nearest code, and scales are rounded.
    """
    length, integers = floats.row_length, types_of_integers()[type_name]
    # In other types the largest code has no positive counterpart: blocks with it get a negative
    # scale.
    group = grid.run_length if integers.is_symmetric else BLOCK

    def runs_of(first: int, last: int) -> tuple[NDArray[Any], Runs, NDArray[np.int16], F32Array]:
        words = floats.words_of_rows(first, last, rows)
        runs = read(words, floats.type_name, grid.run_length, grid.expected)
        if obstacle:
            _forget_unusual(runs, grid)
        if not obstacle and not np.isin(runs.status, (ZERO, ON_GRID)).all():
            raise ReblockError(f"tensor {quoted(name)} is not what it was: the file changed")
        codes, scales = runs.codes, np.repeat(runs.scales, grid.run_length // group)
        if obstacle:
            codes, scales = _with_nearest(words, floats.type_name, runs, integers, group)
            if not integers.has_zero:
                codes = np.where(codes == 0, np.int16(1), codes)
        if not integers.is_symmetric:
            blocks = codes.reshape(-1, BLOCK)
            sign = np.where(blocks.max(1) >= integers.reach, -1, 1)
            codes, scales = (blocks * sign[:, None]).reshape(-1), scales * sign
        return words, runs, codes, scales.astype(np.float32)

    def codes(first: int, last: int, out: I8Array) -> None:
        found = read_once(first, last, runs_of)[2]
        if integers.has_offset:  # which takes the place of negative integers
            found = found + np.int16(integers.reach)
        out[:] = found.reshape(last - first, length)

    def scales(first: int, last: int) -> F32Array:
        return read_once(first, last, runs_of)[3].reshape(last - first, -1)

    def reference(first: int, last: int) -> F64Array:
        words, runs, _, _ = read_once(first, last, runs_of)
        values = as_float64(words, floats.type_name)
        if not obstacle:
            return products(values, floats.type_name, runs.scales, name).reshape(-1, length)
        # what is off the grid means what is stored
        is_off = runs.codes == OFF_GRID
        is_off |= np.repeat(np.isin(runs.status, (NONE, INEXACT)), grid.run_length)
        on = products(np.where(is_off, 0, values), floats.type_name, runs.scales, name)
        return np.where(is_off, values, on).reshape(-1, length)

    return IntegerRows(
        n_rows=floats.n_rows if rows is None else rows.size,
        row_length=length,
        group=group,
        lowest=integers.lowest,
        highest=integers.highest,
        codes=codes,
        scales=scales,
        offsets=None
        if not integers.has_offset
        else lambda first, last: scales(first, last) * np.float32(-integers.reach),
        reference=reference,
        scales_are_f16=True,
        obstacle=obstacle,
        run_length=grid.run_length,
        has_zeros=integers.has_zero,
    )


def _forget_unusual(runs: Runs, grid: Grid) -> None:
    """Take runs with codes that are too large for the type as runs without a grid."""
    far = np.where(runs.codes == OFF_GRID, 0, np.abs(runs.codes)).reshape(-1, grid.run_length)
    unusual = far.max(1) > grid.largest
    runs.codes.reshape(far.shape)[unusual] = OFF_GRID
    runs.scales[unusual] = 0


def _with_nearest(
    words: NDArray[Any], type_name: str, runs: Runs, integers: Integers, group: int
) -> tuple[NDArray[np.int16], F64Array]:
    """Codes and scales (of groups) of all weights, also of those that are on no grid.

    A run without a scale gets one by which its largest magnitude has the lowest code.
    """
    codes = runs.codes.reshape(-1, group).copy()
    scales = np.repeat(runs.scales, len(codes) // runs.scales.size)
    is_off = codes == OFF_GRID
    groups, most = as_float64(words, type_name).reshape(codes.shape), -integers.lowest
    if integers.has_offset:
        most = integers.reach
    has_none = is_off.any(1) & (scales == 0)
    scales[has_none] = np.abs(groups[has_none]).max(1) / most
    steps = np.where(scales > 0, scales, 1.0)[:, None]
    codes[is_off] = np.clip(np.rint(groups / steps), -most, most)[is_off]
    if not integers.is_symmetric:  # no block has the lowest code of both signs
        both = (codes.max(1) == most) & (codes.min(1) == -most)
        is_off &= both[:, None] & (np.abs(codes) == most)
        codes[is_off] -= np.sign(codes[is_off])
        both = (codes.max(1) == most) & (codes.min(1) == -most)
        rarer = np.where((codes == most).sum(1) > (codes == -most).sum(1), -most, most)
        is_rarer = both[:, None] & (codes == rarer[:, None])
        codes[is_rarer] -= np.sign(codes[is_rarer])
    return codes.reshape(-1), scales

"""Rows of floats that are 4-bit floats times scales: blocks of MXFP4 or NVFP4, found in them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted
from recover.errors import ReblockError
from recover.inputs.originals._fit import NONE
from recover.inputs.originals._fit_fp4 import LEVELS, OFF_GRID
from recover.inputs.originals.codes import as_float64, read_once, rounded
from recover.inputs.originals.fp4 import MXFP4, Blocks, Fp4Grid, read_fp4
from recover.inputs.originals.grid import Floats
from recover.quants import U8Array, type_by_name
from recover.reblock.blocks import BlockRows

F64Array = NDArray[np.float64]

_BETWEEN = (LEVELS[1:] + LEVELS[:-1]) / 2


def describe_fp4(grid: Fp4Grid, type_name: str) -> str:
    """What was found, for people."""
    what = f"4-bit floats times a scale per {grid.group} weights"
    if grid.steps.common != 1:
        what += f" and {grid.steps.common:.9g}"
    if grid.steps.rounded_to is not None:
        what += f" (both multiplied and rounded to {type_name} first)"
    return f"{what}, rounded to {type_name}"


def fp4_rows(
    name: str,
    floats: Floats,
    grid: Fp4Grid,
    *,
    rows: NDArray[np.int64] | None = None,
    obstacle: str = "",
) -> BlockRows:
    """The rows of a matrix as blocks of 4-bit floats.

    Parameters
    ----------
    name : str
        Of the tensor.
    floats : Floats
        What is stored.
    grid : Fp4Grid
        Of it.
    rows : int64 (n,), optional
        Which rows; default: all.
    obstacle : str
        Why not every weight is a code times its scales; empty if they are. Otherwise weights off
        the grid get the nearest code.
    """
    length, steps = floats.row_length, grid.steps

    def read(first: int, last: int) -> tuple[NDArray[Any], Blocks]:
        words = floats.words_of_rows(first, last, rows)
        found = read_fp4(words, floats.type_name, steps, grid.search)
        if not obstacle and np.any(found.codes == OFF_GRID):
            raise ReblockError(f"tensor {quoted(name)} is not what it was: the file changed")
        return words, found

    def blocks(first: int, last: int, out: U8Array) -> None:
        words, found = read_once(first, last, read)
        codes, picks = found.codes, found.picks
        if obstacle:
            codes, picks = _with_nearest(as_float64(words, floats.type_name), found, grid, name)
        scales = np.where(picks < 0, np.uint8(0), steps.bytes[picks])
        _pack(steps.type_name, codes, scales, out)

    def reference(first: int, last: int) -> F64Array:
        words, found = read_once(first, last, read)
        values = as_float64(words, floats.type_name)
        is_off = found.codes == OFF_GRID
        exact = _products(np.where(is_off, 0, values), floats.type_name, grid, found.picks, name)
        return np.where(is_off, values, exact).reshape(-1, length)

    return BlockRows(
        n_rows=floats.n_rows if rows is None else rows.size,
        row_length=length,
        group=grid.group,
        type=type_by_name(steps.type_name),
        obstacle="",
        bf16_obstacle="" if floats.type_name == "BF16" else "the numbers are no BF16 numbers",
        blocks=blocks,
        beside=None if steps.common == 1 else np.array([steps.common], np.float32),
        reference=reference,
        touched=obstacle,
    )


def _products(
    values: F64Array, type_name: str, grid: Fp4Grid, picks: NDArray[np.int16], name: str
) -> F64Array:
    """Code times scales of stored floats, by NumPy alone: codes by rounding, then checked."""
    groups, steps = values.reshape(picks.size, -1), grid.steps
    step = np.where(picks < 0, 1.0, steps.values[picks])[:, None]
    codes = np.rint(groups / step)
    is_right = np.isin(np.abs(codes), LEVELS).all()
    if not is_right or not np.array_equal(rounded(codes * step, type_name), groups):
        raise ReblockError(f"tensor {quoted(name)}: a code times its scale is not what is stored")
    exact: F64Array = codes * np.where(picks < 0, 1.0, steps.exact[picks])[:, None]
    return exact.reshape(-1)


def _with_nearest(
    values: F64Array, found: Blocks, grid: Fp4Grid, name: str
) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Codes and steps of all blocks, also of weights that are on no grid.

    A block without a step gets one by which its largest magnitude has one of the highest levels.
    """
    groups, steps, picks = values.reshape(found.picks.size, -1), grid.steps, found.picks.copy()
    if not np.isfinite(groups).all():
        raise ReblockError(f"tensor {quoted(name)} holds numbers that are not finite")
    failed = found.status == NONE
    largest = np.abs(groups[failed]).max(1, initial=0)
    if steps.type_name == MXFP4:  # the highest level below
        at = np.searchsorted(steps.values, largest / 8, side="right") - 1
    else:
        at = np.searchsorted((steps.values[1:] + steps.values[:-1]) / 2, largest / 12)
    picks[failed] = np.clip(at, 0, steps.values.size - 1)
    magnitudes = np.abs(groups) / np.where(picks < 0, 1.0, steps.values[picks])[:, None]
    nearest = np.searchsorted(_BETWEEN, magnitudes.reshape(-1)).astype(np.uint8)
    nearest |= np.where(np.signbit(values), np.uint8(8), np.uint8(0))
    return np.where(found.codes == OFF_GRID, nearest, found.codes), picks


def _pack(type_name: str, codes: NDArray[np.uint8], scales: U8Array, out: U8Array) -> None:
    """Stored codes (n,) and scales of blocks as GGUF's blocks have them."""
    if type_name == MXFP4:
        blocks, halves = out.reshape(-1, 17), codes.reshape(-1, 2, 16)
        blocks[:, 0] = scales
        blocks[:, 1:] = halves[:, 0] | halves[:, 1] << 4
        return
    blocks, fours = out.reshape(-1, 36), codes.reshape(-1, 4, 2, 8)
    blocks[:, :4] = scales.reshape(-1, 4)
    blocks[:, 4:] = (fours[:, :, 0] | fours[:, :, 1] << 4).reshape(-1, 32)

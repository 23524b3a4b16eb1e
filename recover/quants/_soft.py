"""Codes that confine no weight: a value with an error whose size depends on the value.

Trellis codes and their kin stand for several weights at once, and are found by a search that weighs
these against each other: a weight may be far from the value that stands for it. Groups of large
weights have few codes near them, so that errors grow with the size of a group; within a group, the
largest levels have the smallest errors. What is stated is the mean square error as a product of
both, in units of the squared scale, as it was measured on trained weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from recover._compiled.jit import inner, kernel
from recover.quants._declared import Layout
from recover.quants._hidden_scales import IK
from recover.quants.base import F32Array, U8Array
from recover.quants.interval import BlockIntervals, Stated

LEVELS = np.float32(1)
"""The unit of levels that are integers."""

_LARGEST = np.float32(127)
_FAR = np.float32(np.inf)

Knots = tuple[tuple[float, float], ...]


class Errors(NamedTuple):
    """Mean square errors of the codes of a type, over the squared scale."""

    n_together: int
    """Weights that one code stands for."""
    by_size: F32Array
    """(128,): by the root mean square of the levels of a code."""
    by_level: F32Array
    """(128,): what that is multiplied by, by the size of the weight's own level."""


def errors(n_together: int, by_size: Knots, by_level: Knots = ((0.0, 1.0),)) -> Errors:
    """The errors of a type, from deviations at some sizes of a code and of a level."""
    return Errors(n_together, _squares(by_size), _squares(by_level))


def _squares(knots: Knots) -> F32Array:
    places, deviations = zip(*knots, strict=True)
    table: F32Array = np.square(np.interp(np.arange(128), places, deviations)).astype(np.float32)
    table.flags.writeable = False
    return table


@kernel
def fill_soft(
    levels: F32Array, scale: F32Array, expected: Errors, unit: np.float32, stated: Stated
) -> None:
    """Values ``scale * level`` without bounds.

    Parameters
    ----------
    levels : float32 (n,)
        Without the scale.
    scale : float32 (n / 16,)
        Of each 16 weights.
    expected : Errors
        The errors to expect.
    unit : float32
        What is 1 in the tables, in units of the levels.
    """
    value, lower, upper, variance = stated
    n = expected.n_together
    for g in range(levels.size // n):
        s = scale[g * n // 16]
        total = np.float32(0)
        for i in range(n * g, n * g + n):
            value[i] = s * levels[i]
            lower[i], upper[i] = -_FAR, _FAR
            total += levels[i] * levels[i]
        square = (s * unit) * (s * unit)
        if not 0 < square < _FAR:
            variance[n * g : n * g + n] = _FAR
            continue
        square *= _at(expected.by_size, np.sqrt(total / np.float32(n)) / unit)
        for i in range(n * g, n * g + n):
            error = square * _at(expected.by_level, abs(levels[i]) / unit)
            variance[i] = error if error > 0 else _FAR


@inner
def _at(table: F32Array, size: np.float32) -> np.float32:
    """The entry of a table at a size."""
    return table[np.int64(min(size, _LARGEST) + np.float32(0.5))]


def soft_type(
    layout: Layout,
    unpack: Callable[[U8Array, F32Array, F32Array], None],
    expected: Errors,
    *,
    row_header: int = 0,
    file_types: dict[int, str],
    relative_mse: float,
) -> BlockIntervals:
    """A type of ik_llama.cpp whose codes prove nothing.

    Parameters
    ----------
    layout, row_header, file_types, relative_mse
        As of `BlockIntervals`.
    unpack : callable
        ``unpack(raw: uint8, levels: float32 (n,), scale: float32 (n / 16,))``.
    expected : Errors
        The errors to expect.
    """

    def state(raw: U8Array, stated: Stated) -> None:
        n = stated.value.size
        levels, scale = np.empty(n, np.float32), np.empty(n // 16, np.float32)
        unpack(raw, levels, scale)
        fill_soft(levels, scale, expected, LEVELS, stated)

    return BlockIntervals(
        **layout,
        row_header=row_header,
        file_types=file_types,
        writer=IK,
        relative_mse=relative_mse,
        noise=1.0,
        has_cells=False,
        state=state,
    )

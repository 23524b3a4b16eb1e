"""Weights that are stored as floats of fewer digits: rounded once, and what that loses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import any_lane, sum_lanes
from recover._compiled.doubles import as_f16, from_bits, n_true, nearest_f32, store_words, to_f64
from recover._compiled.jit import bare_inlined, bare_kernel
from recover._compiled.lanes import LANES, bits, load, splat, store, store_f16, where
from recover.quants.base import F32Array, TensorType, U8Array

_F32, _F16, _BF16 = range(3)
_LIMITS: Mapping[str, tuple[int, np.float32]] = MappingProxyType(
    {
        "F32": (_F32, np.float32(np.inf)),
        "F16": (_F16, np.float32(65520)),
        "BF16": (_BF16, np.float32(2.0**128 - 2.0**119)),
    }
)
"""The number of a type here, and the least size that is rounded to infinity."""
ENOUGH = 1 << 12
"""Weights whose squares are added up in float32."""


@dataclass(frozen=True)
class Rounding:
    """What became of some weights when they were stored."""

    n_rounded: int = 0
    """Those that are not exactly what they were."""
    squared_error: float = 0.0
    squares: float = 0.0
    """The sums of the squares of the differences, and of the weights."""
    fits: bool = True
    """Whether all of them are finite, and remain so."""

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.n_rounded + other.n_rounded,
            self.squared_error + other.squared_error,
            self.squares + other.squares,
            self.fits and other.fits,
        )

    def __iadd__(self, other: Self) -> Self:
        return self + other

    def to_record(self) -> list[float]:
        """Plain data, of weights that fit."""
        return [self.n_rounded, float(self.squared_error), float(self.squares)]

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """The opposite of `to_record`; a `ValueError` if it is no such record."""
        n, squared_error, squares = record
        if type(n) is not int or n < 0:
            raise ValueError("this is no rounding")
        return cls(n, float(squared_error), float(squares))

    @property
    def relative_rms(self) -> float:
        """The root mean square of the differences, over that of the weights."""
        return math.sqrt(self.squared_error / self.squares) if self.squares else 0.0


class Target(NamedTuple):
    """Where kernels store weights, and as what."""

    words: NDArray[np.uint16]
    numbers: F32Array
    """Of `words` and `numbers` one is used."""
    kind: int
    limit: np.float32
    """The least size that is rounded to infinity."""

    @classmethod
    def of(cls, kind: TensorType, out: U8Array) -> Self:
        """Bytes (n * 2 or n * 4,) that are to hold F32, F16 or BF16."""
        number, limit = _LIMITS[kind.name]
        if number == _F32:
            return cls(np.empty(0, np.uint16), out.view(np.float32), number, limit)
        return cls(out.view(np.uint16), np.empty(0, np.float32), number, limit)


def padded(numbers: NDArray[Any]) -> NDArray[Any]:
    """Numbers (n,), with zeros behind them up to a multiple of the lanes of a vector."""
    missing = -numbers.size % LANES
    if not missing:
        return np.ascontiguousarray(numbers)
    return np.concatenate([numbers, np.zeros(missing, numbers.dtype)])


def round_weights(
    weights: F32Array, kind: TensorType, out: U8Array, scale: float = 1.0, shift: float = 0.0
) -> Rounding:
    """Store weights times a scale, plus a shift.

    Parameters
    ----------
    weights : float32 (n,)
    kind : TensorType
        F32, F16 or BF16.
    out : uint8 (n * 2 or n * 4,)
        To be filled.
    scale, shift : float
        Product and sum are made in float64, and rounded once.

    Returns
    -------
    Rounding
    """
    whole = padded(weights)
    into = out if whole is weights else np.empty(kind.n_bytes(whole.size), np.uint8)
    rounding = Rounding(*_round(whole, scale, shift or -0.0, Target.of(kind, into)))
    if into is not out:
        out[:] = into[: out.size]
    return rounding


@bare_kernel
def _round(
    weights: F32Array, scale: float, shift: float, target: Target
) -> tuple[int, float, float, bool]:
    """See `round_weights`; whole vectors."""
    n, error, squares = 0, 0.0, 0.0
    fits = splat(target.limit) == target.limit
    for first in range(0, weights.size, ENOUGH):
        e, s = splat(np.float32(0)), splat(np.float32(0))
        for i in range(first, min(first + ENOUGH, weights.size), LANES):
            x = to_f64(load(weights, i)) * scale + shift
            rounded, near, off, is_small = put(x, i, target)
            n += n_true(rounded)
            e = e + off * off
            s = s + near * near
            fits = fits & is_small
        error += sum_lanes(e)
        squares += sum_lanes(s)
    return n, error, squares, not any_lane(~fits)


@bare_inlined
def put(x: Any, at: int, target: Target) -> Any:
    """Store 16 float64 numbers from number `at` on.

    Returns which of them were rounded; the numbers as float32; how far off they are stored; and
    which are finite, and remain so.

    Towards 16 bits a float32 number in between is taken that is odd if it is not exact: it is then
    no tie, and lies on the right side of every one (Boldo and Melquiond, "When double rounding is
    odd", 2004).
    """
    near = nearest_f32(x)
    back = to_f64(near)
    rounded = back != x
    if target.kind == _F32:
        store(target.numbers, at, near)
        return rounded, near, nearest_f32(x - back), abs(near) < target.limit
    word = bits(near)
    other = where(abs(back) < abs(x), word + 1, word - 1)
    odd = where(rounded & ((word & 1) == 0), other, word)
    between = from_bits(odd)
    if target.kind == _F16:
        stored = as_f16(between)
        store_f16(target.words, at, between)
    else:
        word = odd + 0x7FFF + ((odd >> 16) & 1)
        stored = from_bits(word & -0x10000)
        store_words(target.words, at, word >> 16)
    return rounded | (stored != near), near, near - stored, abs(between) < target.limit

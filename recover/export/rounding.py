"""What is lost where weights are stored in fewer bits."""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from recover._compiled.float16 import f16_to_f32, f32_from_bits
from recover._compiled.jit import kernel
from recover.quants import F32Array, TensorType, U8Array


@dataclass(frozen=True)
class Rounding:
    """What became of some weights when they were stored.

    Attributes
    ----------
    n_rounded : int
        Those that are not exactly what they were.
    squared_error, squares : float
        The sums of the squares of the differences, and of the weights.
    """

    n_rounded: int = 0
    squared_error: float = 0.0
    squares: float = 0.0

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.n_rounded + other.n_rounded,
            self.squared_error + other.squared_error,
            self.squares + other.squares,
        )

    def __iadd__(self, other: Self) -> Self:
        return self + other

    def to_record(self) -> list[float]:
        """Plain data."""
        return [self.n_rounded, float(self.squared_error), float(self.squares)]

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """The opposite of `to_record`; a `ValueError` if it is no such record."""
        n, *squares = record
        if type(n) is not int or n < 0 or len(squares) != 2:
            raise ValueError("this is no rounding")
        return cls(n, *map(float, squares))

    @property
    def relative_rms(self) -> float:
        """The root mean square of the differences, over that of the weights."""
        return math.sqrt(self.squared_error / self.squares) if self.squares else 0.0


def rounding_of(weights: F32Array, encoded: U8Array, kind: TensorType) -> Rounding:
    """What was lost of weights (n,) that were encoded as BF16 or F16; of F32 nothing is."""
    if kind.name == "F32":
        return Rounding()
    compare = _compare_bf16 if kind.name == "BF16" else _compare_f16
    return Rounding(*compare(weights, encoded.view(np.uint16)))


@kernel
def _compare_bf16(weights: F32Array, words: np.ndarray) -> tuple[int, float, float]:
    n, error, squares = 0, 0.0, 0.0
    for first in range(0, weights.size, 4096):
        e, s = np.float32(0), np.float32(0)
        for i in range(first, min(first + 4096, weights.size)):
            off = weights[i] - f32_from_bits(np.uint32(words[i]) << np.uint32(16))
            n += off != 0
            e += off * off
            s += weights[i] * weights[i]
        error += float(e)
        squares += float(s)
    return n, error, squares


@kernel
def _compare_f16(weights: F32Array, words: np.ndarray) -> tuple[int, float, float]:
    n, error, squares = 0, 0.0, 0.0
    for first in range(0, weights.size, 4096):
        e, s = np.float32(0), np.float32(0)
        for i in range(first, min(first + 4096, weights.size)):
            off = weights[i] - f16_to_f32(words[i])
            n += off != 0
            e += off * off
            s += weights[i] * weights[i]
        error += float(e)
        squares += float(s)
    return n, error, squares

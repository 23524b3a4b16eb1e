"""Memory for what each input says of a tile, filled from its stored bytes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import kernel
from recover._compiled.memory import constant
from recover.evidence.rounding import bound_errors, rounding_of, scale_up
from recover.evidence.tile import Evidence
from recover.quants import GROUP, F32Array, ScalarType, Stated, TensorType, U8Array, VectorType


class Codes(NamedTuple):
    """A scalar input's part of a tile: memory for what its bytes say."""

    kind: ScalarType
    rounding: NDArray[np.float64]
    """From `rounding_of`."""
    codes: U8Array
    scale: F32Array
    offset: F32Array
    scale_error: F32Array
    offset_error: F32Array

    def unpack(self, raw: U8Array) -> None:
        """Fill it from the stored bytes."""
        _, rounding, codes, scale, offset, *errors = self
        raw = constant(raw)
        self.kind.unpack(raw, codes, scale, offset)
        bound_errors(raw, rounding, scale, offset, *errors)

    def multiply(self, factors: F32Array) -> None:
        """By factors (n / 16,) of the tensor's own."""
        scale_up(factors, self.scale, self.offset, self.scale_error, self.offset_error)


class Values(NamedTuple):
    """The part of an input that is decoded."""

    kind: VectorType
    values: F32Array
    variance: F32Array

    def unpack(self, raw: U8Array) -> None:
        """Fill it from the stored bytes."""
        self.kind.decode(constant(raw), self.values)
        typical_variance(self.values, self.kind.relative_mse, self.variance)

    def multiply(self, factors: F32Array) -> None:
        """By factors (n / 16,) of the tensor's own."""
        values, variance = self.values, self.variance
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            values *= np.repeat(factors, GROUP)
            variance *= np.square(factors)


def memory_of(tile: Evidence, kind: TensorType, row: int) -> Codes | Values | Stated:
    """Where in a tile goes what an input of that type says."""
    if isinstance(kind, ScalarType):
        numbers = tile.scale, tile.offset, tile.scale_error, tile.offset_error
        own = (each[row] for each in numbers)
        return Codes(kind, rounding_of(kind), tile.codes[row], *own)
    if isinstance(kind, VectorType):
        return Values(kind, tile.values[row], tile.variance[row])
    stated = tile.interval_values, tile.interval_lower, tile.interval_upper, tile.interval_variance
    return Stated(*(each[row] for each in stated))


@kernel
def typical_variance(values: F32Array, relative_mse: float, variance: F32Array) -> None:
    """The error to expect of decoded values: ``relative_mse`` times the mean square of each 256."""
    for start in range(0, values.size, 256):
        end = min(start + 256, values.size)
        total = 0.0
        for i in range(start, end):
            total += np.float64(values[i]) * np.float64(values[i])
        for g in range(start // 16, end // 16):
            variance[g] = np.float32(relative_mse * total / (end - start))

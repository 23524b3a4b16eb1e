"""Unquantized arrays of a folder."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recover.containers.safetensors.reader import Tensor
from recover.quants import FloatType, U8Array, dequantize, type_by_name


@dataclass(frozen=True, eq=False)
class Floats:
    """An array of floats; its last dimension is a row.

    Attributes
    ----------
    tensor : Tensor
        As stored: F32, F16 or BF16, and not empty.
    adds_one : bool
        Whether 1 is added to the numbers, in float32.
    is_column : bool
        Whether each number is a row of its own.
    """

    tensor: Tensor
    adds_one: bool = False
    is_column: bool = False

    @cached_property
    def type(self) -> FloatType:
        """What `part` gives."""
        return _float_type("F32" if self.adds_one else self.tensor.dtype)

    @property
    def row_length(self) -> int:
        """Numbers of a row."""
        return self.tensor.shape[-1] if self.tensor.shape and not self.is_column else 1

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.tensor.n_weights // self.row_length

    def part(self, start: int, end: int) -> U8Array:
        """The bytes of numbers `start` to `end`, as `type`."""
        stored = _float_type(self.tensor.dtype)
        raw = self.tensor.raw[stored.n_bytes(start) : stored.n_bytes(end)]
        if not self.adds_one:
            return raw
        numbers: U8Array = (dequantize(raw.copy(), stored) + np.float32(1)).view(np.uint8)
        return numbers


def _float_type(name: str) -> FloatType:
    found = type_by_name(name)
    assert isinstance(found, FloatType)
    return found

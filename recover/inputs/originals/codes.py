"""Signed codes and scales to blocks, and back from stored floats by NumPy alone."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted
from recover.errors import ReblockError
from recover.quants import TensorType, U8Array, type_by_name, types_of_integers

BLOCK = 32
"""Weights that share a scale in the output types."""

_MOST_BITS = 8
_SMALLEST_NORMAL, _BF16_UNIT = 2.0**-126, 2.0**-133
_T = TypeVar("_T")
_LAST = threading.local()


def read_once(first: int, last: int, read: Callable[[int, int], _T]) -> _T:
    """What ``read(first, last)`` returns, kept until this thread reads something else.

    A tile is searched when it is encoded and again when it is verified, by the same thread; what is
    kept is one tile per thread, whoever owns it.
    """
    if getattr(_LAST, "key", None) != (first, last) or _LAST.read is not read:
        _LAST.value = read(first, last)
        _LAST.read, _LAST.key = read, (first, last)
    value: _T = _LAST.value
    return value


def n_bits(reach: int) -> int:
    """Bits of the smallest type that holds a reach (see `recover.inputs.originals._fit.reach`)."""
    sizes = (each.n_bits for each in types_of_integers().values() if reach <= each.reach)
    return min(sizes, default=_MOST_BITS)


def types_for(reach: int, largest: int, group: int, *, has_zeros: bool = True) -> list[str]:
    """Names of the types that hold integers without an offset, the smallest first.

    Parameters
    ----------
    reach, largest : int
        See `recover.quants.base.Integers.holds`.
    group : int
        Weights that share a scale.
    has_zeros : bool
        See there.
    """
    return [
        name
        for name, each in types_of_integers().items()
        if holds(name, reach, largest, group, has_zeros=has_zeros) and not each.has_offset
    ]


def holds(type_name: str, reach: int, largest: int, group: int, *, has_zeros: bool = True) -> bool:
    """Whether a type holds integers; one that holds no integers does not."""
    integers = types_of_integers().get(type_name)
    if integers is None or group % type_by_name(type_name).block_size:
        return False
    return integers.holds(reach, largest, has_zeros=has_zeros)


def as_float64(words: NDArray[Any], type_name: str) -> NDArray[np.float64]:
    """Stored bits as numbers, exactly; by NumPy alone. Any NaN is one, signaling ones too."""
    match type_name:
        case "F32":
            numbers: NDArray[Any] = words.view(np.float32)
        case "F16":
            numbers = words.view(np.float16)
        case _:
            numbers = (words.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):
        return numbers.astype(np.float64)


def pack_codes(
    codes: NDArray[np.int16], scales: NDArray[np.float64], outtype: TensorType, out: U8Array
) -> None:
    """Signed codes and the scales of their runs to blocks.

    Parameters
    ----------
    codes : int16 (n_rows, row_length)
        Of a reach that the type holds.
    scales : float64 (n_runs,)
        F16 numbers; the runs follow one another along the rows.
    outtype : TensorType
        One of `recover.quants.types_of_integers`.
    out : uint8 (n_bytes,)
        The blocks.
    """
    integers = types_of_integers()[outtype.name]
    if integers.is_symmetric:
        d16 = scales.astype(np.float16).view(np.uint16)
        flat = codes.reshape(-1).astype(np.int8)
        integers.pack(flat, d16, d16, flat.size // scales.size, out)
        return
    blocks = codes.reshape(-1, BLOCK)
    d = np.repeat(scales, len(blocks) // scales.size)
    # The largest code has no positive counterpart: such blocks get a negative scale.
    sign = np.where(blocks.max(1) == integers.reach, -1, 1)
    signed = (blocks * sign[:, None]).astype(np.int8).reshape(-1)
    d = (d * sign).astype(np.float16)
    m = d
    if integers.has_offset:  # which takes the place of negative integers
        signed += np.int8(integers.reach)
        m = d * np.float16(-integers.reach)
    integers.pack(signed, d.view(np.uint16), m.view(np.uint16), BLOCK, out)


def products(
    stored: NDArray[np.float64], type_name: str, scales: NDArray[np.float64], name: str
) -> NDArray[np.float64]:
    """Code times scale of stored floats, by NumPy alone: codes by rounding, then checked.

    Parameters
    ----------
    stored : float64 (n,)
        See `as_float64`.
    type_name, scales, name
        Their type, the scales of their runs, and the tensor that they are of.

    Raises
    ------
    ReblockError
        If a product, rounded to the stored type, is not the stored number.
    """
    values = stored.reshape(scales.size, -1)
    steps = np.where(scales > 0, scales, 1.0)[:, None]
    exact = np.rint(values / steps) * scales[:, None]
    if not np.array_equal(rounded(exact, type_name), values):
        raise ReblockError(f"tensor {quoted(name)}: a code times its scale is not what is stored")
    return exact.reshape(-1)


def rounded(values: NDArray[np.float64], type_name: str) -> NDArray[np.float64]:
    """Numbers rounded once, to nearest even, in a float type."""
    match type_name:
        case "F32":
            return values.astype(np.float32).astype(np.float64)
        case "F16":
            return values.astype(np.float16).astype(np.float64)
        case _:
            return _rounded_to_bf16(values)


def _rounded_to_bf16(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """By the bits of float64, but where the result is subnormal by its unit."""
    bits = np.ascontiguousarray(values).view(np.uint64)
    n_lost = np.uint64(52 - 7)
    half = np.uint64((1 << 44) - 1) + (bits >> n_lost & np.uint64(1))
    found = (bits + half >> n_lost << n_lost).view(np.float64)
    small = np.abs(values) < _SMALLEST_NORMAL
    if small.any():
        found[small] = np.rint(values[small] / _BF16_UNIT) * _BF16_UNIT
    return found

"""Signed codes and scales to blocks, and back from stored floats by NumPy alone."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted
from recover.errors import ReblockError
from recover.inputs.originals.packing import pack_q4_0, pack_q4_1, pack_q5_0, pack_q8_0
from recover.quants import TensorType, U8Array

BLOCK = 32
"""Weights that share a scale in the output types."""

HALVES = {"Q4_0": 8, "Q4_1": 8, "Q5_0": 16, "Q8_0": 128}
"""The codes of these types go from minus that to that less one."""

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
    return 4 if reach <= HALVES["Q4_0"] else 5 if reach <= HALVES["Q5_0"] else 8


def as_float64(words: NDArray[Any], type_name: str) -> NDArray[np.float64]:
    """Stored bits as numbers, exactly; by NumPy alone."""
    match type_name:
        case "F32":
            return words.view(np.float32).astype(np.float64)
        case "F16":
            return words.view(np.float16).astype(np.float64)
        case _:
            return (words.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)


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
        Q4_0, Q4_1, Q5_0 or Q8_0.
    out : uint8 (n_bytes,)
        The blocks.
    """
    blocks = codes.reshape(-1, BLOCK)
    d = np.repeat(scales, len(blocks) // scales.size)
    # The largest code has no positive counterpart: such blocks get a negative scale.
    half = HALVES[outtype.name]
    sign = np.where(blocks.max(1) == half, -1, 1)
    signed = (blocks * sign[:, None]).astype(np.int8).reshape(codes.shape)
    d = (d * sign).astype(np.float16)
    bits = d.view(np.uint16).reshape(len(codes), -1)
    if outtype.name == "Q4_1":
        m = (d * np.float16(-8)).view(np.uint16).reshape(bits.shape)
        pack_q4_1(signed + np.int8(8), bits, m, BLOCK, out)
    else:
        {"Q4_0": pack_q4_0, "Q5_0": pack_q5_0, "Q8_0": pack_q8_0}[outtype.name](
            signed, bits, BLOCK, out
        )


def products(
    words: NDArray[Any], type_name: str, scales: NDArray[np.float64], name: str
) -> NDArray[np.float64]:
    """Code times scale of stored floats, by NumPy alone: codes by rounding, then checked.

    Raises
    ------
    ReblockError
        If a product, rounded to the stored type, is not the stored number.
    """
    values = as_float64(words, type_name).reshape(scales.size, -1)
    steps = np.where(scales > 0, scales, 1.0)[:, None]
    exact = np.rint(values / steps) * scales[:, None]
    if not np.array_equal(rounded(exact, type_name), values):
        raise ReblockError(f"tensor {quoted(name)}: a code times its scale is not what is stored")
    return exact.reshape(-1)


def rounded(values: NDArray[np.float64], type_name: str) -> NDArray[np.float64]:
    """Numbers of at most 24 bits, rounded to nearest even in a float type."""
    match type_name:
        case "F32":
            return values.astype(np.float32).astype(np.float64)
        case "F16":
            return values.astype(np.float16).astype(np.float64)
        case _:
            bits = values.astype(np.float32).view(np.uint32)
            bits = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
            return (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)

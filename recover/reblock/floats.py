"""Tensors of floats: copied, or rounded to another type."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted
from recover.errors import QuantError, ReblockError
from recover.quants import TensorType, U8Array, quantize, type_by_name
from recover.reblock.source import OriginalTensor

F64Array = NDArray[np.float64]


def decode_floats(raw: U8Array, dtype: str) -> F64Array:
    """Numbers of type F32, F16, BF16 or F64 as float64; exact, NaN included."""
    with np.errstate(invalid="ignore"):
        return _decoded(raw, dtype)


def _decoded(raw: U8Array, dtype: str) -> F64Array:
    if dtype == "BF16":
        words = raw.view("<u2").astype(np.uint32) << np.uint32(16)
        return words.view(np.float32).astype(np.float64)
    return raw.view({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]).astype(np.float64)


def copied(name: str, dims: tuple[int, ...], dtype: str, raw: U8Array) -> OriginalTensor:
    """A tensor whose bytes are taken as they are."""
    outtype = type_by_name(dtype)

    def encode(start: int, end: int, out: U8Array) -> None:
        out[:] = raw[outtype.n_bytes(start) : outtype.n_bytes(end)]

    return OriginalTensor(
        name=name,
        dims=dims,
        stored_as=dtype,
        outtype=outtype,
        group=None,
        exact=True,
        reason="",
        encode=encode,
        reference=None,
    )


def stored_as_float(
    *,
    name: str,
    dims: tuple[int, ...],
    stored_as: str,
    group: int | None,
    outtype: TensorType,
    reason: str,
    reference: Callable[[int, int], F64Array],
    exact: bool = False,
) -> OriginalTensor:
    """A tensor that is computed in float64 and rounded to `outtype` (through float32)."""

    def encode(start: int, end: int, out: U8Array) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            weights = reference(start, end).astype(np.float32)
        try:
            quantize(weights.reshape(1, -1), outtype, out=out)
        except QuantError as error:
            raise ReblockError(f"tensor {quoted(name)}: {error}") from None

    return OriginalTensor(
        name=name,
        dims=dims,
        stored_as=stored_as,
        outtype=outtype,
        group=group,
        exact=exact,
        reason=reason,
        encode=encode,
        reference=reference,
    )


def converted(
    name: str,
    dims: tuple[int, ...],
    dtype: str,
    outtype: TensorType,
    read: Callable[[int, int], F64Array],
) -> OriginalTensor:
    """A tensor of floats in another type; exact if that has every number of the first."""
    exact = dtype == outtype.name or (outtype.name == "F32" and dtype in ("F16", "BF16"))
    return stored_as_float(
        name=name,
        dims=dims,
        stored_as=dtype,
        group=None,
        outtype=outtype,
        reason="" if exact else f"{dtype} rounded to {outtype.name}",
        reference=read,
        exact=exact,
    )

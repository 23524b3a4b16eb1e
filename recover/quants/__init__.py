"""The tensor types, one file per type, found by discovery: a new type is one new file."""

import pkgutil
from functools import cache
from importlib import import_module

import numpy as np

from recover.errors import QuantError
from recover.quants._decode import decode_scalar
from recover.quants.base import (
    GROUP,
    TILE,
    F32Array,
    FloatType,
    OpaqueType,
    ScalarType,
    TensorType,
    U8Array,
    VectorType,
)

__all__ = [
    "GROUP",
    "TILE",
    "F32Array",
    "FloatType",
    "OpaqueType",
    "ScalarType",
    "TensorType",
    "U8Array",
    "VectorType",
    "all_types",
    "dequantize",
    "type_by_id",
    "type_by_name",
]


@cache
def all_types() -> tuple[TensorType, ...]:
    """Every declared type, by ascending `type_id`."""
    found: dict[int, TensorType] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("_") or module.name == "base":
            continue
        for value in vars(import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, TensorType) and found.setdefault(value.type_id, value) is not value:
                raise QuantError(f"two tensor types share the id {value.type_id}")
    return tuple(found[type_id] for type_id in sorted(found))


@cache
def _by_id() -> dict[int, TensorType]:
    return {tensor_type.type_id: tensor_type for tensor_type in all_types()}


def type_by_id(type_id: int) -> TensorType:
    """The type that GGUF files number `type_id`; `QuantError` if there is none."""
    try:
        return _by_id()[type_id]
    except KeyError:
        known = ", ".join(tensor_type.name for tensor_type in all_types())
        raise QuantError(f"tensor type {type_id} is unknown; known are {known}") from None


def type_by_name(name: str) -> TensorType:
    """The type of that name, in any case; `QuantError` if there is none."""
    for tensor_type in all_types():
        if tensor_type.name == name.upper():
            return tensor_type
    known = ", ".join(tensor_type.name for tensor_type in all_types())
    raise QuantError(f"tensor type {name!r} is unknown; known are {known}")


def dequantize(raw: U8Array, tensor_type: TensorType, out: F32Array | None = None) -> F32Array:
    """Decode whole blocks, bit for bit as ggml's `to_float` does.

    Parameters
    ----------
    raw : uint8 (n_blocks * type_size,)
        The stored bytes.
    tensor_type : TensorType
        What they are.
    out : float32 (n_blocks * block_size,), optional
        Where to put the weights; made if not given.

    Returns
    -------
    float32 (n_blocks * block_size,)

    Raises
    ------
    QuantError
        If `raw` is no whole number of blocks, or the type cannot be decoded.
    """
    n_blocks, rest = divmod(raw.size, tensor_type.type_size)
    if rest:
        raise QuantError(
            f"{raw.size} bytes are no whole number of {tensor_type.name} blocks"
            f" of {tensor_type.type_size} bytes"
        )
    n_weights = n_blocks * tensor_type.block_size
    if out is None:
        out = np.empty(n_weights, np.float32)
    match tensor_type:
        case ScalarType():
            decode_scalar(tensor_type, raw, out)
        case FloatType() | VectorType():
            tensor_type.decode(raw, out)
        case _:
            raise QuantError(f"type {tensor_type.name} holds no weights that can be decoded")
    return out

"""The tensor types, one file per type, found by discovery: a new type is one new file."""

from collections.abc import Callable

import numpy as np

from recover._compiled.float16 import all_finite
from recover._compiled.memory import constant
from recover.errors import QuantError
from recover.quants._decode import decode_scalar
from recover.quants._registry import (
    all_types,
    has_encoder,
    is_ambiguous,
    makes_files,
    name_of_file_type,
    type_by_id,
    type_by_name,
    types_by_id,
    types_of_files,
    types_of_integers,
)
from recover.quants._sub_blocks import SubBlocks
from recover.quants.base import (
    GROUP,
    TILE,
    F32Array,
    FloatType,
    FromWeight,
    I8Array,
    Integers,
    InterleavedType,
    Mask,
    OpaqueType,
    ScalarType,
    TensorType,
    U8Array,
    U16Array,
    VectorType,
)
from recover.quants.interval import (
    ROUNDED,
    BlockIntervals,
    IntervalTensor,
    IntervalType,
    Stated,
    state_all,
)
from recover.quants.variants import DEFAULT as DEFAULT_QUANTIZER
from recover.quants.variants import quantizer_names, variant_encoder

__all__ = [
    "DEFAULT_QUANTIZER",
    "GROUP",
    "ROUNDED",
    "TILE",
    "BlockIntervals",
    "F32Array",
    "FloatType",
    "FromWeight",
    "I8Array",
    "Integers",
    "InterleavedType",
    "IntervalTensor",
    "IntervalType",
    "Mask",
    "OpaqueType",
    "ScalarType",
    "Stated",
    "SubBlocks",
    "TensorType",
    "U8Array",
    "U16Array",
    "VectorType",
    "all_types",
    "dequantize",
    "has_encoder",
    "is_ambiguous",
    "makes_files",
    "name_of_file_type",
    "quantize",
    "quantizer_names",
    "state_all",
    "type_by_id",
    "type_by_name",
    "types_by_id",
    "types_of_files",
    "types_of_integers",
]


def dequantize(raw: U8Array, tensor_type: TensorType, out: F32Array | None = None) -> F32Array:
    """Decode whole blocks, bit for bit as ggml's `to_float` does.

    Parameters
    ----------
    raw : uint8 (n_blocks * part_size,)
        The stored bytes; each block has the header of its row in front.
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
    if isinstance(tensor_type, InterleavedType):
        raise QuantError(f"rows of {tensor_type.name} must be taken apart before they are decoded")
    n_blocks, rest = divmod(raw.size, tensor_type.part_size)
    if rest:
        raise QuantError(
            f"{raw.size} bytes are no whole number of {tensor_type.name} blocks"
            f" of {tensor_type.part_size} bytes"
        )
    n_weights = n_blocks * tensor_type.block_size
    if out is None:
        out = np.empty(n_weights, np.float32)
    raw = constant(raw)
    match tensor_type:
        case ScalarType():
            decode_scalar(tensor_type, raw, out)
        case FloatType() | VectorType():
            tensor_type.decode(raw, out)
        case BlockIntervals():
            tensor_type.state(raw, Stated.of(n_weights)._replace(value=out))
        case _:
            raise QuantError(f"type {tensor_type.name} holds no weights that can be decoded")
    return out


def quantize(
    x: F32Array,
    tensor_type: TensorType,
    imatrix: F32Array | None = None,
    out: U8Array | None = None,
    quantizer: str = DEFAULT_QUANTIZER,
) -> U8Array:
    """Encode rows of weights, types of ggml byte for byte as `ggml_quantize_chunk` on x86-64.

    Parameters
    ----------
    x : float32 (..., ne0)
        Rows of weights, finite; `ne0` is a multiple of the block size.
    tensor_type : TensorType
        A `ScalarType`, a `FloatType`, or one of `BlockIntervals` that has an encoder.
    imatrix : float32 (ne0,), optional
        The importance of each column, finite and not negative. It changes the search for the
        scales; Q8_0, MXFP4, NVFP4 and the float types do not use it.
    out : uint8 (n_rows * row_bytes,), optional
        Where to put the bytes; made if not given.
    quantizer : str, optional
        Another way to choose scales and codes than ggml's; see `recover.quants.variants`.

    Returns
    -------
    uint8 (n_rows * row_bytes,)

    Raises
    ------
    QuantError
        If the type cannot be encoded, the row length does not fit it, weights are not finite or too
        large for a float type, `imatrix` does not fit the rows or holds numbers that are no
        importances, `out` has another size, or `quantizer` is unknown, does not make the type or
        takes no importance matrix.
    """
    if not has_encoder(tensor_type):
        raise QuantError(f"weights cannot be encoded as {tensor_type.name}")
    ne0 = x.shape[-1]
    rows = np.ascontiguousarray(x, np.float32).reshape(x.size // max(ne0, 1), ne0)
    weights = constant(rows)
    n_bytes = tensor_type.tensor_bytes(weights.shape[::-1])
    if not isinstance(tensor_type, FloatType):
        _check_finite(weights)
    importance = constant(_checked_imatrix(imatrix, ne0))
    encode = _variant_encoder(quantizer, tensor_type, imatrix)
    if out is None:
        out = np.empty(n_bytes, np.uint8)
    elif out.shape != (n_bytes,):
        raise QuantError(
            f"{weights.size} weights as {tensor_type.name} take {n_bytes} bytes,"
            f" but the output has the shape {out.shape}"
        )
    if encode is not None:
        encode(weights, out)
    elif isinstance(tensor_type, ScalarType | BlockIntervals):
        assert tensor_type.quantize is not None
        tensor_type.quantize(weights, importance, out)
    elif isinstance(tensor_type, FloatType) and (
        n_bad := tensor_type.encode(weights.reshape(-1), out)
    ):
        _check_finite(weights)
        raise QuantError(f"{n_bad} of {weights.size} weights are too large for {tensor_type.name}")
    return out


def _check_finite(weights: F32Array) -> None:
    if not all_finite(weights.reshape(-1)):
        n_bad = int(np.count_nonzero(~np.isfinite(weights)))
        raise QuantError(f"{n_bad} of {weights.size} weights are infinite or not a number")


def _variant_encoder(
    quantizer: str, tensor_type: TensorType, imatrix: F32Array | None
) -> Callable[[F32Array, U8Array], None] | None:
    """The encoder of a named quantizer; none for the default."""
    if quantizer == DEFAULT_QUANTIZER:
        return None
    encode = variant_encoder(quantizer, tensor_type.name)
    if imatrix is not None:
        raise QuantError(f"the quantizer {quantizer} takes no importance matrix")
    return encode


def _checked_imatrix(imatrix: F32Array | None, ne0: int) -> F32Array:
    """The importances of `ne0` columns; an empty array for none."""
    if imatrix is None:
        return np.empty(0, np.float32)
    if imatrix.shape != (ne0,):
        raise QuantError(f"rows of {ne0} weights, but an importance matrix of {imatrix.shape}")
    importance = np.ascontiguousarray(imatrix, np.float32)
    if not all_finite(importance) or np.any(importance < 0):
        raise QuantError("the importance matrix has entries that are negative or not finite")
    return importance

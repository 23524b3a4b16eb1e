"""Types whose codes stand for several weights at once, decoded through gguf-py.

They take part in a merge with their values and an error that is typical of the type. The codes of
those with codebooks confine no single weight to an interval; ternary ones do.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np

from recover._compiled.jit import kernel
from recover.quants._legacy import write_u16
from recover.quants._ternary import narrow_ternary
from recover.quants.base import F32Array, I8Array, Integers, U8Array, U16Array, VectorType

Narrow = Callable[[F32Array, F32Array, F32Array], None]


def _vector_type(
    name: str,
    type_id: int,
    block_size: int,
    type_size: int,
    relative_mse: float,
    file_types: Mapping[int, str],
    *,
    is_native: bool = False,
    integers: Integers | None = None,
    narrow: Narrow | None = None,
    has_codebook: bool = False,
) -> VectorType:
    def decode(raw: U8Array, out: F32Array) -> None:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        if not out.size:
            return
        with np.errstate(all="ignore"):  # NaN and infinite scales are decoded as they are
            values = dequantize(raw.reshape(-1, type_size), GGMLQuantizationType(type_id))
        out[:] = values.reshape(-1)

    return VectorType(
        name=name,
        type_id=type_id,
        block_size=block_size,
        type_size=type_size,
        relative_mse=relative_mse,
        file_types=file_types,
        is_native=is_native,
        decode=decode,
        integers=integers,
        narrow=narrow,
        codebook=partial(_codebook, name) if has_codebook else None,
    )


@cache
def _codebook(name: str) -> F32Array:
    """See `VectorType.codebook`."""
    import gguf.quants

    kind = getattr(gguf.quants, name)
    kind.init_grid()
    return np.unique(np.abs(kind.grid.reshape(kind.grid_shape)), axis=0).astype(np.float32)


@kernel
def _pack_tq2_0(integers: I8Array, d: U16Array, _m: U16Array, group: int, raw: U8Array) -> None:
    """See `Integers`; mirrors `quantize_row_tq2_0_ref`.

    Block: ``qs`` 64 bytes (of each 128 weights, those 32 apart in one byte), ``d`` f16.
    """
    for b in range(integers.size // 256):
        block = raw[66 * b : 66 * b + 66]
        for i in range(64):
            at = 256 * b + i // 32 * 128 + i % 32
            byte = np.int32(0)
            for j in range(4):
                byte |= (np.int32(integers[at + 32 * j]) + 1) << (2 * j)
            block[i] = byte
        write_u16(block, 64, d[256 * b // group])


IQ2_XXS = _vector_type("IQ2_XXS", 16, 256, 66, 0.118, {19: "IQ2_XXS"}, has_codebook=True)
IQ2_XS = _vector_type("IQ2_XS", 17, 256, 74, 0.09, {20: "IQ2_XS", 28: "IQ2_S"}, has_codebook=True)
IQ3_XXS = _vector_type("IQ3_XXS", 18, 256, 98, 0.033, {23: "IQ3_XXS"}, has_codebook=True)
IQ1_S = _vector_type("IQ1_S", 19, 256, 50, 0.236, {24: "IQ1_S"})
IQ3_S = _vector_type(
    "IQ3_S", 21, 256, 110, 0.0187, {22: "IQ3_XS", 26: "IQ3_S", 27: "IQ3_M"}, has_codebook=True
)
IQ2_S = _vector_type("IQ2_S", 22, 256, 82, 0.062, {29: "IQ2_M"}, has_codebook=True)
IQ1_M = _vector_type("IQ1_M", 29, 256, 56, 0.204, {31: "IQ1_M"})
TQ1_0 = _vector_type(
    "TQ1_0", 34, 256, 54, 0.65, {36: "TQ1_0"}, is_native=True, narrow=narrow_ternary
)
TQ2_0 = _vector_type(
    "TQ2_0",
    35,
    256,
    66,
    0.65,
    {37: "TQ2_0"},
    is_native=True,
    integers=Integers(lowest=-1, highest=1, pack=_pack_tq2_0),
    narrow=narrow_ternary,
)

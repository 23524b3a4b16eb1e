"""Types whose codes stand for several weights at once, decoded through gguf-py.

Their codes confine no single weight to an interval, so they take part in a merge with their values
and an error that is typical of the type.
"""

from collections.abc import Mapping

from recover.quants.base import F32Array, U8Array, VectorType


def _vector_type(
    name: str,
    type_id: int,
    block_size: int,
    type_size: int,
    relative_mse: float,
    file_types: Mapping[int, str],
    *,
    is_native: bool = False,
) -> VectorType:
    def decode(raw: U8Array, out: F32Array) -> None:
        import numpy as np
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
    )


IQ2_XXS = _vector_type("IQ2_XXS", 16, 256, 66, 0.118, {19: "IQ2_XXS"})
IQ2_XS = _vector_type("IQ2_XS", 17, 256, 74, 0.09, {20: "IQ2_XS", 28: "IQ2_S"})
IQ3_XXS = _vector_type("IQ3_XXS", 18, 256, 98, 0.033, {23: "IQ3_XXS"})
IQ1_S = _vector_type("IQ1_S", 19, 256, 50, 0.236, {24: "IQ1_S"})
IQ3_S = _vector_type("IQ3_S", 21, 256, 110, 0.0187, {22: "IQ3_XS", 26: "IQ3_S", 27: "IQ3_M"})
IQ2_S = _vector_type("IQ2_S", 22, 256, 82, 0.062, {29: "IQ2_M"})
IQ1_M = _vector_type("IQ1_M", 29, 256, 56, 0.204, {31: "IQ1_M"})
TQ1_0 = _vector_type("TQ1_0", 34, 256, 54, 0.65, {36: "TQ1_0"}, is_native=True)
TQ2_0 = _vector_type("TQ2_0", 35, 256, 66, 0.65, {37: "TQ2_0"}, is_native=True)

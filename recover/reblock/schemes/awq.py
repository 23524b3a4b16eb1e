"""AWQ in the layout "gemm", as AutoAWQ stores it.

``qweight`` int32 (K, N / 8): eight columns per word in the order 0, 2, 4, 6, 1, 3, 5, 7, the lowest
bits first; ``qzeros`` (G, N / 8) likewise; ``scales`` (G, N). A weight is (code - zero) * scale.
"""

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.modules import FLOATS, Module, as_float32, values
from recover.inputs.originals.packing import I8Array, interleaved_nibbles
from recover.quants import F32Array
from recover.reblock.floats import F64Array
from recover.reblock.integers import IntegerRows
from recover.reblock.schemes.base import Weight, unpacked, zero_range

_WORDS = ("I32", "U32")
_NIBBLE_OF_COLUMN = np.array([0, 4, 1, 5, 2, 6, 3, 7])


def read(module: Module) -> Weight | None:
    """The weight of a module that AWQ quantized."""
    if "qweight" not in module.tensors:
        return None
    method = module.config.get("quant_method")
    qweight = module.take("qweight", _WORDS, 2)
    scales = module.take("scales", FLOATS, 2)
    qzeros = module.take("qzeros", _WORDS, 2)
    (n_groups, n_rows), row_length = scales.shape, qweight.shape[0]
    if method not in ("awq", None) or (method is None and qweight.shape[1] * 8 != n_rows):
        return None
    version = module.config.get("version", "gemm")
    if str(version).lower() != "gemm" or module.integer("bits") not in (None, 4):
        raise module.error("AWQ is only supported with 4 bits and version gemm")
    if n_rows % 8 or row_length % n_groups:
        raise module.error(f"{n_groups} x {n_rows} scales for {row_length} columns")
    module.expect("qweight", (row_length, n_rows // 8))
    module.expect("qzeros", (n_groups, n_rows // 8))
    group = row_length // n_groups
    words, zero_words, all_scales = values(qweight), values(qzeros), values(scales)

    def columns(packed: NDArray[np.uint32], first: int, last: int) -> NDArray[np.int32]:
        """Columns `first` to `last` of packed words (n, N / 8)."""
        begin, end = first // 8, -(-last // 8)
        fields = unpacked(packed[:, begin:end], 4)[:, :, _NIBBLE_OF_COLUMN]
        return fields.reshape(len(packed), -1)[:, first - 8 * begin : last - 8 * begin]

    def codes(first: int, last: int, out: I8Array) -> None:
        begin, end = first // 8, -(-last // 8)
        whole = (
            out
            if (8 * begin, 8 * end) == (first, last)
            else np.empty((8 * (end - begin), row_length), np.int8)
        )
        zeros = columns(zero_words, 8 * begin, 8 * end).astype(np.int8)
        interleaved_nibbles(np.array(words[:, begin:end], np.uint32), zeros, group, whole)
        if whole is not out:
            out[:] = whole[first - 8 * begin : last - 8 * begin]

    def scale_rows(first: int, last: int) -> F32Array:
        return as_float32(scales, all_scales[:, first:last].T)

    def reference(first: int, last: int) -> F64Array:
        numbers = columns(words, first, last).T.reshape(last - first, n_groups, group)
        shifted = numbers - columns(zero_words, first, last).T[:, :, None]
        scaled = shifted * scale_rows(first, last).astype(np.float64)[:, :, None]
        return scaled.reshape(last - first, row_length)

    low, high = zero_range(n_rows, n_groups, lambda a, b: columns(zero_words, a, b))
    return Weight(
        stored_as=f"AWQ 4-bit {'symmetric' if low == high == 8 else 'asymmetric'}",
        rows=IntegerRows(
            n_rows=n_rows,
            row_length=row_length,
            group=group,
            lowest=-high,
            highest=15 - low,
            codes=codes,
            scales=scale_rows,
            reference=reference,
        ),
        leaves=frozenset({"qweight", "qzeros", "scales"}),
    )

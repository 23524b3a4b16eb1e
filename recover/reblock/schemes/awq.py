"""AWQ in the layout "gemm" (see `recover.containers.huggingface.formats.awq`)."""

import numpy as np

from recover.containers.huggingface.formats.awq import LEAVES, columns, layout
from recover.containers.huggingface.modules import Module
from recover.quants import I8Array
from recover.reblock.floats import F64Array
from recover.reblock.integers import IntegerRows
from recover.reblock.schemes.base import Weight, subtract_zeros, zero_range


def read(module: Module) -> Weight | None:
    """The weight of a module that AWQ quantized."""
    found = layout(module)
    if found is None:
        return None
    n_rows, row_length = found.n_rows, found.row_length
    n_groups, group = found.n_groups, found.group
    words, zero_words, scale_rows = found.words, found.zero_words, found.scale_rows

    def codes(first: int, last: int, out: I8Array) -> None:
        found.codes(first, last, out.view(np.uint8))
        subtract_zeros(out, found.zeros(first, last).T, group)

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
        leaves=LEAVES,
    )

"""GPTQ (see `recover.containers.huggingface.formats.gptq`)."""

import numpy as np

from recover.containers.huggingface.formats.gptq import LEAVES, groups_of_columns, layout
from recover.containers.huggingface.modules import Module
from recover.quants import I8Array
from recover.reblock.floats import F64Array
from recover.reblock.integers import IntegerRows
from recover.reblock.schemes.base import (
    Weight,
    decoded,
    obstacle_of_order,
    streamed,
    subtract_zeros,
    unpacked,
    zero_range,
)


def read(module: Module) -> Weight | None:
    """The weight of a module that GPTQ quantized."""
    found = layout(module)
    if found is None:
        return None
    n_bits, n_rows, row_length = found.n_bits, found.n_rows, found.row_length
    n_groups = found.n_groups
    group = -(-row_length // n_groups)
    if group * n_groups != row_length:
        return decoded(
            module, f"{n_groups} scales for {row_length} columns: the last group is short"
        )
    if groups_of_columns(module, found, group) is not None:
        return decoded(module, obstacle_of_order("g_idx"))
    words, zeros, scale_rows = found.words, found.zeros, found.scale_rows
    low, high = zero_range(n_rows, n_groups, zeros)

    def codes(first: int, last: int, out: I8Array) -> None:
        found.codes(first, last, out.view(np.uint8))
        subtract_zeros(out, zeros(first, last).T, group)

    def reference(first: int, last: int) -> F64Array:
        if 32 % n_bits:
            fields = streamed(words[:, first:last].T, n_bits)
        else:
            fields = unpacked(words[:, first:last], n_bits).transpose(1, 0, 2)
        numbers = fields.reshape(last - first, n_groups, group)
        shifted = numbers - zeros(first, last).T[:, :, None]
        scaled = shifted * scale_rows(first, last).astype(np.float64)[:, :, None]
        return scaled.reshape(last - first, row_length)

    is_symmetric = low == high == 1 << (n_bits - 1)
    is_v2 = found.zero_shift == 0
    meaning = "zero points as stored (gptq_v2)" if is_v2 else "zero points are one more than stored"
    return Weight(
        stored_as=f"GPTQ {n_bits}-bit {'symmetric' if is_symmetric else 'asymmetric'}",
        rows=IntegerRows(
            n_rows=n_rows,
            row_length=row_length,
            group=group,
            lowest=-high,
            highest=(1 << n_bits) - 1 - low,
            codes=codes,
            scales=scale_rows,
            reference=reference,
        ),
        leaves=LEAVES,
        note=meaning,
    )

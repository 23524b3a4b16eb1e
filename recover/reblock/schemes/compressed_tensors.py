"""compressed-tensors of 2, 4 and 8 bits.

See `recover.containers.huggingface.formats.compressed_tensors`.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.formats._codes import unpack_rows
from recover.containers.huggingface.formats.compressed_tensors import (
    Packed,
    groups_of_columns,
    packed,
)
from recover.containers.huggingface.modules import Module, as_float32, values
from recover.quants import F32Array, I8Array
from recover.reblock.floats import F64Array
from recover.reblock.integers import IntegerRows
from recover.reblock.schemes.base import (
    Weight,
    decoded,
    obstacle_of_order,
    subtract_zeros,
    unpacked,
    zero_range,
)

_Numbers = Callable[[int, int], NDArray[np.int32]]


def read(module: Module) -> Weight | None:
    """The weight of a module that compressed-tensors stores."""
    found = packed(module)
    if found is None:
        return None
    if groups_of_columns(module, found) is not None:
        return decoded(module, obstacle_of_order("weight_g_idx"))
    return _packed(found) if found.is_packed else _plain(found)


def _packed(found: Packed) -> Weight:
    words, n_bits, row_length = values(found.stored), found.n_bits, found.row_length
    half = 1 << (n_bits - 1)

    def numbers(first: int, last: int) -> NDArray[np.int32]:
        return unpacked(words[first:last], n_bits).reshape(last - first, row_length) - half

    def codes(first: int, last: int, out: I8Array) -> None:
        raw = np.array(words[first:last], np.uint32).view(np.uint8).reshape(last - first, -1)
        unpack_rows(raw, n_bits, row_length, 0, out.view(np.uint8).reshape(-1))
        out -= np.int8(half) if n_bits < 8 else np.int8(-half)

    return _weight(found, codes, numbers)


def _plain(found: Packed) -> Weight:
    stored = values(found.stored)

    def numbers(first: int, last: int) -> NDArray[np.int32]:
        return stored[first:last].astype(np.int32)

    def codes(first: int, last: int, out: I8Array) -> None:
        out[:] = stored[first:last]

    return _weight(found, codes, numbers)


def _weight(
    found: Packed,
    stored_codes: Callable[[int, int, I8Array], None],
    numbers: _Numbers,
) -> Weight:
    """Put codes, scales and zero points together."""
    n_rows, row_length, n_bits = found.n_rows, found.row_length, found.n_bits
    scale, n_groups, group = found.scale, found.n_groups, found.group
    all_scales = values(scale).reshape(-1, n_groups)

    def scales(first: int, last: int) -> F32Array:
        rows = slice(first, last) if scale.n_weights > 1 else slice(None)
        found = as_float32(scale, all_scales[rows])
        return np.broadcast_to(found, (last - first, n_groups))

    def zero_points(first: int, last: int) -> NDArray[np.int32]:
        groups = np.arange(first * n_groups, last * n_groups)
        return found.zero_points(groups).reshape(-1, n_groups)

    zeros = None if found.zeros is None else zero_points
    half = 1 << (n_bits - 1)
    low, high = (0, 0) if zeros is None else zero_range(n_rows, n_groups, zeros)

    def codes(first: int, last: int, out: I8Array) -> None:
        stored_codes(first, last, out)
        if zeros is not None and (low, high) != (0, 0):
            subtract_zeros(out, zeros(first, last), group)

    def reference(first: int, last: int) -> F64Array:
        found = numbers(first, last).reshape(last - first, n_groups, group)
        if zeros is not None:
            found = found - zeros(first, last)[:, :, None]
        scaled = found * scales(first, last).astype(np.float64)[:, :, None]
        return scaled.reshape(last - first, row_length)

    return Weight(
        stored_as=f"int{n_bits} x {scale.dtype}{'' if low == high == 0 else ', asymmetric'}",
        rows=IntegerRows(
            n_rows=n_rows,
            row_length=row_length,
            group=group,
            lowest=-half - high,
            highest=half - 1 - low,
            codes=codes,
            scales=scales,
            reference=reference,
        ),
        leaves=found.leaves,
    )

"""Codes of three values: 0 where a weight is below half of the largest, otherwise its sign."""

from collections.abc import Callable

import numpy as np

from recover._compiled.jit import kernel
from recover.quants._declared import Layout
from recover.quants._hidden_scales import IK
from recover.quants.base import F32Array, I8Array, U8Array
from recover.quants.interval import BlockIntervals, Stated

_FAR = np.float32(np.inf)
_SLACK = np.float32(2.0**-20)
_F16_STEP = np.float32(2.0**-24)
_BLOCK = 256


@kernel
def fill_ternary(
    digits: I8Array,
    scale: F32Array,
    is_f16: bool,
    stated: Stated,
) -> None:
    """What digits (n,) say, which are multiplied by the scale (n / 64,) of their block.

    The scale is that of the largest weight of the row, rounded to f16 or not.
    """
    value, lower, upper, variance = stated
    for b in range(scale.size):
        d = scale[b]
        is_known = d > 0 and 0 < d * d * np.float32(1 / 12) < _FAR
        slack = d * _SLACK + (d * np.float32(2.0**-11) + _F16_STEP if is_f16 else np.float32(0))
        half, largest = d * np.float32(0.5), d + slack
        for i in range(64 * b, 64 * b + 64):
            q = digits[i]
            value[i] = d * np.float32(q)
            variance[i] = _FAR
            lower[i], upper[i] = -_FAR, _FAR
            if not is_known or q > 1:
                continue
            variance[i] = d * d * np.float32(1 / 12)
            lower[i] = -largest if q < 0 else -half - slack if q == 0 else half - slack
            upper[i] = -half + slack if q < 0 else half + slack if q == 0 else largest


def ternary_type(
    layout: Layout,
    unpack: Callable[[U8Array, I8Array, F32Array], None],
    *,
    row_header: int,
    file_types: dict[int, str],
) -> BlockIntervals:
    """A type of ik_llama.cpp whose rows have one scale in front: f16 or, of 4 bytes, f32.

    ``unpack(raw: uint8, digits: int8 (n,), scale: float32 (n / 64,))``; the others are as of
    `BlockIntervals`.
    """

    def state(raw: U8Array, stated: Stated) -> None:
        n = stated.value.size
        digits, scale = np.empty(n, np.int8), np.empty(n // 64, np.float32)
        unpack(raw, digits, scale)
        fill_ternary(digits, scale, row_header == 2, stated)

    return BlockIntervals(
        **layout,
        row_header=row_header,
        file_types=file_types,
        writer=IK,
        relative_mse=0.65,
        is_native=True,
        state=state,
    )


@kernel
def narrow_ternary(values: F32Array, lower: F32Array, upper: F32Array) -> None:
    """Intersect bounds (n,) with the cells of blocks of TQ1_0 or TQ2_0, by their decoded weights.

    `quantize_row_tq1_0_ref` and `quantize_row_tq2_0_ref`: d is the largest size of the 256 weights,
    the digit ``roundf(x / d)``, and d is rounded to f16 last: to 0 if it is 2**-25 or less. An
    importance matrix changes nothing.
    """
    for start in range(0, values.size, _BLOCK):
        d = np.float32(0)
        for i in range(start, min(start + _BLOCK, values.size)):
            d = max(d, abs(values[i])) if values[i] == values[i] else _FAR
        if not d < _FAR:
            continue
        slack = d * (np.float32(2.0**-11) + _SLACK) + _F16_STEP
        half, largest = d * np.float32(0.5), d + slack
        for i in range(start, min(start + _BLOCK, values.size)):
            x = values[i]
            low = -largest if x < 0 else -half - slack if x == 0 else half - slack
            high = -half + slack if x < 0 else half + slack if x == 0 else largest
            lower[i], upper[i] = max(lower[i], low), min(upper[i], high)

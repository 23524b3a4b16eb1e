"""MLX's affine quantization: 2, 3, 4, 5, 6 and 8 bits.

``weight`` uint32 (N, K * bits / 32): codes along K, the lowest bits first; ``scales`` and
``biases`` (N, G). A weight is code * scale + bias.

The encoder takes the end of a group that is larger in size as the edge, makes the scale of the
range and divides the edge by a whole number of steps instead; both are float32, and stored as what
the model has (mlx/backend/cpu/quantized.cpp). So bias over scale is a whole number but for the
rounding of the scale, and bias over that number is the scale that the codes were made with. The
edge has code 0: if no other weight has it, that weight is the bias.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.formats._codes import unpack_rows
from recover.containers.huggingface.formats._grid import (
    ANYWHERE,
    N_CODES,
    SOFT,
    Cells,
    Grid,
    Groups,
    Steps,
    cells_of,
    floats,
    rounding_interval,
    soft_cells,
    widened,
)
from recover.containers.huggingface.modules import FLOATS, Module, values
from recover.containers.safetensors.reader import Tensor
from recover.quants import IntervalType, U8Array

LEAVES = frozenset({"weight", "scales", "biases"})
_BITS = 2, 3, 4, 5, 6, 8
_LARGEST_GROUP = 1024
_SAMPLE = 1 << 14
"""Groups that tell how the codes were made."""
_RELATIVE_MSE = {2: 0.157, 3: 0.0365, 4: 8.3e-3, 5: 2e-3, 6: 5e-4, 8: 5.2e-5}
"""With groups of 64, in bfloat16."""


@cache
def _type(n_bits: int, *, is_trained: bool) -> IntervalType:
    error = _RELATIVE_MSE[n_bits]
    if is_trained:
        return IntervalType(name=f"MLX{n_bits} trained", relative_mse=SOFT * error, noise=SOFT / 12)
    return IntervalType(name=f"MLX{n_bits}", relative_mse=error)


@dataclass(frozen=True)
class Packed:
    """What is stored of a matrix.

    Attributes
    ----------
    weight, scales, biases : Tensor
        See the module.
    n_rows, row_length : int
        Size of the matrix.
    group, n_bits : int
        Weights that share a scale; bits of a code.
    """

    weight: Tensor
    scales: Tensor
    biases: Tensor
    n_rows: int
    row_length: int
    group: int
    n_bits: int


def is_stored(module: Module) -> bool:
    """Whether the module has the arrays of an affine quantization by MLX."""
    return LEAVES.issubset(module.tensors) and module.tensors["weight"].dtype == "U32"


def packed(module: Module) -> Packed:
    """What is stored of a matrix.

    Raises
    ------
    SafetensorsError
        If the arrays do not fit each other and the configuration.
    """
    weight = module.take("weight", ("U32",), 2)
    scales = module.take("scales", FLOATS, 2)
    biases = module.take("biases", FLOATS, 2)
    n_rows, n_groups = scales.shape
    module.expect("biases", (n_rows, n_groups))
    # bits * group = bits of a row / groups
    bits_per_group = 32 * weight.shape[1] // n_groups
    group = module.integer("group_size")
    if group is None or group < 1 or bits_per_group % group:
        raise module.error("the configuration does not give MLX's group_size")
    n_bits = bits_per_group // group
    row_length = group * n_groups
    if n_bits not in _BITS or 32 * weight.shape[1] != row_length * n_bits:
        raise module.error(f"MLX with {n_bits} bits is not supported")
    if weight.shape[0] != n_rows:
        raise module.error(f"weight has {weight.shape[0]} rows, scales have {n_rows}")
    return Packed(weight, scales, biases, n_rows, row_length, group, n_bits)


def read(module: Module) -> Grid | None:
    """The weight of a module that MLX quantized."""
    if not is_stored(module):
        return None
    found = packed(module)
    if found.group > _LARGEST_GROUP:
        raise module.error(f"groups of {found.group} weights; MLX has at most 128")
    raw = values(found.weight).view(np.uint8).reshape(found.n_rows, -1)

    def codes(start: int, out: U8Array) -> None:
        unpack_rows(raw, found.n_bits, found.row_length, start, out)

    how = _encoder(found, codes)
    is_trained = how is _trained
    note = ", trained afterwards" if is_trained else ", early version" if how is _older else ""
    return Grid(
        n_rows=found.n_rows,
        row_length=found.row_length,
        type=_type(found.n_bits, is_trained=is_trained),
        has_cells=not is_trained,
        seen_as=found.scales.dtype,
        leaves=LEAVES,
        label=f"MLX {found.n_bits}-bit, groups of {found.group}{note}",
        run=found.group,
        n_codes=1 << found.n_bits,
        codes=codes,
        steps=lambda first, last: Steps(
            floats(found.scales, first, last), base=floats(found.biases, first, last)
        ),
        groups=lambda first, last, codes: how(found, first, last, codes),
        cells=_cells(found.n_bits, how, found.scales.dtype),
        by_codes=not is_trained,
    )


_Encoder = Callable[[Packed, int, int, U8Array], Groups]

_PLAIN, _EDGE_ALONE, _AT_ZERO = range(3)


@cache
def _cells(n_bits: int, how: _Encoder, dtype: str) -> Cells:
    """The tables of an encoder; `_PLAIN` and so on are their numbers."""
    nominal = np.tile(np.arange(float(1 << n_bits)), (3, 1))
    if how is _trained:
        return soft_cells(nominal)
    lower, upper = nominal - 0.5, nominal + 0.5
    lower[:_AT_ZERO, 0] = upper[_EDGE_ALONE, 0] = 0  # no weight lies beyond the edge
    lower[_AT_ZERO, 0] = -np.inf
    upper[:, -1] = np.inf
    # the difference from the edge and the quotient are rounded
    unit = 1e-6 if how is _current else {"F32": 1e-6, "F16": 2.0**-10, "BF16": 2.0**-7}[dtype]
    return cells_of(lower, upper, nominal, slack=(unit / 2 + 1e-6, unit))


def _current(found: Packed, first: int, last: int, codes: U8Array) -> Groups:
    """Groups whose scale divides the bias."""
    step, base = floats(found.scales, first, last), floats(found.biases, first, last)
    n_low, n_high = _steps_to_zero(found, first, last)
    edge, n = np.abs(base.astype(np.float64)), (1 << found.n_bits) - 1
    fits = (n_low <= n_high) & (n_low >= 1)
    at_zero = edge == 0
    small = np.where(at_zero, np.abs(step), np.where(fits, edge / n_high, np.inf))
    large = np.where(at_zero, np.abs(step), np.where(fits, edge / n_low, np.inf))
    # scale = edge / k where edge / (range / n) is within 1 / 2 of k
    top = np.where(fits, n * (n_low / (n_low - 0.5)) * (1 + 1e-6), np.inf)
    row = np.where(_alone(codes, found.group), _EDGE_ALONE, _PLAIN)
    row[at_zero] = _AT_ZERO
    # the variance of numbers at equal distances of which each is as likely, two ends among them
    n_likely = np.maximum(n_high - n_low, 1) + 1
    return _groups(step, base, small, large, top, row, (n_likely + 1) / (n_likely - 1) / 3)


def _older(found: Packed, first: int, last: int, codes: U8Array) -> Groups:
    """Groups of early versions: bias = smallest weight, scale = range / n, in the model's floats.

    See `quantize` in mlx/ops.cpp of the first versions: every operation is rounded to the floats
    of the weights.
    """
    step, base = floats(found.scales, first, last), floats(found.biases, first, last)
    size = np.where(step > 0, step.astype(np.float64), np.inf)
    top = np.full(size.size, ((1 << found.n_bits) - 1) * (1 + 2.0**-6))
    row = np.where(_alone(codes, found.group), _EDGE_ALONE, _PLAIN)
    return _groups(step, base, size, size, top, row)


def _trained(found: Packed, first: int, last: int, codes: U8Array) -> Groups:
    """Groups whose scales and biases were changed afterwards: nothing is known but the values."""
    step, base = floats(found.scales, first, last), floats(found.biases, first, last)
    size = np.abs(step.astype(np.float64))
    return _groups(step, base, size, size, size + np.inf, np.zeros(size.size, np.int64))


def _groups(
    step: NDArray[np.float32],
    base: NDArray[np.float32],
    small: NDArray[np.float64],
    large: NDArray[np.float64],
    top: NDArray[np.float64],
    row: NDArray[np.int64],
    doubt: NDArray[np.float64] | None = None,
) -> Groups:
    zero = np.zeros_like(step)
    from_, to = widened(small, large)
    table = (row * N_CODES).astype(np.int32)
    doubt_of_scale = zero + ANYWHERE if doubt is None else doubt.astype(np.float32)
    ends = top.astype(np.float32), zero, table, doubt_of_scale
    return Groups(step, base, zero, zero, from_, to, *ends)


def _steps_to_zero(
    found: Packed, first: int, last: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least and the most whole number of scales that the bias can be."""
    step, base = floats(found.scales, first, last), floats(found.biases, first, last)
    small, large = rounding_interval(found.scales.dtype, step.astype(np.float64))
    edge = np.abs(base.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        least, most = edge / large, edge / small
        return np.ceil(least * (1 - 1e-6)), np.floor(most * (1 + 1e-6))


def _alone(codes: U8Array, group: int) -> NDArray[np.bool_]:
    """Whether one weight alone has code 0, by group."""
    return np.count_nonzero(codes.reshape(-1, group) == 0, axis=1) == 1


def _encoder(found: Packed, codes: Callable[[int, U8Array], None]) -> _Encoder:
    """How the groups were made, from a sample of them."""
    n_groups = found.scales.n_weights
    n_each = min(n_groups, _SAMPLE // 16)
    n_fitting = n_extremes = n_seen = 0
    n, out = (1 << found.n_bits) - 1, np.empty(n_each * found.group, np.uint8)
    for first in np.unique(np.linspace(0, n_groups - n_each, 16).astype(np.int64)).tolist():
        last = first + n_each
        n_low, n_high = _steps_to_zero(found, first, last)
        is_zero = floats(found.biases, first, last) == 0
        n_fitting += int(np.count_nonzero((n_low <= n_high) | is_zero))
        codes(first * found.group, out)
        grouped, step = out.reshape(-1, found.group), floats(found.scales, first, last)
        n_extremes += int(
            np.count_nonzero((step > 0) & (grouped.min(1) == 0) & (grouped.max(1) == n))
        )
        n_seen += n_each
    if n_fitting >= 0.999 * n_seen:
        return _current
    # in 16 bits a code of 8 bits may be rounded to 256, which changes the next one
    is_whole = found.n_bits < 8 or found.scales.dtype == "F32"
    return _older if n_extremes >= 0.999 * n_seen and is_whole else _trained

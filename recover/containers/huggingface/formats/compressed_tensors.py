"""compressed-tensors: ``pack-quantized`` (2, 4 and 8 bits) and ``int-quantized``.

pack-quantized: ``weight_packed`` int32 (N, K * bits / 32), codes along K plus half their range, the
lowest bits first; ``weight_scale`` (N, G); ``weight_shape`` (2), N and K; perhaps
``weight_zero_point`` int32 (N * bits / 32, G), packed along N, and ``weight_g_idx`` (K), the group
of each column. int-quantized: ``weight`` int8 (N, K), ``weight_scale`` (N, G) or one number. A
weight is (code - zero) * scale.

Codes are ``round(clamp(x / scale + zero))`` in the floats of the model (compressed-tensors:
quantization/lifecycle/forward_helpers.py). What was done to the weights before is in
``recipe.yaml``.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.formats._arithmetic import PRECISION, edges
from recover.containers.huggingface.formats._codes import unpack_rows
from recover.containers.huggingface.formats._grid import (
    ANYWHERE,
    F64,
    N_CODES,
    SOFT,
    Cells,
    Grid,
    Groups,
    Order,
    Steps,
    by_code,
    cells_of,
    soft,
    widened,
)
from recover.containers.huggingface.formats._recipe import Made, corrects, is_closed, made
from recover.containers.huggingface.modules import FLOATS, Module, as_float32, values
from recover.containers.huggingface.scaled import ScaledMatrix
from recover.containers.safetensors.reader import Tensor
from recover.quants import IntervalType, U8Array

# Scales of activations belong to no weight.
LEAVES = frozenset(
    {
        "weight_packed",
        "weight_scale",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
        "input_scale",
        "input_zero_point",
        "output_scale",
        "output_zero_point",
    }
)
I64 = NDArray[np.int64]
_BITS = 2, 4, 8
_END = {2: 0.125, 4: 0.25, 8: 0.25}
"""Mean square error, in steps, of codes whose cell is open: scales were searched for."""
_RELATIVE_MSE = {2: 0.26, 4: 0.0125, 8: 6.7e-5}
"""With groups of 128, and of 8 bits with one per row; in bfloat16."""


@cache
def _type(n_bits: int, *, is_corrected: bool = False) -> IntervalType:
    error = _RELATIVE_MSE[n_bits]
    if not is_corrected:
        return IntervalType(name=f"INT{n_bits}", relative_mse=error)
    return IntervalType(name=f"INT{n_bits} corrected", relative_mse=SOFT * error, noise=SOFT / 12)


@dataclass(frozen=True)
class Packed:
    """What is stored of a matrix.

    Attributes
    ----------
    stored : Tensor
        The codes: ``weight_packed``, to which half their range was added, or ``weight``.
    n_rows, row_length, n_bits : int
        Size of the matrix, and of a code.
    scale : Tensor
        One number, or `n_groups` per row.
    n_groups : int
        Groups of a row.
    zeros : Tensor or None
        Whole numbers that are subtracted from the codes.
    """

    stored: Tensor
    n_rows: int
    row_length: int
    n_bits: int
    scale: Tensor
    n_groups: int
    zeros: Tensor | None

    @property
    def is_packed(self) -> bool:
        """Whether codes are packed into words."""
        return self.stored.dtype != "I8"

    @property
    def leaves(self) -> frozenset[str]:
        """The module's arrays that belong to it."""
        return LEAVES if self.is_packed else LEAVES | {"weight"}

    @property
    def group(self) -> int:
        """Weights of a row that share a scale."""
        return self.row_length // self.n_groups

    def zero_points(self, groups: I64) -> NDArray[np.int32]:
        """What is subtracted from the codes of groups, counted over all rows."""
        if self.zeros is None:
            return np.zeros(len(groups), np.int32)
        if self.zeros.dtype == "I8":
            return values(self.zeros).reshape(-1)[groups].astype(np.int32)
        rows, columns = groups // self.n_groups, groups % self.n_groups
        per_word = 32 // self.n_bits
        words = values(self.zeros)[rows // per_word, columns]
        shifts = (rows % per_word * self.n_bits).astype(np.uint32)
        fields = (words >> shifts) & np.uint32((1 << self.n_bits) - 1)
        return fields.astype(np.int32) - (1 << (self.n_bits - 1))


def packed(module: Module) -> Packed | None:
    """What is stored of a matrix; None if compressed-tensors did not store it.

    Raises
    ------
    SafetensorsError
        If the arrays do not fit each other.
    """
    if "weight_packed" in module.tensors:
        return _packed(module) if "weight_shape" in module.tensors else None
    weight = module.tensors.get("weight")
    if weight is None or weight.dtype != "I8" or "weight_scale" not in module.tensors:
        return None
    weight = module.take("weight", ("I8",), 2)
    n_rows, row_length = weight.shape
    return _with_scales(module, weight, n_rows, row_length, 8)


def _packed(module: Module) -> Packed:
    stored = module.take("weight_packed", ("I32", "U32"), 2)
    shape = module.take("weight_shape", ("I32", "I64", "U32"), 1)
    module.expect("weight_shape", (2,))
    n_rows, row_length = (int(size) for size in values(shape))
    fits = (n for n in _BITS if stored.shape == (n_rows, -(-row_length * n // 32)))
    n_bits = next(fits, None)
    if n_bits is None or row_length < 1 or row_length % (32 // n_bits):
        raise module.error(
            f"weight_packed has the shape {list(stored.shape)}, which is no matrix of {n_rows} x"
            f" {row_length} with 2, 4 or 8 bits"
        )
    return _with_scales(module, stored, n_rows, row_length, n_bits)


def _with_scales(
    module: Module, stored: Tensor, n_rows: int, row_length: int, n_bits: int
) -> Packed:
    scale = module.tensors.get("weight_scale")
    if scale is None or scale.dtype not in FLOATS or scale.n_weights < 1:
        raise module.error("there is no weight_scale of floats")
    # one number for all rows, or one or more per row
    n_groups = scale.n_weights // n_rows if scale.n_weights > 1 else 1
    if scale.n_weights not in (1, n_rows * n_groups) or row_length % max(n_groups, 1):
        raise module.error(
            f"weight_scale has the shape {list(scale.shape)} for {n_rows} x {row_length} weights"
        )
    zeros = module.tensors.get("weight_zero_point")
    if zeros is not None and not (zeros.dtype == "I8" and zeros.n_weights == n_rows * n_groups):
        zeros = module.take("weight_zero_point", ("I32", "U32"), 2)
        module.expect("weight_zero_point", (-(-n_rows * n_bits // 32), n_groups))
    return Packed(stored, n_rows, row_length, n_bits, scale, n_groups, zeros)


def read(module: Module) -> Grid | ScaledMatrix | None:
    """The weight of a module that compressed-tensors stores."""
    found = packed(module)
    if found is None:
        return None
    how = made(module)
    raw = values(found.stored).view(np.uint8).reshape(found.n_rows, -1)
    flip = np.uint8(0 if found.is_packed else 128)

    def codes(start: int, out: U8Array) -> None:
        unpack_rows(raw, found.n_bits, found.row_length, start, out)
        if flip:
            np.bitwise_xor(out, flip, out=out)

    order = groups_of_columns(module, found)
    is_one = found.scale.n_weights == 1 and found.zeros is None
    run = found.n_rows * found.row_length if is_one else found.group
    n_bits, is_asymmetric = found.n_bits, found.zeros is not None
    grid = Grid(
        n_rows=found.n_rows,
        row_length=found.row_length,
        type=_type(n_bits),
        has_cells=True,
        seen_as=found.scale.dtype,
        leaves=found.leaves,
        label=_label(found, how, in_order=order is None),
        run=run if order is None else 1,
        n_codes=1 << n_bits,
        codes=codes,
        steps=lambda first, last: _steps(found, np.arange(first, last)),
        groups=lambda first, last, codes: _groups(found, order, first, last),
        cells=_cells(n_bits, found.scale.dtype, is_asymmetric, is_closed(module)),
        order=None if order is None else Order(order, found.n_groups),
    )
    is_corrected = corrects(module)
    if how is Made.UNKNOWN or is_corrected:
        kind = _type(n_bits, is_corrected=True)
        nominal = _nominal(n_bits, is_asymmetric)
        grid = soft(grid, kind, nominal, grid.label, is_corrected=is_corrected)
    return ScaledMatrix(grid) if how is Made.SCALED else grid


def _label(found: Packed, how: Made, *, in_order: bool) -> str:
    if found.scale.n_weights == 1:
        extent = "one scale"
    else:
        extent = "scales by row" if found.n_groups == 1 else f"groups of {found.group}"
    notes = [extent, "" if found.zeros is None else "asymmetric", "" if in_order else "act-order"]
    return ", ".join([f"int{found.n_bits}", *filter(None, [*notes, how.value])])


def groups_of_columns(module: Module, found: Packed) -> I64 | None:
    """The group of each column; None if they are in order."""
    if "weight_g_idx" not in module.tensors:
        return None
    tensor = module.take("weight_g_idx", ("I32", "U32", "I64"), 1)
    module.expect("weight_g_idx", (found.row_length,))
    order = values(tensor).astype(np.int64)
    if order.min() < 0 or order.max() >= found.n_groups:
        raise module.error(f"weight_g_idx names groups that are not there, of {found.n_groups}")
    if np.array_equal(order, np.arange(found.row_length) // found.group):
        return None
    return order


def _which(found: Packed, order: I64 | None, first: int, last: int) -> I64:
    """The groups of runs, which are groups or, in another order of the columns, weights."""
    which = np.arange(first, last)
    if order is not None:
        which = which // found.row_length * found.n_groups + order[which % found.row_length]
    return which


def _steps(found: Packed, which: I64) -> Steps:
    """What codes of these groups mean."""
    place = which if found.scale.n_weights > 1 else np.zeros_like(which)
    step = as_float32(found.scale, values(found.scale).reshape(-1)[place])
    zeros = found.zero_points(which) + (1 << (found.n_bits - 1))
    return Steps(step, zeros.astype(np.float32))


def _groups(found: Packed, order: I64 | None, first: int, last: int) -> Groups:
    """Runs `first` to `last`."""
    which = _which(found, order, first, last)
    step, shift, _ = _steps(found, which)
    assert shift is not None
    size, half = step.astype(np.float64), 1 << (found.n_bits - 1)
    # half the distance of subnormal scales is no small part of them
    least = 2.0**-14 if found.scale.dtype == "F16" else 2.0**-120
    small, large = widened(np.where(size >= least, size, np.inf), size)
    nothing, zeros = np.zeros_like(step), found.zero_points(which)
    row = np.zeros(len(which), np.int32) if found.zeros is None else (zeros + half) * N_CODES
    ends = nothing + np.inf, nothing, row, nothing + ANYWHERE
    return Groups(step, nothing, shift, nothing, small, large, *ends)


def _zeros(n_bits: int, is_asymmetric: bool) -> I64:
    half = 1 << (n_bits - 1)
    return np.arange(-half, half) if is_asymmetric else np.zeros(1, np.int64)


def _nominal(n_bits: int, is_asymmetric: bool) -> F64:
    half = 1 << (n_bits - 1)
    zeros = _zeros(n_bits, is_asymmetric).astype(np.float64)
    return np.arange(-half, half, dtype=np.float64) - zeros[:, None]


@cache
def _cells(n_bits: int, kind: str, is_asymmetric: bool, is_closed: bool) -> Cells:
    """Tables by zero point, counted from the lowest, and code; in quotients of weight and scale."""
    half, zeros = 1 << (n_bits - 1), _zeros(n_bits, is_asymmetric)
    nominal = _nominal(n_bits, is_asymmetric)
    between = edges(kind, -half, 2 * half, zeros)
    first, last = nominal[:, :1] - 0.5, nominal[:, -1:] + 0.5
    if not is_asymmetric:
        first = -last
    if not is_closed:
        first, last = first - np.inf, last + np.inf
    lower, upper = np.hstack([first, between]), np.hstack([between, last])
    cells = cells_of(lower, upper, nominal, slack=(1e-6, 1e-6), end=_END[n_bits])
    # of symmetric ones the scale was rounded, of others range and zero point, too
    unit = 2.0 ** -PRECISION[kind]
    spare = 8 * half * unit + 0.5 if is_asymmetric else 2 * half * unit
    lower[:, 0] -= spare
    upper[:, -1] += spare
    return cells._replace(lower=by_code(lower), upper=by_code(upper))

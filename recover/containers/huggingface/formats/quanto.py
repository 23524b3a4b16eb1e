"""optimum-quanto: qint2, qint4, qint8 and qfloat8.

qint8, qfloat8: ``weight._data`` int8 or float8 (N, K), ``weight._scale`` (N, 1). A weight is
code * scale; codes are ``clamp(round(x / scale))``.

qint2, qint4: the matrix is cut along its rows into groups, which are the rows of a (G, group)
matrix; ``weight._data._data`` uint8 holds its codes, the first part of the rows in the lowest bits
of the bytes. ``weight._scale`` and ``weight._shift`` (G, 1). A weight is scale * code - shift;
codes are ``clamp(round((x + shift) / scale))``. The size of the matrix is not stored: it follows
from the length of the bias, or from the sizes of the model.

All of it is computed in the floats of the scales (optimum-quanto:optimum/quanto/library/
quantize.py).
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from recover.containers.huggingface.formats import fp8
from recover.containers.huggingface.formats._arithmetic import PRECISION, edges
from recover.containers.huggingface.formats._codes import unpack_fields
from recover.containers.huggingface.formats._grid import (
    ANYWHERE,
    N_CODES,
    Cells,
    Grid,
    Groups,
    Steps,
    cells_of,
    floats,
    widened,
)
from recover.containers.huggingface.formats.base import Matrix
from recover.containers.huggingface.modules import FLOATS, Module
from recover.containers.safetensors.reader import Tensor
from recover.quants import IntervalType, U8Array

PLAIN = "weight._data"
PACKED = "weight._data._data"
LEAVES = frozenset({PLAIN, PACKED, "weight._scale", "weight._shift", "input_scale", "output_scale"})
_END = 0.12
_RELATIVE_MSE = {2: 0.22, 4: 0.0102, 8: 6.9e-5}
"""With groups of 128, and of 8 bits with one per row; in bfloat16."""


@cache
def _type(n_bits: int) -> IntervalType:
    return IntervalType(name=f"QINT{n_bits}", relative_mse=_RELATIVE_MSE[n_bits])


def read(module: Module) -> Matrix | None:
    """The weight of a module that quanto stored."""
    if PACKED in module.tensors:
        return _groups_of(module)
    codes = module.tensors.get(PLAIN)
    if codes is None:
        return None
    return _rows_of_floats(module) if codes.dtype.startswith("F8") else _rows_of(module)


def _rows_of_floats(module: Module) -> Matrix:
    """qfloat8: what another format of float8 has with rows of scales, under other names."""
    scale = module.take("weight._scale", FLOATS, 2)
    codes = module.take(PLAIN, ("F8_E4M3", "F8_E5M2"), 2)
    module.expect("weight._scale", (codes.shape[0], 1))
    found = fp8.read(replace(module, tensors={"weight": codes, "weight_scale": scale}))
    assert found is not None
    seen = scale.dtype if scale.dtype != "F32" else found.seen_as
    return replace(found, leaves=LEAVES, label=f"quanto {found.label}", seen_as=seen)


def _rows_of(module: Module) -> Grid:
    codes = module.take(PLAIN, ("I8",), 2)
    scale = module.take("weight._scale", FLOATS, 2)
    n_rows, row_length = codes.shape
    module.expect("weight._scale", (n_rows, 1))
    raw = codes.raw

    def codes_of(start: int, out: U8Array) -> None:
        np.bitwise_xor(raw[start : start + out.size], np.uint8(128), out=out)

    def steps(first: int, last: int) -> Steps:
        step = floats(scale, first, last)
        return Steps(step, np.full(len(step), 128, np.float32))

    return Grid(
        n_rows=n_rows,
        row_length=row_length,
        type=_type(8),
        has_cells=True,
        seen_as=scale.dtype,
        leaves=LEAVES,
        label="quanto qint8, scales by row",
        run=row_length,
        n_codes=N_CODES,
        codes=codes_of,
        steps=steps,
        groups=lambda first, last, codes: _with(scale, steps(first, last)),
        cells=_cells(8, scale.dtype, lowest=-128),
    )


@dataclass(frozen=True)
class _Packed:
    """The arrays of a matrix in groups."""

    codes: Tensor
    scale: Tensor
    shift: Tensor
    n_bits: int
    group: int


def _groups_of(module: Module) -> Grid:
    found = _packed(module)
    n_weights = found.group * found.scale.n_weights
    n_rows, row_length = _size(module, n_weights)
    raw = found.codes.raw.reshape(-1, 1)
    per_byte = 8 // found.n_bits

    def codes_of(start: int, out: U8Array) -> None:
        _unpack(raw, found.n_bits, per_byte, start, out)

    def steps(first: int, last: int) -> Steps:
        return Steps(floats(found.scale, first, last), base=-floats(found.shift, first, last))

    return Grid(
        n_rows=n_rows,
        row_length=row_length,
        type=_type(found.n_bits),
        has_cells=True,
        seen_as=found.scale.dtype,
        leaves=LEAVES,
        label=f"quanto qint{found.n_bits}, groups of {found.group}",
        run=found.group,
        n_codes=1 << found.n_bits,
        codes=codes_of,
        steps=steps,
        groups=lambda first, last, codes: _with_shifts(found, steps(first, last)),
        cells=_cells(found.n_bits, found.scale.dtype, lowest=0),
    )


def _packed(module: Module) -> _Packed:
    """The arrays of a matrix in groups.

    Raises
    ------
    SafetensorsError
        If they do not fit each other.
    """
    codes = module.take(PACKED, ("U8",), 2)
    scale = module.take("weight._scale", FLOATS, 2)
    shift = module.take("weight._shift", FLOATS, 2)
    n_packed, group = codes.shape
    n_groups = scale.n_weights
    fits = [n for n in (2, 4) if n_packed * (8 // n) == n_groups]
    if not fits or scale.shape != (n_groups, 1) or shift.shape != scale.shape:
        raise module.error(
            f"{PACKED} has the shape {list(codes.shape)}, which is not that of {n_groups} groups"
            " with 2 or 4 bits"
        )
    if shift.dtype != scale.dtype:
        raise module.error(f"weight._shift is {shift.dtype}, weight._scale {scale.dtype}")
    return _Packed(codes, scale, shift, fits[0], group)


def _size(module: Module, n_weights: int) -> tuple[int, int]:
    """The size of a matrix: by the length of its bias, or by the sizes of the model.

    Raises
    ------
    SafetensorsError
        If neither tells it.
    """
    bias, (row_length, n_rows) = module.tensors.get("bias"), module.sizes()
    if bias is not None and len(bias.shape) == 1:
        row_length, n_rows = None, bias.n_weights
    if row_length and n_weights % row_length == 0:
        return n_weights // row_length, row_length
    if n_rows and n_weights % n_rows == 0:
        return n_rows, n_weights // n_rows
    raise module.error(
        "quanto does not store the size of a matrix of qint2 or qint4, and neither a bias nor"
        " config.json tells it; save the weights as qint8"
    )


def _unpack(raw: U8Array, n_bits: int, per_byte: int, start: int, out: U8Array) -> None:
    """Codes of parts, of which the first is in the lowest bits."""
    span, i = len(raw), 0
    while i < out.size:
        part, at = divmod(start + i, span)
        m = min(out.size - i, span - at)
        # the place that `unpack_fields` gives this part
        reverse = (per_byte - 1 - part) * span + at
        unpack_fields(raw, n_bits, n_bits * (per_byte - 1), span, reverse, out[i : i + m])
        i += m


def _with(scale: Tensor, steps: Steps) -> Groups:
    """Groups whose scales are those that were used."""
    step = steps.step
    size = step.astype(np.float64)
    # half the distance of subnormal scales is no small part of them
    least = 2.0**-14 if scale.dtype == "F16" else 2.0**-120
    small, large = widened(np.where(size >= least, size, np.inf), size)
    nothing, row = np.zeros_like(step), np.zeros(len(step), np.int32)
    base, shift = (nothing if each is None else each for each in (steps.base, steps.shift))
    ends = nothing + np.inf, nothing, row, nothing + ANYWHERE
    return Groups(step, base, shift, nothing, small, large, *ends)


def _with_shifts(found: _Packed, steps: Steps) -> Groups:
    """The same of groups with shifts, which may have been stored as others than were used.

    A layout for devices has codes of 4 bits around ``m = 8 step - shift`` instead, rounded to
    bfloat16, and what is saved is made of that again (quanto/tensor/weights/tinygemm/qbits.py). Of
    two such numbers the difference is exact if neither is more than twice the other.
    """
    groups = _with(found.scale, steps)
    if found.scale.dtype != "BF16" or found.n_bits != 4:
        return groups
    assert steps.base is not None
    with np.errstate(all="ignore"):
        shift = -steps.base.astype(np.float64) / steps.step.astype(np.float64)
    is_exact = (shift > 4.2) & (shift < 15)
    loose = 2.0**-8 * 1.01 * (np.abs(8 - shift) + np.abs(shift))
    loose[is_exact | ~np.isfinite(loose)] = 0
    return groups._replace(loose=loose.astype(np.float32))


@cache
def _cells(n_bits: int, kind: str, lowest: int) -> Cells:
    """Tables by code; of groups the sum of weight and shift was rounded before."""
    n_codes = 1 << n_bits
    between = edges(kind, lowest, n_codes, np.zeros(1, np.int64))
    lower, upper = np.insert(between, 0, -np.inf, 1), np.append(between, [[np.inf]], 1)
    nominal = np.arange(lowest, lowest + n_codes, dtype=np.float64)[None]
    unit = 2.0 ** -PRECISION[kind] if lowest == 0 else 0.0
    return cells_of(lower, upper, nominal, slack=(unit / 2 + 1e-6, unit + 1e-6), end=_END)

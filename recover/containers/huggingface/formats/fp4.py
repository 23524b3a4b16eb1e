"""NVFP4 and MXFP4: 4-bit floats (e2m1) with a scale per 16 or 32 weights along a row.

``weight_packed`` (compressed-tensors) or ``weight`` (ModelOpt, Quark) U8 (N, K / 2), the first of
two weights in the lower half. NVFP4: ``weight_scale`` F8_E4M3 (N, K / 16), times ``weight_scale_2``
or over ``weight_global_scale``, one F32. MXFP4: ``weight_scale`` U8 or F8_E8M0 (N, K / 32),
exponents of powers of two.

The nearest number to the quotient of weight and scale is stored; a sign is kept where it is rounded
to zero. The scale of NVFP4 is the largest magnitude of its weights over 6, rounded to e4m3.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.formats import _mlx_floats
from recover.containers.huggingface.formats._coded import Coded, Runs
from recover.containers.huggingface.formats._levels import (
    LevelMatrix,
    Scales,
    deviation_of,
    in_units,
    nearest_cells,
    normal,
    normal_beside,
    rounded_twice,
    split_pairs,
    state,
    state_largest,
    table_of,
)
from recover.containers.huggingface.formats._recipe import Made, is_closed, made_of_floats
from recover.containers.huggingface.formats.fp8 import e4m3, e8m0
from recover.containers.huggingface.modules import Module, values
from recover.containers.safetensors.reader import Tensor
from recover.quants import F32Array, IntervalType, Stated, U8Array

NVFP4 = IntervalType(name="NVFP4 (folder)", relative_mse=9e-3, is_uniform=True)
NVFP4_FITTED = IntervalType(name="NVFP4 (folder)", relative_mse=8.99e-3, is_uniform=True)
"""With scales that are sure to be fitted to the largest weights, which closes the end cells."""
_BEYOND = 0.74
"""How far weights with an outermost code of MXFP4 may be beyond its level, in steps: up to 8 scales
where exponents are rounded down."""
_ANYWHERE = (0.0, 0.0, -np.inf, np.inf)
MXFP4 = IntervalType(
    name="MXFP4 (folder)",
    relative_mse=1.3e-2,
    is_uniform=True,
    density=(_ANYWHERE, (0.0, 0.0, -_BEYOND, np.inf), (0.0, 0.0, -np.inf, _BEYOND)),
)

_GLOBAL_LEAVES = ("weight_scale_2", "weight_global_scale")
ACTIVATION_LEAVES = ("input_scale", "input_global_scale", "output_scale")
_POSITIVE = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
_LEVELS = np.concatenate((_POSITIVE, -_POSITIVE))
_NUMBERS = in_units(_LEVELS)
_MOST, _NEGATIVE_ZERO = 7, 8
_ENDS = 15, 7
_SLACK = 2.0**-20
# Largest weights over 6 may be rounded to bfloat16 before they are rounded to e4m3.
_SCALE_SLACK = 2.0**-7
_MOST_FITTED = 6 * (1 + 2.0**-5)
_SAMPLE = 1 << 16
_FEWEST_BLOCKS = 128


def _scale_table() -> F32Array:
    """For each byte of a scale, the scale, and between what the largest weight is; (3, 256)."""
    numbers = e4m3()
    n_known = 0x7F  # of positive numbers; those from the last one on clip, and have no upper end
    edges = (numbers[1:n_known] + numbers[: n_known - 1]) / 2
    table = np.full((3, 256), np.inf)
    table[0], table[1, 1:n_known], table[2, : n_known - 1] = numbers, edges, edges
    table[1, 0] = 0
    table[1:] *= [[6 * (1 - _SCALE_SLACK)], [6 * (1 + _SCALE_SLACK)]]
    return table.astype(np.float32)


_SCALES = _scale_table()


class _Made(NamedTuple):
    """What the codes tell of their encoder."""

    is_signed: bool
    """Whether it kept the signs of zeros."""
    fits_largest: bool
    """Whether it fitted the scales to the largest weights: each block has an outermost code."""
    reach: float
    """How far the largest weights of blocks are likely to be, in scales; infinite if unknown."""
    is_power: bool
    """Whether the scales are powers of two, and it is known to which they are rounded."""


@lru_cache(16)
def _table(made: _Made, block: int) -> F32Array:
    """Codes in units of the scale; the cells of the outermost ones are open."""
    levels = np.full(256, np.nan)
    levels[:16] = _LEVELS
    cells = rounded_twice(levels, nearest_cells(levels, np.inf))
    likely = nearest_cells(levels, made.reach)
    if made.is_signed:
        for each in (cells, likely):
            each[0, 0] = each[1, _NEGATIVE_ZERO] = 0
    weights = normal(_POSITIVE[_MOST] * deviation_of(block))
    if made.is_power:
        weights = normal_beside(made.reach, block)
    return table_of(levels, cells, _SLACK, likely, weights)[None]


class Layout(NamedTuple):
    """The arrays of a module whose weight is stored as 4-bit floats."""

    leaf: str
    """Name of the codes."""
    packed: Tensor
    """(n_rows, row_length / 2)"""
    scale: Tensor
    """(n_rows, row_length / block)"""
    is_nv: bool
    """Whether it is NVFP4; else MXFP4."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.packed.shape[0]

    @property
    def row_length(self) -> int:
        """Weights of a row."""
        return 2 * self.packed.shape[1]

    @property
    def block(self) -> int:
        """Weights that share a scale."""
        return 16 if self.is_nv else 32

    @property
    def leaves(self) -> frozenset[str]:
        """The module's arrays that belong to it."""
        own = {self.leaf, "weight_scale"}
        return _mlx_floats.LEAVES.union(own, _GLOBAL_LEAVES, ACTIVATION_LEAVES)


def layout(module: Module) -> Layout | None:
    """The arrays of a module that stores 4-bit floats; None of any other.

    Raises
    ------
    SafetensorsError
        If an array is missing, or of a wrong shape, or the columns were scaled.
    """
    leaf = next((each for each in ("weight_packed", "weight") if each in module.tensors), None)
    scale = module.tensors.get("weight_scale")
    if leaf is None or scale is None or module.tensors[leaf].dtype != "U8":
        return None
    is_nv = scale.dtype == "F8_E4M3"
    if not is_nv and scale.dtype not in ("U8", "F8_E8M0"):
        return None
    if "pre_quant_scale" in module.tensors:
        raise module.error("columns were scaled before (pre_quant_scale); give a file without it")
    if "weight_zero_point" in module.tensors:
        raise module.error("4-bit floats with a weight_zero_point are not known")
    found = Layout(leaf, module.take(leaf, ("U8",), 2), scale, is_nv)
    if found.row_length % found.block:
        raise module.error(
            f"{found.row_length} columns are no whole number of blocks of {found.block}"
        )
    module.take("weight_scale", (scale.dtype,), 2)
    module.expect("weight_scale", (found.n_rows, found.row_length // found.block))
    return found


def read(module: Module) -> LevelMatrix | None:
    """The weight of a module that is stored as 4-bit floats."""
    module = _mlx_floats.renamed(module)
    found = layout(module)
    if found is None:
        return None
    how = made_of_floats(module)
    find = _nv_scales(module, found.scale) if found.is_nv else _mx_scales(found.scale)
    scales = _exact_nv_scales(module, found.scale) if found.is_nv else _exact_mx_scales(found.scale)
    kind = (NVFP4_FITTED if is_closed(module) else NVFP4) if found.is_nv else MXFP4
    return LevelMatrix(
        n_rows=found.n_rows,
        row_length=found.row_length,
        type=kind,
        has_cells=how is not Made.CORRECTING,
        seen_as="BF16",
        may_be_f16=True,
        leaves=found.leaves,
        label="NVFP4" if found.is_nv else "MXFP4",
        tell=_teller(found.packed.raw, found.block, find, is_closed(module)),
        decode=_decoder(found.packed.raw, found.block, scales),
        beyond=None if found.is_nv and is_closed(module) else 0.0,
    )


_Find = Callable[[int, int], tuple[F32Array, F32Array, F32Array]]
"""Scales of a range of blocks, and between which magnitudes the largest weight of each is."""


def _teller(
    packed: U8Array, block: int, find: _Find, is_sure: bool
) -> Callable[[int, int, Stated], None]:
    """See `LevelMatrix.tell`."""
    made: list[_Made] = []

    def tell(start: int, end: int, stated: Stated) -> None:
        if not made:
            made.append(_made(packed, block, find))
        first, last = start // block, -(-end // block)
        begin = first * block
        codes = np.empty((last - first) * block, np.uint8)
        split_pairs(packed[begin // 2 : last * block // 2], False, codes)
        place = start - begin, end - begin
        scales, low, high = find(first, last)
        table = _table(made[0], block)
        runs = Runs(block, block, place[0])
        state(codes[slice(*place)], Scales.exact(scales), runs, table, stated)
        if made[0].fits_largest:
            state_largest(codes, block, place, _ENDS, (low, high), stated, is_sure=is_sure)

    return tell


def _decoder(
    packed: U8Array, block: int, scales: Callable[[int, int], NDArray[np.float64]]
) -> Callable[[int, int], Coded]:
    """See `LevelMatrix.decode`; ``scales(first, last)`` are those of a range of blocks."""

    def decode(start: int, end: int) -> Coded:
        first, last = start // block, -(-end // block)
        codes = np.empty((last - first) * block, np.uint8)
        split_pairs(packed[first * block // 2 : last * block // 2], False, codes)
        runs = Runs(block, block, start % block)
        own = codes[start - first * block : end - first * block]
        return Coded(own, _NUMBERS, runs, scales(first, last))

    return decode


def _made(packed: U8Array, block: int, find: _Find) -> _Made:
    """What the first codes tell."""
    n_blocks = min(2 * packed.size, _SAMPLE) // block
    codes = np.empty(n_blocks * block, np.uint8)
    split_pairs(packed[: codes.size // 2], False, codes)
    magnitudes = codes.reshape(n_blocks, block) & 7
    largest, high = magnitudes.max(1), find(0, n_blocks)[2]
    fits = bool(np.all((largest == _MOST) | (largest == 0) | np.isinf(high)))
    reach = _MOST_FITTED if fits else np.inf
    if np.isinf(high).all():
        reach = _reach_of_powers(largest[largest > 0])
        fits = False
    return _Made(
        is_signed=bool(np.any(codes == _NEGATIVE_ZERO)),
        fits_largest=fits,
        reach=reach,
        is_power=reach not in (_MOST_FITTED, np.inf),
    )


def _reach_of_powers(largest: U8Array) -> float:
    """How far largest weights are, in scales that are powers of two: 8, 7 or 6; by their codes.

    Exponents may be rounded down, so that these are 4 to 8 scales, to the nearest number of the
    format (3.5 to 7), or up (3 to 6). Of numbers spread evenly in the logarithm 68%, 49% and 26%
    have the outermost code, which is that of 5 and more.
    """
    if largest.size < _FEWEST_BLOCKS:
        return np.inf
    share = np.count_nonzero(largest == _MOST) / largest.size
    expected = {reach: float(np.log2(reach / 5)) for reach in (8.0, 7.0, 6.0)}
    return min(expected, key=lambda reach: abs(expected[reach] - share))


def common_scale(module: Module) -> tuple[np.float32, bool]:
    """The scale of a whole NVFP4 matrix, and whether scales of blocks are divided by it.

    Raises
    ------
    SafetensorsError
        If there is none, or not one number.
    """
    found = [each for each in _GLOBAL_LEAVES if each in module.tensors]
    if len(found) != 1:
        raise module.error(f"there is not one of {' and '.join(_GLOBAL_LEAVES)}")
    whole = module.tensors[found[0]]
    if whole.dtype != "F32" or whole.n_weights != 1:
        raise module.error(f"{found[0]} is {whole.dtype} of shape {list(whole.shape)}")
    return np.float32(values(whole).reshape(-1)[0]), found[0] == "weight_global_scale"


def _nv_scales(module: Module, scale: Tensor) -> _Find:
    """Scales of 8 bits, times the one of the matrix."""
    common, divides = common_scale(module)
    codes = scale.raw

    def find(first: int, last: int) -> tuple[F32Array, F32Array, F32Array]:
        with np.errstate(all="ignore"):
            told = _SCALES[:, codes[first:last]]
            stored, low, high = told / common if divides else told * common
        high[np.isnan(high) | (stored <= 0)] = np.inf
        return stored, low, high

    return find


def _exact_nv_scales(module: Module, scale: Tensor) -> Callable[[int, int], NDArray[np.float64]]:
    """Scales of a range of blocks, in float64."""
    common, divides = common_scale(module)
    factor, codes, numbers = float(common), scale.raw, e4m3()

    def find(first: int, last: int) -> NDArray[np.float64]:
        told = numbers[codes[first:last]]
        with np.errstate(all="ignore"):
            return told / factor if divides else told * factor

    return find


def _exact_mx_scales(scale: Tensor) -> Callable[[int, int], NDArray[np.float64]]:
    """The same of exponents."""
    codes = scale.raw
    return lambda first, last: e8m0(codes[first:last]).astype(np.float64)


def _mx_scales(scale: Tensor) -> _Find:
    """Exponents of powers of two, which are fitted in many ways."""
    codes = scale.raw

    def find(first: int, last: int) -> tuple[F32Array, F32Array, F32Array]:
        stored = e8m0(codes[first:last])
        unknown = np.full(stored.size, np.inf, np.float32)
        return stored, unknown, unknown

    return find

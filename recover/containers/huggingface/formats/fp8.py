"""FP8 (e4m3 or e5m2) with a scale per tile, row or matrix, or without one.

``weight`` (N, K); ``weight_scale`` or ``weight_scale_inv``, which despite its name multiplies, too:
one number, (N, 1), (N, K / group), or one per tile of ``weight_block_size``, 128 x 128 if that is
not given. Bytes as scales are exponents (MXFP8). DeepSeek, Qwen and transformers store tiles, vLLM,
llm-compressor and ModelOpt rows and matrices.

The quotient of weight and scale was rounded to the nearest number (``Tensor.to`` of PyTorch, the
conversions of CUDA and Triton). Scales take the largest weight to the largest number.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._compiled.float16 import f32_bits
from recover._compiled.jit import inner, kernel
from recover.containers.huggingface.formats import _mlx_floats
from recover.containers.huggingface.formats._coded import Coded, Runs
from recover.containers.huggingface.formats._levels import (
    HALF_UNIT,
    TINY,
    LevelMatrix,
    Scales,
    in_units,
    nearest_cells,
    rounded_twice,
    state,
    table_of,
)
from recover.containers.huggingface.formats._recipe import Made, is_searched, made_of_floats
from recover.containers.huggingface.modules import Module, as_float32, values
from recover.containers.safetensors.reader import Tensor
from recover.quants import F32Array, IntervalType, Stated, U8Array

FP8 = IntervalType(name="FP8", relative_mse=7.0e-4)
FP8_E5M2 = IntervalType(name="FP8_E5M2", relative_mse=2.75e-3)

SCALE_LEAVES = ("weight_scale_inv", "weight_scale")
ACTIVATION_LEAVES = ("input_scale", "output_scale")
_EXACT = "compressed-tensors"
"""Uses scales as it stores them."""
_SCALE_TYPES = ("F32", "BF16", "F16", "F8_E8M0")
EXPONENTS = "F8_E8M0", "U8"
_MOST_SCALES = 1 << 22
_KINDS = {"F8_E4M3": FP8, "F8_E5M2": FP8_E5M2}

# What arithmetic the encoder had, which scales show, and the tables for it: float32; that or
# bfloat16; float16.
_SINGLE, _EITHER, _HALF = range(3)
_SINGLE_SLACK, _HALF_SLACK = 2.0**-20, 2.0**-11
# Scales may be smaller by that, and quotients rounded up, than what the largest weight asks for.
_LARGEST_SLACK = 2 * HALF_UNIT
# The original may have been cast to float16, whose smallest numbers are this far apart, and more.
_SMALLEST_HALF = np.float32(2.0**-24)


@dataclass(frozen=True)
class StoredFP8:
    """The arrays of a module whose weight is FP8 with scales.

    Attributes
    ----------
    weight, scale : Tensor
        As stored.
    leaf : str
        Name of the scale.
    n_rows, row_length : int
        Of the weight.
    high, wide : int
        Rows and columns that share a scale.
    """

    weight: Tensor
    scale: Tensor
    leaf: str
    n_rows: int
    row_length: int
    high: int
    wide: int


def e4m3() -> NDArray[np.float64]:
    """What the 256 codes mean: 4 exponent bits of bias 7, 3 bits of mantissa, no infinity."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = np.where(
        exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0)
    )
    magnitude[(code & 127) == 127] = np.nan
    return np.where(code & 128, -magnitude, magnitude)


def e5m2() -> NDArray[np.float64]:
    """The same of e5m2, the upper halves of float16 numbers."""
    numbers = (np.arange(256, dtype=np.uint16) << np.uint16(8)).view(np.float16)
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(numbers), np.nan, numbers.astype(np.float64))


@cache
def _levels(dtype: str) -> F32Array:
    """What codes stand for."""
    return in_units(e4m3() if dtype == "F8_E4M3" else e5m2())


@cache
def _tables(dtype: str, is_clipped: bool) -> F32Array:
    """By arithmetic, what `recover.containers.huggingface.formats._levels.table_of` gives."""
    levels = e4m3() if dtype == "F8_E4M3" else e5m2()
    most = float(np.max(levels[np.isfinite(levels)]))
    cells = nearest_cells(levels, np.inf if is_clipped else most * (1 + _LARGEST_SLACK))
    found = {
        _SINGLE: table_of(levels, cells, _SINGLE_SLACK),
        _EITHER: table_of(levels, rounded_twice(levels, cells), _SINGLE_SLACK, likely=cells),
        _HALF: table_of(levels, cells, _HALF_SLACK),
    }
    return np.stack([found[arithmetic] for arithmetic in sorted(found)])


def find_scale(module: Module) -> str | None:
    """The name of the scale of a module's weight."""
    return next((leaf for leaf in SCALE_LEAVES if leaf in module.tensors), None)


def parse(
    module: Module, dtypes: tuple[str, ...], leaf: str, *, in_groups: bool = False
) -> StoredFP8:
    """The weight of a module and its scale `leaf`.

    With `in_groups` scales may also belong to groups of a row, and be exponents stored as bytes.

    Raises
    ------
    SafetensorsError
        If their shapes do not fit each other, or a type is not one of these.
    """
    weight = module.take("weight", dtypes, 2)
    n_rows, row_length = weight.shape
    scale = module.tensors[leaf]
    scale_types = (*_SCALE_TYPES, "U8") if in_groups else _SCALE_TYPES
    if scale.dtype not in scale_types or not scale.n_weights:
        raise module.error(f"{leaf} is {scale.dtype} of shape {list(scale.shape)}")
    if scale.n_weights > _MOST_SCALES:
        raise module.error(f"{leaf} has {scale.n_weights} scales; at most {_MOST_SCALES} are read")
    shape = as_matrix(scale)
    is_grouped = shape[0] == n_rows and row_length % shape[1] == 0
    if in_groups and is_grouped and "weight_block_size" not in module.config:
        high, wide = 1, row_length // shape[1]
    else:
        high, wide = _tile(module, leaf, n_rows, row_length, shape)
    return StoredFP8(weight, scale, leaf, n_rows, row_length, high, wide)


def as_matrix(scale: Tensor) -> tuple[int, int]:
    """The shape of scales as a matrix; those of one dimension belong to rows."""
    n_columns = scale.shape[-1] if len(scale.shape) == 2 else 1
    return scale.n_weights // n_columns, n_columns


def _tile(
    module: Module, leaf: str, n_rows: int, row_length: int, shape: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    if shape == (1, 1):
        return n_rows, row_length
    if shape == (n_rows, 1):
        return 1, row_length
    sizes = module.config.get("weight_block_size") or [128, 128]
    is_pair = isinstance(sizes, list) and len(sizes) == 2
    if not is_pair or not all(type(n) is int and n > 0 for n in sizes):
        raise module.error("weight_block_size is no pair of sizes")
    high, wide = sizes
    if shape != (-(-n_rows // high), -(-row_length // wide)):
        raise module.error(
            f"{leaf} has the shape {list(shape)}, which is no scale per tile of {high} x {wide} of"
            f" {n_rows} x {row_length} weights"
        )
    return high, wide


def read(module: Module) -> LevelMatrix | None:
    """The weight of a module that is stored as FP8."""
    module = _mlx_floats.renamed(module)
    weight = module.tensors.get("weight")
    if weight is None or weight.dtype not in _KINDS:
        return None
    how = made_of_floats(module)
    leaf = find_scale(module)
    if leaf is None:
        return _without_scale(module)
    stored = parse(module, tuple(_KINDS), leaf, in_groups=True)
    # Scales that are powers of two may be rounded down.
    is_power = stored.scale.dtype in EXPONENTS or module.config.get("scale_fmt") == "ue8m0"
    tables = _tables(weight.dtype, is_power or is_searched(module))
    n_rows, row_length = stored.n_rows, stored.row_length
    margin = TINY if stored.scale.dtype == "BF16" else _SMALLEST_HALF
    # It may have been rounded afterwards, except by compressed-tensors.
    is_exact = leaf == "weight_scale" and module.config.get("quant_method") == _EXACT
    is_rounded = stored.scale.dtype == "BF16" and not is_exact
    codes, shape = weight.raw, as_matrix(stored.scale)
    scales = values(stored.scale).reshape(shape)

    def tell(start: int, end: int, stated: Stated) -> None:
        first, last = start // row_length, -(-end // row_length)
        rows = np.arange(first, last) // stored.high
        part = _as_scales(stored, scales[rows[0] : rows[-1] + 1], is_rounded=is_rounded)
        each = [np.ascontiguousarray(of[rows - rows[0]]).reshape(-1) for of in part]
        runs = Runs(row_length, min(stored.wide, row_length), start - first * row_length)
        state(codes[start:end], Scales(*each), runs, tables, stated, margin=margin)

    def decode(start: int, end: int) -> Coded:
        first, last = start // row_length, -(-end // row_length)
        rows = np.arange(first, last) // stored.high
        part = _numbers(stored, scales[rows[0] : rows[-1] + 1]).astype(np.float64)
        runs = Runs(row_length, min(stored.wide, row_length), start - first * row_length)
        each = part[rows - rows[0]].reshape(-1)
        return Coded(codes[start:end], _levels(weight.dtype), runs, each)

    return LevelMatrix(
        n_rows=n_rows,
        row_length=row_length,
        type=_KINDS[weight.dtype],
        has_cells=how is not Made.CORRECTING,
        seen_as="BF16",
        may_be_f16=True,
        leaves=_mlx_floats.LEAVES.union(SCALE_LEAVES, ACTIVATION_LEAVES),
        label=f"{_name(weight.dtype)}, {_extent(stored)}",
        tell=tell,
        decode=decode,
    )


def e8m0(exponents: NDArray[Any]) -> F32Array:
    """The powers of two that F8_E8M0 stands for; 255 is no number."""
    found = np.ldexp(np.float32(1), np.minimum(exponents, 254).astype(np.int32) - 127)
    powers: F32Array = np.where(exponents == 255, np.float32(np.nan), found)
    return powers


def _numbers(stored: StoredFP8, scales: NDArray[Any]) -> F32Array:
    """Some of the stored scales as float32, in their shape; exact."""
    if stored.scale.dtype in EXPONENTS:
        return e8m0(scales)
    return as_float32(stored.scale, scales)


def _as_scales(
    stored: StoredFP8, numbers: NDArray[Any], *, is_rounded: bool
) -> tuple[NDArray[Any], ...]:
    """The fields of `Scales` for some of the stored scales, in their shape."""
    found = _numbers(stored, numbers)
    arithmetic = np.empty(found.shape, np.uint8)
    # PyTorch divides by a single number in the type of the weights, whatever its own is.
    least = _EITHER if stored.scale.n_weights == 1 else _SINGLE
    _find_arithmetic(found.reshape(-1), least, arithmetic.reshape(-1))
    if is_rounded:
        error = np.float32(HALF_UNIT)
        return found, found * (1 - error), found * (1 + error), arithmetic
    return found, found, found, arithmetic


@kernel
def _find_arithmetic(scales: F32Array, least: int, found: U8Array) -> None:
    """Which arithmetic scales come from, by how many digits they or their reciprocals have."""
    for i in range(scales.size):
        reciprocal = np.float32(1) / scales[i]
        n_digits = min(_digits(scales[i]), _digits(reciprocal))
        known = _HALF if n_digits > 8 else _EITHER
        found[i] = least if n_digits > 11 or n_digits == 1 else known


@inner
def _digits(number: np.float32) -> int:
    """Whether a number has 1, up to 8, up to 11 or more binary digits, but for its last one."""
    bits = f32_bits(number) + np.uint32(1)
    for n in (1, 8, 11):
        if bits & np.uint32((1 << (24 - n)) - 1) <= 2:
            return n
    return 24


def _without_scale(module: Module) -> LevelMatrix:
    """Weights that were converted as they are."""
    others = [leaf for leaf in module.tensors if "scale" in leaf]
    strange = sorted(set(others) - set(ACTIVATION_LEAVES))
    if strange:
        raise module.error(f"weight is FP8, and {strange[0]} is no scale that is known")
    weight = module.take("weight", tuple(_KINDS), 2)
    (n_rows, row_length), codes = weight.shape, weight.raw
    tables, one = _tables(weight.dtype, True), Scales.exact(np.ones(1, np.float32))
    whole = Runs(n_rows * row_length, n_rows * row_length, 0)

    def tell(start: int, end: int, stated: Stated) -> None:
        state(codes[start:end], one, whole, tables, stated, margin=_SMALLEST_HALF)

    def decode(start: int, end: int) -> Coded:
        runs = whole._replace(first=start)
        return Coded(codes[start:end], _levels(weight.dtype), runs, np.ones(1))

    return LevelMatrix(
        n_rows=n_rows,
        row_length=row_length,
        type=_KINDS[weight.dtype],
        has_cells=True,
        seen_as="BF16",
        may_be_f16=True,
        leaves=frozenset({"weight", *ACTIVATION_LEAVES}),
        label=f"{_name(weight.dtype)}, no scale",
        tell=tell,
        decode=decode,
    )


def _name(dtype: str) -> str:
    return f"FP8 {dtype.removeprefix('F8_')}"


def _extent(stored: StoredFP8) -> str:
    """Which weights share a scale, for people."""
    if (stored.high, stored.wide) == (stored.n_rows, stored.row_length):
        return "one scale"
    if stored.high == 1:
        return "rows" if stored.wide == stored.row_length else f"groups of {stored.wide}"
    return f"blocks of {stored.high} x {stored.wide}"

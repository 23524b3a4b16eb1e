"""Formats of integers with scales: what is merged with which types of GGUF.

The errors of codes of which nobody says how they were made are found beside Q4_K.
"""

from collections.abc import Callable

from recover.containers.huggingface.formats import Matrix, read_matrix
from recover.containers.huggingface.formats.base import is_soft
from recover.inputs.foreign import measure_ratio
from recover.quants import quantize, type_by_name
from tests.support.encoders import autoround, compressed_tensors, hqq, mlx, quanto, torchao
from tests.support.foreign_modules import Array, module_of
from tests.support.stated_intervals import tensor_of

Encoder = Callable[[Array], Matrix]


def _read(arrays: dict[str, Array], config: dict[str, object], recipe: str = "") -> Matrix:
    found = read_matrix(module_of(arrays, config, recipe))
    assert found is not None
    return found


def _mlx(n_bits: int, group: int, kind: str = "BF16") -> Encoder:
    return lambda w: _read(mlx.encode(w, n_bits, group, kind), {"group_size": group})


def _int(n_bits: int, group: int | str, *, search: bool = False, known: bool = True) -> Encoder:
    config = compressed_tensors.config("mse" if search else "minmax")
    recipe = compressed_tensors.RECIPE if known else ""

    def make(w: Array) -> Matrix:
        found = _read(compressed_tensors.encode(w, n_bits, group, search=search), config, recipe)
        if not is_soft(found):
            return found
        beside = tensor_of(quantize(w, type_by_name("Q4_K")), "Q4_K", w.size)
        return found.with_noise(found.noise * measure_ratio(found, beside))

    return make


def _hqq(n_bits: int, kind: str = "F16", axis: int = 1) -> Encoder:
    return lambda w: _read(hqq.encode(w, n_bits, 64, kind, axis=axis), {})


def _autoround(iters: int | None) -> Encoder:
    reach = 0.5025 if iters is None else 0.0
    return lambda w: _read(autoround.encode(w, reach=reach), autoround.config(iters))


FORMATS: dict[str, Encoder] = {
    "MLX4-g32": _mlx(4, 32),
    "MLX4-g64": _mlx(4, 64),
    "MLX6-g64": _mlx(6, 64),
    "MLX8-g64": _mlx(8, 64),
    "INT4-g128": _int(4, 128),
    "INT4-g128-mse": _int(4, 128, search=True),
    "INT4-g128-unknown": _int(4, 128, known=False),
    "INT8-rows": _int(8, "channel"),
    "HQQ3-g64": _hqq(3),
    "HQQ4-g64": _hqq(4),
    "HQQ4-g64-bf16": _hqq(4, "BF16"),
    "HQQ4-g64-axis0": _hqq(4, axis=0),
    "HQQ8-g64": _hqq(8),
    "torchao-int8": lambda w: _read(torchao.encode(w), {}),
    "torchao-int4-g32": lambda w: _read(torchao.encode(w, 4, 32, scale_kind="BF16"), {}),
    "qint4": lambda w: _read(quanto.encode_groups(w), {}),
    "qint8": lambda w: _read(quanto.encode_rows(w), {}),
    "qfloat8": lambda w: _read(quanto.encode_rows(w, floats=True), {}),
    "AutoRound4": _autoround(None),
    "AutoRound4-untuned": _autoround(0),
}
SETS: tuple[tuple[str, ...], ...] = (
    ("MLX4-g64",),
    ("MLX4-g64", "Q4_K"),
    ("MLX4-g32", "Q4_K"),
    ("MLX4-g64", "Q5_K"),
    ("MLX6-g64", "Q6_K"),
    ("MLX8-g64", "Q8_0"),
    ("INT4-g128",),
    ("INT4-g128", "Q4_K"),
    ("INT4-g128-mse", "Q4_K"),
    ("INT4-g128-unknown", "Q4_K"),
    ("INT8-rows", "Q8_0"),
    ("INT8-rows", "Q6_K"),
    ("HQQ4-g64",),
    ("HQQ4-g64", "Q4_K"),
    ("HQQ4-g64-bf16", "Q4_K"),
    ("HQQ4-g64-axis0", "Q4_K"),
    ("HQQ3-g64", "Q3_K"),
    ("HQQ8-g64", "Q8_0"),
    ("torchao-int8", "Q8_0"),
    ("torchao-int4-g32", "Q4_K"),
    ("qint4", "Q4_K"),
    ("qint8", "Q8_0"),
    ("qfloat8", "Q6_K"),
    ("AutoRound4", "Q4_K"),
    ("AutoRound4-untuned", "Q4_K"),
)

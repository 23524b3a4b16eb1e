"""Formats of integers with scales: what is merged with which types of GGUF."""

from collections.abc import Callable

from recover.containers.huggingface.formats import Matrix, read_matrix
from tests.support.encoders import compressed_tensors, mlx
from tests.support.foreign_modules import Array, module_of

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
    return lambda w: _read(
        compressed_tensors.encode(w, n_bits, group, search=search), config, recipe
    )


ROWS: list[tuple[str, Encoder, tuple[str, ...]]] = [
    ("MLX4 g64", _mlx(4, 64), ("Q4_K",)),
    ("MLX4 g32", _mlx(4, 32), ("Q4_K",)),
    ("MLX4 g64", _mlx(4, 64), ("Q5_K",)),
    ("MLX6 g64", _mlx(6, 64), ("Q6_K",)),
    ("MLX8 g64", _mlx(8, 64), ("Q8_0",)),
    ("int4 g128 RTN", _int(4, 128), ("Q4_K",)),
    ("int4 g128 RTN, mse", _int(4, 128, search=True), ("Q4_K",)),
    ("int4 g128, no recipe", _int(4, 128, known=False), ("Q4_K",)),
    ("int8 rows RTN", _int(8, "channel"), ("Q8_0",)),
    ("int8 rows RTN", _int(8, "channel"), ("Q6_K",)),
]

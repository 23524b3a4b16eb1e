"""Formats with grids of floats."""

from recover.containers.huggingface.formats import Matrix, read_matrix
from tests.support.encoders import fp8
from tests.support.foreign_modules import Array, module_of


def _matrix(arrays: dict[str, Array]) -> Matrix:
    found = read_matrix(module_of(arrays))
    assert found is not None
    return found


def _fp8(**how: object) -> object:
    return lambda w: _matrix(fp8.encode(w, **how))  # type: ignore[arg-type]


FORMATS = {
    "FP8-block": _fp8(),
    "FP8-block-bf16": _fp8(reciprocal=True, arithmetic="BF16"),
    "FP8-row": _fp8(extent="row", arithmetic="BF16"),
    "FP8-tensor": _fp8(extent="tensor"),
    "FP8-e5m2": _fp8(extent="row", kind="e5m2"),
}
SETS: tuple[tuple[str, ...], ...] = (
    ("FP8-block",),
    ("Q6_K",),
    ("FP8-block", "Q6_K"),
    ("FP8-block", "Q8_0"),
    ("FP8-block", "Q5_K"),
    ("FP8-block", "Q4_K"),
    ("FP8-block-bf16", "Q6_K"),
    ("FP8-row", "Q6_K"),
    ("FP8-tensor", "Q6_K"),
    ("FP8-e5m2", "Q4_K"),
)

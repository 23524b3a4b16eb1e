"""Formats with grids of floats; what is clipped of them is found beside Q4_K."""

from recover.containers.huggingface.formats import Matrix, read_matrix
from recover.containers.huggingface.formats._levels import LevelMatrix
from recover.inputs.foreign import measure_beyond
from recover.quants import F32Array, quantize, type_by_name
from tests.support.encoders import bitsandbytes, fp4, fp8
from tests.support.foreign_modules import Array, module_of
from tests.support.stated_intervals import tensor_of

FITTED = {"config_groups": {"group_0": {"weights": {"observer": "memoryless_minmax"}}}}


def _matrix(arrays: dict[str, Array], **config: object) -> Matrix:
    found = read_matrix(module_of(arrays, config))
    assert found is not None
    return found


def _fp8(**how: object) -> object:
    return lambda w: _matrix(fp8.encode(w, **how))  # type: ignore[arg-type]


def _bnb4(kind: str, **how: object) -> object:
    return lambda w: _matrix(bitsandbytes.encode(w, kind, **how))  # type: ignore[arg-type]


def _beside(found: Matrix, w: F32Array) -> Matrix:
    assert isinstance(found, LevelMatrix)
    known = tensor_of(quantize(w, type_by_name("Q4_K")), "Q4_K", w.size)
    return found.with_beyond(measure_beyond(found, known))


def _clipped(shrink: float) -> object:
    return lambda w: _beside(_matrix(fp4.encode_nvfp4(w, shrink=shrink)), w)


FORMATS = {
    "FP8-block": _fp8(),
    "FP8-block-bf16": _fp8(reciprocal=True, arithmetic="BF16"),
    "FP8-row": _fp8(extent="row", arithmetic="BF16"),
    "FP8-tensor": _fp8(extent="tensor"),
    "FP8-e5m2": _fp8(extent="row", kind="e5m2"),
    "NF4": _bnb4("nf4", nested=False),
    "NF4-nested": _bnb4("nf4"),
    "FP4-nested": _bnb4("fp4"),
    "NVFP4-folder": lambda w: _matrix(fp4.encode_nvfp4(w)),
    "NVFP4-minmax": lambda w: _matrix(fp4.encode_nvfp4(w), **FITTED),
    "NVFP4-clipped": _clipped(0.8),
    "NVFP4-clipped-little": _clipped(0.92),
    "NVFP4-unclipped": _clipped(1.0),
    "MXFP4-beside": lambda w: _beside(_matrix(fp4.encode_mxfp4(w)), w),
    "MXFP4-folder": lambda w: _matrix(fp4.encode_mxfp4(w)),
    "MXFP4-even": lambda w: _matrix(fp4.encode_mxfp4(w, how="even")),
    "MXFP4-up": lambda w: _matrix(fp4.encode_mxfp4(w, how="up")),
    "LLM.int8": lambda w: _matrix(bitsandbytes.encode_int8(w)),
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
    ("NF4",),
    ("NF4", "Q4_K"),
    ("NF4-nested", "Q4_K"),
    ("NF4-nested", "Q5_K"),
    ("NF4-nested", "Q6_K"),
    ("NF4-nested", "Q8_0"),
    ("FP4-nested",),
    ("FP4-nested", "Q4_K"),
    ("NF4-nested", "FP8-block", "Q4_K"),
    ("NVFP4-folder",),
    ("NVFP4-folder", "Q4_K"),
    ("NVFP4-minmax", "Q4_K"),
    ("NVFP4-folder", "Q6_K"),
    ("NVFP4-minmax", "Q6_K"),
    ("NVFP4-clipped", "Q4_K"),
    ("NVFP4-clipped", "Q6_K"),
    ("NVFP4-clipped-little", "Q4_K"),
    ("NVFP4-unclipped", "Q4_K"),
    ("MXFP4-beside", "Q4_K"),
    ("MXFP4-folder",),
    ("MXFP4-folder", "Q4_K"),
    ("MXFP4-even", "Q4_K"),
    ("MXFP4-up", "Q4_K"),
    ("LLM.int8",),
    ("LLM.int8", "Q8_0"),
    ("LLM.int8", "Q6_K"),
    ("LLM.int8", "FP8-block", "Q6_K"),
)

"""Undone weights are the products of what is stored, in float64, rounded once: every bit."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from recover.containers.huggingface.formats import all_formats
from recover.export.execute import ExportResult, execute_export
from recover.export.plan import plan_export
from recover.quants import TILE, type_by_name
from recover.quants.rounding import round_weights
from tests.support.golden_models import read_arrays
from tests.support.hf_folders import write_arrays
from tests.support.plain_weights import F64, FORMATS, Made, rounded_once
from tests.support.quantized_folders import named

UP = "model.layers.0.mlp.up_proj"
OUTTYPES = "bf16", "f16", "f32"
# Of the formats whose runs need not be whole vectors, and of more weights than a tile has.
SHAPES = {
    "fp8": (200, 328),
    "fp8 rows": (70, 333),
    "llm.int8": (70, 333),
    "nf4": (601, 1000),
    "nf4 nested": (99, 1002),
    "int4": (460, 1184),
    "gptq": (512, 1152),
    "gptq act-order": (512, 1152),
    "awq": (512, 1152),
    "hqq columns": (512, 1152),
    "mlx": (460, 1152),
    "nvfp4": (460, 1168),
}


def export(folder: Path, made: Made, outtype: str) -> ExportResult:
    source = folder / "model"
    source.mkdir()
    write_arrays(source / "model.safetensors", named(UP, made.arrays))
    config = {"model_type": "no_such_model", "quantization_config": made.config}
    (source / "config.json").write_text(json.dumps(config))
    return execute_export(plan_export(source, folder / "out", outtype=outtype), n_threads=2)


def check(folder: Path, made: Made, outtype: str) -> None:
    result = export(folder, made, outtype)
    exact, word = made.exact(), np.uint32 if outtype == "f32" else np.uint16
    kind, shape, data = read_arrays(folder / "out")[f"{UP}.weight"]
    assert (kind, shape) == (outtype.upper(), exact.shape)
    wanted = rounded_once(exact, outtype)
    np.testing.assert_array_equal(np.frombuffer(data, word).reshape(exact.shape), wanted)
    told = next(each for each in result.to_json()["tensors"] if each["name"] == f"{UP}.weight")
    off = numbers_of(wanted, outtype) - exact
    assert told["n_rounded"] == np.count_nonzero(off)
    assert told["exact"] == (not off.any())
    rms = np.sqrt(np.square(off).sum() / np.square(exact).sum())
    assert told["relative_rms_rounding"] == pytest.approx(rms, rel=1e-3)


def numbers_of(words: np.ndarray, outtype: str) -> F64:
    kind = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}[outtype]
    return words.view(kind).astype(np.float64)


@pytest.mark.parametrize("outtype", OUTTYPES)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format(name: str, outtype: str, tmp_path: Path) -> None:
    check(tmp_path, FORMATS[name](np.random.default_rng(7), 96, 256), outtype)


@pytest.mark.parametrize("name", SHAPES)
def test_rows_that_no_vector_divides_and_several_tiles(name: str, tmp_path: Path) -> None:
    check(tmp_path, FORMATS[name](np.random.default_rng(8), *SHAPES[name]), "bf16")


def test_shapes_are_larger_than_a_tile() -> None:
    assert {name for name, (n, k) in SHAPES.items() if n * k > TILE} >= {"nf4", "gptq", "nvfp4"}


def test_every_format_is_among_them() -> None:
    by_format = {
        "compressed_tensors": "int4",
        "bitsandbytes": "nf4",
        "fp4": "nvfp4",
        "llm_int8": "llm.int8",
        "quanto": "qint8",
    }
    assert {by_format.get(each.name, each.name) for each in all_formats()} <= set(FORMATS)


TIES = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-25, 2.0**-134])


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_near_ties_and_at_the_ends(outtype: str) -> None:
    """A tie, and what is so close to it that float32 takes it for one."""
    weights = np.concatenate([TIES, -TIES]).astype(np.float32)
    kind = type_by_name(outtype)
    for scale in (1.0, 1 + 2.0**-40, 1 - 2.0**-40, 1 + 2.0**-52, 3.0**-20, 2.0**-110, 0.0, -1.0):
        exact = weights.astype(np.float64) * scale
        out = np.empty(kind.n_bytes(weights.size), np.uint8)
        rounding = round_weights(weights, kind, out, scale)
        wanted = rounded_once(exact, outtype)
        np.testing.assert_array_equal(out.view(wanted.dtype), wanted)
        assert rounding.fits
        assert rounding.n_rounded == np.count_nonzero(numbers_of(wanted, outtype) != exact)


@pytest.mark.parametrize(
    ("outtype", "most"), [("bf16", 2.0**128 - 2.0**119), ("f16", 65520.0), ("f32", 2.0**128)]
)
def test_what_becomes_infinite_does_not_fit(outtype: str, most: float) -> None:
    kind, one = type_by_name(outtype), np.ones(1, np.float32)
    out = np.empty(kind.type_size, np.uint8)
    below = np.nextafter(most, 0) if outtype != "f32" else float(np.finfo(np.float32).max)
    assert round_weights(one, kind, out, below).fits
    assert not round_weights(one, kind, out, -most).fits
    assert not round_weights(one, kind, out, np.nan).fits
    assert not round_weights(one, kind, out, np.inf).fits


def test_random_products() -> None:
    rng = np.random.default_rng(5)
    weights = rng.standard_normal(100_003).astype(np.float32)
    weights[::7] *= np.float32(1e-38)
    for outtype in OUTTYPES:
        kind = type_by_name(outtype)
        out = np.empty(kind.n_bytes(weights.size), np.uint8)
        round_weights(weights, kind, out, 0.0123456789, 1e-9)
        exact = weights.astype(np.float64) * 0.0123456789 + 1e-9
        wanted = rounded_once(exact, outtype)
        np.testing.assert_array_equal(out.view(wanted.dtype), wanted)

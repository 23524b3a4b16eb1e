"""Quantized folders become plain ones: names and other arrays stay, weights are rounded once."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from recover.cli import main
from recover.errors import OutputError, SafetensorsError, UsageError
from recover.export.execute import ExportResult, execute_export
from recover.export.plan import plan_export
from tests.support.golden_models import as_float32, read_arrays
from tests.support.hf_folders import write_arrays
from tests.support.packed_weights import BF16, gptq, packed_int4, random_scales, spread
from tests.support.quantized_folders import COMPRESSED, gptq_config, model, named

UP = "model.layers.0.mlp.up_proj"
NORM = "model.norm.weight"
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
F64 = np.ndarray


def export(source: Path, output: Path, **options: Any) -> ExportResult:
    return execute_export(plan_export(source, output, **options), n_threads=2)


def e4m3(codes: np.ndarray) -> F64:
    return codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)


def int4(rng: np.random.Generator) -> tuple[dict[str, Any], F64, dict[str, Any]]:
    tensors, exact = packed_int4(rng)
    return tensors, exact, COMPRESSED


def int4_of_powers(rng: np.random.Generator) -> tuple[dict[str, Any], F64, dict[str, Any]]:
    """Scales of few digits, so that BF16 holds all products."""
    tensors, exact = packed_int4(rng)
    scales = tensors["weight_scale"].astype(np.float32)
    powers = np.exp2(np.round(np.log2(np.abs(scales)))).astype(BF16)
    codes = exact / spread(scales.astype(np.float64), exact.shape[1])
    exact = np.round(codes) * spread(powers.astype(np.float64), exact.shape[1])
    return tensors | {"weight_scale": powers}, exact, COMPRESSED


def gptq4(rng: np.random.Generator) -> tuple[dict[str, Any], F64, dict[str, Any]]:
    tensors, exact = gptq(rng, rng.integers(1, 16, (2, 96)))
    return tensors, exact, gptq_config(desc_act=True)


def fp8(rng: np.random.Generator, kind: Any) -> tuple[dict[str, Any], F64, dict[str, Any]]:
    codes = rng.integers(0, 120, (200, 256)).astype(np.uint8) | (
        rng.integers(0, 2, (200, 256)).astype(np.uint8) << 7
    )
    scales = np.abs(random_scales(rng, (2, 2), kind))
    wide = np.repeat(np.repeat(scales.astype(np.float64), 128, 0), 128, 1)[:200]
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    weight = codes.view(ml_dtypes.float8_e4m3fn)
    return {"weight": weight, "weight_scale_inv": scales}, e4m3(codes) * wide, config


CASES = {
    "int4, bf16 scales": (int4, False),
    "int4, powers of two": (int4_of_powers, True),
    "GPTQ, f16 scales": (gptq4, False),
    "FP8, bf16 scales": (lambda rng: fp8(rng, BF16), False),
    "FP8, f16 scales": (lambda rng: fp8(rng, np.float16), False),
}


def write(folder: Path, tensors: dict[str, Any], config: dict[str, Any]) -> Path:
    norm = np.linspace(0.5, 1.5, 256, dtype=np.float32)
    folder.mkdir()
    arrays = {NORM: norm.astype(BF16), "extra": np.array([1 / 3], np.float32), **named(UP, tensors)}
    write_arrays(folder / "model.safetensors", arrays)
    whole = {**config, "model_type": "no_such_model", "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(whole))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("outtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("case", CASES)
def test_values_are_rounded_once(case: str, outtype: str, tmp_path: Path) -> None:
    make, is_exact = CASES[case]
    tensors, exact, config = make(np.random.default_rng(3))
    source = write(tmp_path / "model", tensors, config)
    result = export(source, tmp_path / "out", outtype=outtype)
    found = read_arrays(tmp_path / "out")
    assert set(found) == {NORM, "extra", f"{UP}.weight"}
    kind, shape, data = found[f"{UP}.weight"]
    assert (kind, shape) == (outtype.upper(), exact.shape)
    # every product has at most 24 binary digits, so that this is rounded once as well
    assert (exact.astype(np.float32) == exact).all()
    wanted = exact.astype({"bf16": BF16, "f16": np.float16, "f32": np.float32}[outtype])
    np.testing.assert_array_equal(as_float32(kind, data), wanted.astype(np.float32).reshape(-1))
    (told,) = (each for each in result.to_json()["tensors"] if each["name"] == f"{UP}.weight")
    n_off = np.count_nonzero(wanted.astype(np.float64) != exact)
    assert told["n_rounded"] == n_off
    assert told["exact"] == (n_off == 0)
    if outtype == "bf16":
        assert told["exact"] == is_exact
        assert is_exact or 2e-4 < told["relative_rms_rounding"] < 2.0**-8


def test_experts_of_gpt_oss(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n_experts, n_rows, n_columns = 2, 6, 64
    codes = rng.integers(0, 16, (n_experts, n_rows, n_columns)).astype(np.uint8)
    exponents = rng.integers(115, 130, (n_experts, n_rows, n_columns // 32)).astype(np.uint8)
    pairs = codes.reshape(n_experts, n_rows, n_columns // 32, 16, 2)
    tensors = {
        "gate_up_proj_blocks": pairs[..., 0] | (pairs[..., 1] << 4),
        "gate_up_proj_scales": exponents,
    }
    folder = tmp_path / "model"
    folder.mkdir()
    write_arrays(folder / "model.safetensors", named("model.layers.0.mlp.experts", tensors))
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    (folder / "config.json").write_text(json.dumps(config))
    result = export(folder, tmp_path / "out")
    assert result.n_exact == 1
    ((name, (kind, shape, data)),) = read_arrays(tmp_path / "out").items()
    assert (name, kind) == ("model.layers.0.mlp.experts.gate_up_proj", "BF16")
    exact = np.where(codes & 8, -1, 1) * E2M1[codes & 7] * spread(np.exp2(exponents - 127.0), 64)
    assert shape == (n_experts, n_columns, n_rows)
    np.testing.assert_array_equal(as_float32(kind, data), exact.swapaxes(1, 2).reshape(-1))


def test_what_is_not_quantized_stays(tmp_path: Path) -> None:
    tensors, _, config = int4(np.random.default_rng(3))
    source = write(tmp_path / "model", tensors, config)
    result = export(source, tmp_path / "out")
    assert result.plan.outtype == "bf16"
    before, after = read_arrays(source), read_arrays(tmp_path / "out")
    assert after[NORM] == before[NORM]
    assert after["extra"] == before["extra"]
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {"model_type": "no_such_model", "torch_dtype": "bfloat16"}
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    again = export(tmp_path / "out", tmp_path / "again")
    assert again.to_json()["exact"]
    assert read_arrays(tmp_path / "again") == after


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, _, config = int4(np.random.default_rng(3))
    source = write(tmp_path / "model", tensors, config)
    with pytest.raises(OutputError, match="holds one of the inputs"):
        plan_export(source, source, force=True)
    with pytest.raises(UsageError, match="configuration of its own"):
        plan_export(source, tmp_path / "out", config=source)
    strange = model(tmp_path / "strange", named(UP, {"weight": np.ones((4, 4), np.int16)}), {})
    with pytest.raises(SafetensorsError, match=r"up_proj.*belongs to no known format"):
        plan_export(strange, tmp_path / "out")
    assert main(["export", str(source), "-o", str(tmp_path / "out"), "-v"]) == 0
    said = capsys.readouterr().out
    assert "int4, groups of 32" in said
    assert "exact: 2 of 3 tensors hold what the model says; --outtype f32 rounds" in said

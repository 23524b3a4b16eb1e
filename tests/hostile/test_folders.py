"""Hugging Face folders that lie: refused in one line, or read without a word."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from recover.containers.huggingface.reader import open_folder
from recover.errors import SafetensorsError
from tests.hostile.checks import check_message
from tests.support.encoders import fp4, fp8
from tests.support.foreign_modules import Array
from tests.support.hf_folders import write_arrays

EXPERTS = "model.layers.0.mlp.experts"
MXFP4: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
FP8: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
UP = "model.layers.0.mlp.up_proj"


def folder(path: Path, arrays: dict[str, Array], **config: Any) -> Path:
    path.mkdir()
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4}
    (path / "config.json").write_text(json.dumps({"model_type": "llama"} | sizes | config))
    write_arrays(path / "model.safetensors", arrays)
    return path


@pytest.mark.parametrize("leaf", ["gate_up_proj", "down_proj", "gate_up_proj_bias"])
@pytest.mark.parametrize("shape", [(), (4,), (1, 2, 3, 4)])
@pytest.mark.parametrize("kind", ["gpt_oss", "qwen3_moe"])
def test_fused_experts_of_other_dimensions(
    tmp_path: Path, leaf: str, shape: tuple[int, ...], kind: str
) -> None:
    arrays = {f"{EXPERTS}.{leaf}": np.ones(shape, ml_dtypes.bfloat16)}
    path = folder(tmp_path / "a", arrays, model_type=kind)
    with pytest.raises(SafetensorsError, match="dimensions, not one for the experts") as caught:
        open_folder(path)
    check_message(str(caught.value), path)


@pytest.mark.parametrize("kind", ["mxfp4", "fp8"])
def test_an_exponent_that_is_no_number(tmp_path: Path, kind: str) -> None:
    """E8M0's 255; warnings are errors here."""
    w = np.ones((128, 128), np.float32)
    arrays: dict[str, Array] = fp4.encode_mxfp4(w)
    config: dict[str, Any] = MXFP4
    if kind == "fp8":
        arrays, config = fp8.encode(w, power_of_two=True), FP8
        exponents = np.log2(arrays.pop("weight_scale_inv")) + 127
        arrays["weight_scale_inv"] = exponents.astype(np.uint8)
    (leaf,) = [name for name in arrays if "scale" in name]
    arrays[leaf] = np.full_like(arrays[leaf], 254)
    named = {f"{UP}.{name}": array for name, array in arrays.items()}
    numbers = named[f"{UP}.{leaf}"]
    for last in (254, 255):
        numbers.flat[0] = last
        path = folder(tmp_path / str(last), named, quantization_config=config)
        value = open_folder(path).tensors["blk.0.ffn_up.weight"].read(0, w.size)
        assert np.isnan(value[:32]).all() == (last == 255)

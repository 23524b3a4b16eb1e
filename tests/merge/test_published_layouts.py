"""Folders with the files, names and settings that AutoAWQ, AutoGPTQ and GPTQModel write."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover.cli import main
from recover.quants import F32Array
from tests.support.compensated_folders import Encode, compensated_parts, gptq_arrays
from tests.support.encoders import awq
from tests.support.foreign_modules import Array
from tests.support.gguf_files import read_weights, squared_error
from tests.support.hf_folders import folder_parts, module_name, split_folder, write_parts
from tests.support.layer_inputs import NAMES, Block, synthetic_inputs
from tests.support.small_llama import small_weights, write_small

GPTQ_MODEL: dict[str, Any] = {
    "bits": 4,
    "checkpoint_format": "gptq",
    "desc_act": False,
    "dynamic": None,
    "group_size": 128,
    "lm_head": False,
    "meta": {"damp_percent": 0.05, "act_group_aware": True, "quantizer": ["gptqmodel:5.0.0"]},
    "pack_dtype": "int32",
    "quant_method": "gptq",
    "sym": True,
    "true_sequential": True,
}
AUTO_GPTQ = {
    "bits": 4,
    "group_size": 128,
    "damp_percent": 0.01,
    "desc_act": True,
    "sym": False,
    "true_sequential": True,
    "model_name_or_path": None,
    "model_file_base_name": "gptq_model-4bit-128g",
}
AUTO_AWQ = {
    "bits": 4,
    "group_size": 128,
    "modules_to_not_convert": None,
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
}
FIRST_AUTO_AWQ = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
FOUR: Encode = partial(gptq_arrays, n_bits=4)
MIXED = GPTQ_MODEL | {"dynamic": {r"+:.*\.mlp\..*": {"bits": 8, "group_size": 64}}}


def mixed(w: F32Array, inputs: F32Array) -> dict[str, Array]:
    """As `MIXED` says: of a wide matrix 8 bits in groups of 64."""
    is_mlp = 512 in w.shape
    return gptq_arrays(w, inputs, 8 if is_mlp else 4, group=64 if is_mlp else 128)


def write_gptq(home: Path, weights: dict[str, F32Array], encode: Encode, settings: Any) -> Path:
    """Settings in ``config.json`` and in a file of their own; several files."""
    arrays, config = compensated_parts(home, weights, encode)
    folder = write_parts(home / "folder", arrays, config | {"quantization_config": settings})
    (folder / "quantize_config.json").write_text(json.dumps(settings))
    return split_folder(folder)


def write_auto_gptq(home: Path, weights: dict[str, F32Array]) -> Path:
    """Settings beside the weights, a file with a name of its own."""
    encode = partial(gptq_arrays, n_bits=4, act_order=True, symmetric=False)
    folder = write_parts(home / "folder", *compensated_parts(home, weights, encode))
    (folder / "quantize_config.json").write_text(json.dumps(AUTO_GPTQ))
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-128g.safetensors")
    return folder


def write_awq(home: Path, weights: dict[str, F32Array], *, is_first: bool) -> Path:
    """Columns scaled, norms that take it back; F16 throughout."""
    whole = write_small(home / "whole.gguf", weights, "F32")
    arrays, config = folder_parts(whole, None)
    rng = np.random.default_rng(8)
    matrices = {
        name: arrays.pop(f"{module_name(f'blk.0.{name}.weight')}.weight").astype(np.float32)
        for name in NAMES
    }
    by_width = {width: synthetic_inputs(rng, 200, width) for width in (256, 512)}
    inputs = {name: by_width[w.shape[1]] for name, w in matrices.items()}
    norms = {name: weights[f"blk.0.{name}.weight"] for name in ("attn_norm", "ffn_norm")}
    made = awq.quantize(Block(matrices, inputs, norms))
    arrays = {name: each.astype(np.float16) for name, each in arrays.items()}
    for name, norm in made.norms.items():
        arrays[f"{module_name(f'blk.0.{name}.weight')}.weight"] = norm.astype(np.float16)
    for name, of_module in made.arrays.items():
        module = module_name(f"blk.0.{name}.weight")
        arrays |= {f"{module}.{leaf}": each for leaf, each in of_module.items()}
    config |= {"torch_dtype": "float16"}
    config |= {} if is_first else {"quantization_config": AUTO_AWQ}
    folder = write_parts(home / "folder", arrays, config)
    if is_first:
        (folder / "quant_config.json").write_text(json.dumps(FIRST_AUTO_AWQ))
        return folder
    return split_folder(folder)


WRITERS: dict[str, Callable[[Path, dict[str, F32Array]], Path]] = {
    "GPTQModel": partial(write_gptq, encode=FOUR, settings=GPTQ_MODEL),
    "GPTQModel, gptq_v2": partial(
        write_gptq,
        encode=partial(gptq_arrays, n_bits=4, v2=True),
        settings=GPTQ_MODEL | {"checkpoint_format": "gptq_v2"},
    ),
    "GPTQModel, mixed": partial(write_gptq, encode=mixed, settings=MIXED),
    "AutoGPTQ": write_auto_gptq,
    "AutoAWQ": partial(write_awq, is_first=False),
    "AutoAWQ of 2023": partial(write_awq, is_first=True),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_is_merged(
    name: str, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = small_weights(rng)
    gguf = write_small(tmp_path / "quantized.gguf", weights, "Q4_K")
    folder = WRITERS[name](tmp_path, weights)
    output = tmp_path / "out.gguf"
    assert main(["merge", str(gguf), str(folder), "-o", str(output)]) == 0, capsys.readouterr().err
    errors = [squared_error(read_weights(each), weights) for each in (output, gguf)]
    assert errors[0] < 0.9 * errors[1]


def test_damaged_settings_are_named(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = small_weights(rng)
    folder = write_parts(
        tmp_path / "folder",
        *folder_parts(write_small(tmp_path / "whole.gguf", weights, "F32"), None),
    )
    (folder / "quant_config.json").write_text("{")
    assert main(["inspect", str(folder)])
    assert "quant_config.json: " in capsys.readouterr().err

"""Folders of a small Llama as GPTQ's and EXL2's programs quantize it, beside made-up inputs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from recover.quants import F32Array
from tests.support.encoders import gptq
from tests.support.foreign_modules import Array
from tests.support.hf_folders import folder_parts
from tests.support.layer_inputs import synthetic_inputs
from tests.support.small_llama import write_small

Encode = Callable[[F32Array, F32Array], dict[str, Array]]
"""Of a matrix (N, K) and inputs (n, K), the arrays of its module."""


def gptq_arrays(
    w: F32Array, inputs: F32Array, n_bits: int, *, v2: bool = False, **more: Any
) -> dict[str, Array]:
    return gptq.pack(gptq.quantize(w, inputs, n_bits, **more), n_bits, v2=v2)


def exl2_arrays(w: F32Array, inputs: F32Array) -> dict[str, Array]:
    return gptq.exl2(w, inputs).arrays


def compensated_parts(
    home: Path, weights: dict[str, F32Array], encode: Encode
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays and configuration of a model whose linear layers are encoded."""
    arrays, settings = folder_parts(write_small(home / "whole.gguf", weights, "F32"), None)
    rng = np.random.default_rng(8)
    for name in [name for name in arrays if name.endswith("_proj.weight")]:
        w = arrays.pop(name).astype(np.float32)
        made = encode(w, synthetic_inputs(rng, 200, w.shape[1]))
        arrays |= {f"{name.removesuffix('weight')}{leaf}": each for leaf, each in made.items()}
    return arrays, settings

"""One large tensor per kind of source, for the benchmark: random codes, in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.modules import Module
from recover.containers.safetensors.reader import Tensor
from recover.reblock.drafts import draft_weight, finished
from recover.reblock.grok import _rows
from recover.reblock.integers import Request, exact_tensor
from recover.reblock.schemes import all_schemes
from recover.reblock.source import OriginalTensor

K = 4096
Array = NDArray[Any]


def grok(n_weights: float) -> OriginalTensor:
    """A matrix with as many columns as Grok-1's have rows, and fewer rows."""
    rng = np.random.default_rng(1)
    n_columns = max(64, int(n_weights / 6144))
    codes = rng.integers(-128, 128, (1, 6144, n_columns), np.int8)
    scales = rng.integers(0x3C00, 0x3D00, (1, 1, n_columns)).astype(np.uint16)
    return exact_tensor("t", (6144, n_columns), "int8 x bf16", _rows(codes, scales), Request())


def stored(name: str, dtype: str, values: Array) -> Tensor:
    """A tensor of a safetensors file."""
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return Tensor(name, dtype, values.shape, raw, Path("memory"))


def quantized(leaves: dict[str, tuple[str, Array]], **config: Any) -> OriginalTensor:
    """The output tensor of a module."""
    tensors = {leaf: stored(leaf, *each) for leaf, each in leaves.items()}
    module = Module("t", tensors, config)
    weight = next(found for scheme in all_schemes() if (found := scheme.read(module)))
    return finished(draft_weight("t.weight", weight), Request(), norms_as_f32=False)


def words(*shape: int) -> tuple[str, Array]:
    """Random codes."""
    return "I32", np.random.default_rng(1).integers(0, 1 << 32, shape, np.uint32)


def halves(*shape: int) -> tuple[str, Array]:
    """Random scales."""
    return "F16", np.random.default_rng(2).uniform(0.01, 0.02, shape).astype(np.float16)


def n_rows(n_weights: float) -> int:
    """Of a matrix with rows of `K`."""
    return max(64, int(n_weights / K / 64) * 64)


def int4(n_weights: float) -> OriginalTensor:
    """compressed-tensors, groups of 32."""
    n = n_rows(n_weights)
    shape = "I64", np.array([n, K])
    packed = {"weight_packed": words(n, K // 8), "weight_scale": halves(n, K // 32)}
    return quantized({**packed, "weight_shape": shape})


def gptq(n_weights: float) -> OriginalTensor:
    """Asymmetric, groups of 128."""
    n = n_rows(n_weights)
    codes = {"qweight": words(K // 8, n), "qzeros": words(K // 128, n // 8)}
    return quantized({**codes, "scales": halves(K // 128, n)}, quant_method="gptq")


def awq(n_weights: float) -> OriginalTensor:
    """Groups of 128."""
    n = n_rows(n_weights)
    codes = {"qweight": words(K, n // 8), "qzeros": words(K // 128, n // 8)}
    return quantized({**codes, "scales": halves(K // 128, n)}, quant_method="awq")


def mlx(n_weights: float) -> OriginalTensor:
    """Groups of 64."""
    n = n_rows(n_weights)
    leaves = {"weight": ("U32", words(n, K // 8)[1])}
    numbers = {"scales": halves(n, K // 64), "biases": halves(n, K // 64)}
    return quantized({**leaves, **numbers}, group_size=64)


def mxfp4(n_weights: float) -> OriginalTensor:
    """Blocks of 32."""
    n = n_rows(n_weights)
    codes = np.random.default_rng(1).integers(0, 256, (n, K // 2), np.uint8)
    exponents = np.random.default_rng(2).integers(110, 124, (n, K // 32)).astype(np.uint8)
    return quantized({"weight": ("U8", codes), "weight_scale": ("U8", exponents)})


def nvfp4(n_weights: float) -> OriginalTensor:
    """Blocks of 16, and a scale of the matrix."""
    n = n_rows(n_weights)
    codes = np.random.default_rng(1).integers(0, 256, (n, K // 2), np.uint8)
    scales = np.random.default_rng(2).integers(56, 120, (n, K // 16)).astype(np.uint8)
    leaves = {"weight": ("U8", codes), "weight_scale": ("F8_E4M3", scales)}
    return quantized({**leaves, "weight_scale_2": ("F32", np.array(3e-5, np.float32))})


SOURCES: dict[str, Callable[[float], OriginalTensor]] = {
    "Grok-1 int8 -> Q8_0": grok,
    "compressed-tensors int4 -> Q4_0": int4,
    "GPTQ 4-bit -> Q5_0": gptq,
    "AWQ 4-bit -> Q5_0": awq,
    "MLX 4-bit -> Q4_1": mlx,
    "MXFP4 -> MXFP4": mxfp4,
    "NVFP4 -> NVFP4": nvfp4,
}

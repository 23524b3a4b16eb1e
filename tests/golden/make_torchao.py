"""What torchao makes of weights on a CPU: ``pip install torchao torch gguf ml_dtypes``.

    python -m tests.golden.make_torchao MODEL.gguf

The model is an unquantized one.
"""

import sys
from pathlib import Path

import ml_dtypes
import torch
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerAxis,
    PerGroup,
    quantize_,
)

from tests.golden.foreign_files import Array, Case, save, some_weights

DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32}
CASES = {
    "int8, rows": (Int8WeightOnlyConfig(), "BF16"),
    "int8, rows, F32": (Int8WeightOnlyConfig(), "F32"),
    "int8, rows, scales in BF16": (IntxWeightOnlyConfig(torch.int8, PerAxis(0)), "BF16"),
    "int4, groups of 32": (IntxWeightOnlyConfig(torch.int4, PerGroup(32)), "BF16"),
    "int4, groups of 64, asymmetric": (
        IntxWeightOnlyConfig(torch.int4, PerGroup(64), MappingType.ASYMMETRIC),
        "BF16",
    ),
    "int3, groups of 128, F32": (IntxWeightOnlyConfig(torch.int3, PerGroup(128)), "F32"),
    "FP8, rows": (Float8WeightOnlyConfig(), "BF16"),
    "FP8, rows, F32": (Float8WeightOnlyConfig(), "F32"),
}


def to_numpy(tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    return tensor.numpy()


def main() -> None:
    weights = torch.from_numpy(some_weights(Path(sys.argv[1]), 8, 256))
    cases = {}
    for label, (config, kind) in CASES.items():
        model = torch.nn.Sequential(torch.nn.Linear(256, 8, bias=False)).to(DTYPES[kind])
        model[0].weight.data[:] = weights.to(DTYPES[kind])
        original = model[0].weight.data.float().numpy()
        quantize_(model, config)
        tensors, _ = flatten_tensor_state_dict(model.state_dict())
        arrays = {name.removeprefix("0."): to_numpy(each) for name, each in tensors.items()}
        decoded = model[0].weight.dequantize().float().detach().numpy()
        cases[label] = Case(arrays, original, decoded, {"quant_method": "torchao"})
    save("torchao", cases)


if __name__ == "__main__":
    main()

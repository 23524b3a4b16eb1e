"""Matrices that bitsandbytes quantized, and what it decodes.

    python tests/golden/make_bitsandbytes.py tests/golden/huggingface

needs ``pip install bitsandbytes==0.50.2 torch safetensors`` (on a CPU), which `recover` and its
other tests do not. Writes one safetensors file per way: the arrays of one module under the names
that a layer's `state_dict` gives them, ``original`` and ``decoded``.
"""

import sys
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from safetensors.torch import save_file

SHAPE = 90, 210
WAYS = {
    "nf4_nested": ("nf4", True, 64, torch.bfloat16),
    "nf4": ("nf4", False, 128, torch.float16),
    "fp4_nested": ("fp4", True, 64, torch.bfloat16),
    "fp4": ("fp4", False, 64, torch.float32),
}


def original(dtype: torch.dtype) -> torch.Tensor:
    """Heavy-tailed weights, and blocks of zeros."""
    torch.manual_seed(1)
    w = 0.02 * torch.distributions.StudentT(4.0).sample(SHAPE)
    w.reshape(-1)[640:900] = 0
    return w.to(dtype)


def main(folder: str) -> None:
    for name, (kind, nested, block, dtype) in WAYS.items():
        w = original(dtype)
        layer = Linear4bit(*w.shape[::-1], bias=False, quant_type=kind, compress_statistics=nested)
        layer.weight.data = w.clone()
        layer.weight.blocksize = block
        layer = layer.to("cpu")
        state = layer.weight.quant_state
        arrays = {key: value.contiguous() for key, value in layer.state_dict().items()}
        state.dtype = torch.float32
        decoded = dequantize_4bit(layer.weight.data, state)
        print(name, {key: (value.dtype, tuple(value.shape)) for key, value in arrays.items()})
        save_file(
            {**arrays, "original": w, "decoded": decoded}, Path(folder, f"{name}.safetensors")
        )
    w = original(torch.float16)
    layer = Linear8bitLt(*w.shape[::-1], bias=False, has_fp16_weights=False)
    layer.weight.data = w.clone()
    layer = layer.to("cpu")
    arrays = {key: value.contiguous() for key, value in layer.state_dict().items()}
    decoded = int8_vectorwise_dequant(arrays["weight"], arrays["SCB"])
    print({key: (value.dtype, tuple(value.shape)) for key, value in arrays.items()})
    save_file({**arrays, "original": w, "decoded": decoded}, Path(folder, "llm_int8.safetensors"))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What hqq makes of weights on a CPU: ``pip install hqq gguf ml_dtypes``.

    python -m tests.golden.make_hqq MODEL.gguf

The model is an unquantized one. Weights are decoded from scales and zeros that are made float32;
hqq itself computes in the floats of the model.
"""

import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer

from tests.golden.foreign_files import Array, Case, save, some_weights

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
CASES = [
    *((n_bits, 64, 1, "F16") for n_bits in (1, 2, 3, 4, 6, 8)),
    *((n_bits, 64, 0, "BF16") for n_bits in (3, 4, 8)),
    (4, 32, 1, "BF16"),
    (4, 64, 1, "F32"),
    (8, 64, 1, "BF16"),
]


def to_numpy(tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def decode(layer: HQQLinear) -> torch.Tensor:
    meta: dict[str, Any] = {**layer.meta, "compute_dtype": torch.float32}
    for key in ("scale", "zero"):
        meta[key] = meta[key].float()
    return Quantizer.dequantize(layer.W_q.data, meta)


def main() -> None:
    weights = torch.from_numpy(some_weights(Path(sys.argv[1]), 8, 256))
    cases = {}
    for n_bits, group, axis, kind in CASES:
        seen = weights.to(DTYPES[kind])
        how = BaseQuantizeConfig(nbits=n_bits, group_size=group, axis=axis)
        layer = HQQLinear.from_weights(
            seen.clone(), None, how, compute_dtype=DTYPES[kind], device="cpu"
        )
        state = {leaf: to_numpy(array.detach()) for leaf, array in layer.state_dict().items()}
        decoded = decode(layer).numpy()
        cases[f"{n_bits} bits, groups of {group}, axis {axis}, {kind}"] = Case(
            state, seen.float().numpy(), decoded, {"quant_method": "hqq"}
        )
    save("hqq", cases)


if __name__ == "__main__":
    main()

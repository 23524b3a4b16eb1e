"""Codes, scales and decoded weights of AutoAWQ itself: ``pip install autoawq==0.2.9`` and torch.

    python -m tests.golden.make_awq MODEL.gguf

The model is an unquantized one. Its weights are clipped and quantized by AutoAWQ's quantizer in
float16 on a CPU, for inputs that are made up, packed by its linear layer, and decoded by its plain
code. Originals are the weights as the quantizer is given them: those of an AWQ file are scaled.
"""

import sys
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import transformers  # noqa: F401 - looks for packages, which must not find what follows

from tests.golden.foreign_files import Case, save, some_weights

N_ROWS = 64  # as few as the search for clipping takes
CASES = ((128, True, 256), (128, False, 128), (64, True, 128), (32, False, 128))
_UNUSED = {
    "awq.quantize.scale": ("apply_scale", "apply_clip"),
    "awq.utils.calib_data": ("get_calib_dataset",),
    "awq.modules.linear": (
        *("WQLinear_GEMM", "WQLinear_GEMV", "WQLinear_Marlin", "WQLinear_GEMVFast"),
    ),
}


def import_parts() -> None:
    """Let parts of AutoAWQ be imported without the whole, which wants old packages and a GPU."""
    spec = find_spec("awq")
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    for name in ("awq", "awq.quantize", "awq.modules", "awq.modules.linear", "awq.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    # names that are asked for, but not used here
    for name, wanted in _UNUSED.items():
        stub = sys.modules.get(name) or types.ModuleType(name)
        for each in wanted:
            setattr(stub, each, None)
        sys.modules[name] = stub


def main() -> None:
    import_parts()
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.quantize.quantizer import AwqQuantizer
    from awq.utils.packing_utils import dequantize_gemm

    torch.manual_seed(0)
    cases = {}
    for group, clip, row_length in CASES:
        weights = some_weights(Path(sys.argv[1]), N_ROWS, row_length)
        quantizer = AwqQuantizer.__new__(AwqQuantizer)
        quantizer.w_bit, quantizer.group_size, quantizer.zero_point = 4, group, True
        seen = torch.from_numpy(weights).half()
        linear = torch.nn.Linear(row_length, N_ROWS, bias=False).half()
        linear.weight.data = seen.clone()
        if clip:
            inputs = torch.randn(128, row_length).half()
            most = quantizer._compute_best_clip(seen, inputs)
            parts = seen.reshape(N_ROWS, -1, group)
            linear.weight.data = torch.clamp(parts, -most, most).reshape(seen.shape)
        linear.weight.data, scales, zeros = quantizer.pseudo_quantize_tensor(linear.weight.data)
        packed = WQLinear_GEMM.from_linear(
            linear=linear, w_bit=4, group_size=group, scales=scales.t(), zeros=zeros.t()
        )
        arrays = {
            leaf: getattr(packed, leaf).contiguous() for leaf in ("qweight", "qzeros", "scales")
        }
        decoded = dequantize_gemm(
            arrays["qweight"], arrays["qzeros"], arrays["scales"].float(), 4, group
        )
        cases[f"groups of {group}{', clipped' if clip else ''}"] = Case(
            arrays={leaf: each.numpy() for leaf, each in arrays.items()},
            original=seen.numpy(),
            decoded=decoded.t().contiguous().numpy().astype(np.float32),
            config={"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"},
        )
    save("awq", cases)


if __name__ == "__main__":
    main()

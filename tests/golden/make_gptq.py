"""Codes, scales and decoded weights of GPTQModel itself: ``pip install gptqmodel==7.7 gguf``.

    python -m tests.golden.make_gptq MODEL.gguf

The model is an unquantized one. Its weights are quantized by GPTQModel's own code on a CPU, for
inputs that are made up, packed by its linear layer, and decoded by it.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ

from tests.golden.foreign_files import Case, save, some_weights

N_ROWS = 32
CASES = (
    *((4, 128, False, True, 256), (4, 64, True, True, 256), (4, 32, False, False, 128)),
    *((2, 64, False, True, 128), (3, 128, True, True, 256)),
    *((8, 128, False, True, 128), (4, -1, False, True, 128)),
)


def main() -> None:
    torch.manual_seed(0)
    cases = {}
    for n_bits, group, act_order, symmetric, row_length in CASES:
        weights = some_weights(Path(sys.argv[1]), N_ROWS, row_length)
        inputs = torch.randn(512, row_length) * torch.rand(row_length)
        inputs = inputs + inputs.roll(1, 1)
        config = QuantizeConfig(
            bits=n_bits,
            group_size=group,
            desc_act=act_order,
            sym=symmetric,
            act_group_aware=False,
        )
        linear = torch.nn.Linear(row_length, N_ROWS, bias=False)
        linear.weight.data = torch.from_numpy(weights).clone()
        task = GPTQ(linear, config)
        task.quantizer.configure(perchannel=True)
        task.add_batch(inputs[None], linear(inputs[None]))
        linear.weight.data, scales, zeros, g_idx, *_ = task.quantize()
        packed = TorchLinear(
            bits=n_bits,
            group_size=group,
            sym=symmetric,
            desc_act=act_order,
            in_features=row_length,
            out_features=N_ROWS,
        )
        packed.pack_original(linear, scales, zeros, g_idx.to(torch.int32))
        packed.post_init()
        packed.scales = packed.scales.float()
        decoded = packed.dequantize_weight().T.contiguous().numpy()
        arrays = {leaf: getattr(packed, leaf) for leaf in ("qweight", "qzeros", "scales", "g_idx")}
        arrays["scales"] = arrays["scales"].half()
        order = ", by importance" if act_order else ""
        label = f"{n_bits} bits, groups of {group}{order}{'' if symmetric else ', asymmetric'}"
        cases[label] = Case(
            arrays={leaf: each.detach().numpy() for leaf, each in arrays.items()},
            original=weights.astype(np.float16),
            decoded=decoded.astype(np.float32),
            config={
                "quant_method": "gptq",
                "bits": n_bits,
                "group_size": group,
                "checkpoint_format": "gptq_v2",
            },
        )
    save("gptq", cases)


if __name__ == "__main__":
    main()

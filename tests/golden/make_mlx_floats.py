"""Matrices that MLX quantized to floats, and what it decodes.

    python tests/golden/make_mlx_floats.py tests/golden/huggingface

needs ``pip install 'mlx[cpu]==0.32.4' safetensors ml_dtypes``; `recover` and its other tests do not
need MLX. Writes one safetensors file per mode: ``weight`` and ``scales`` as mlx-lm stores them,
``original`` and ``decoded``.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors.numpy import save_file

MODES = {"mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}


def main(folder: str) -> None:
    rng = np.random.default_rng(1)
    w = mx.array((0.02 * rng.standard_t(4, (64, 256))).astype(np.float32)).astype(mx.bfloat16)
    for mode, (group, n_bits) in MODES.items():
        how = {"group_size": group, "bits": n_bits, "mode": mode}
        weight, scales = mx.quantize(w, **how)[:2]
        decoded = mx.dequantize(weight, scales, **how).astype(mx.float32)
        arrays = {"weight": weight, "scales": scales, "decoded": decoded}
        arrays["original"] = w.astype(mx.float32)
        save_file(
            {name: np.array(each) for name, each in arrays.items()},
            Path(folder, f"mlx_{mode}.safetensors"),
            {"config": json.dumps(how)},
        )


if __name__ == "__main__":
    main(*sys.argv[1:])

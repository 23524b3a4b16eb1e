"""Floats of 4 and 8 bits as MLX stores them (its modes mxfp4, nvfp4 and mxfp8).

``weight`` U32 (N, K bits / 32), lowest bits first, so that its bytes are those of other programs;
``scales`` U8 (N, K / group), exponents, or e4m3 of nvfp4, which has no scale of the whole matrix.
There are no ``biases``, unlike with integers.
"""

from dataclasses import replace

import numpy as np

from recover.containers.huggingface.modules import Module

LEAVES = frozenset({"weight", "scales"})

# Bytes of weights per scale: mode, types of weights and scales.
_MODES = {
    8: ("nvfp4", "U8", "F8_E4M3"),
    16: ("mxfp4", "U8", "F8_E8M0"),
    32: ("mxfp8", "F8_E4M3", "F8_E8M0"),
}


def renamed(module: Module) -> Module:
    """The module with names and types that others give such arrays; itself if they are others.

    Raises
    ------
    SafetensorsError
        If it is none of the modes, or another one than the configuration says.
    """
    weight, scales = module.tensors.get("weight"), module.tensors.get("scales")
    if weight is None or scales is None or "biases" in module.tensors:
        return module
    if (weight.dtype, scales.dtype) != ("U32", "U8"):
        return module
    weight, scales = module.take("weight", ("U32",), 2), module.take("scales", ("U8",), 2)
    n_bytes = 4 * weight.shape[1]
    per_scale = n_bytes // scales.shape[1]
    mode, numbers, scale_numbers = _MODES.get(per_scale, ("", "", ""))
    said = module.config.get("mode", mode)
    if not mode or said != mode or "global_scale" in module.tensors:
        raise module.error(
            f"{list(weight.shape)} words and {list(scales.shape)} scales are of no mode of MLX that"
            " is known, or not of the one that the configuration says"
        )
    module.expect("scales", (weight.shape[0], n_bytes // per_scale))
    named = {
        "weight": replace(weight, dtype=numbers, shape=(weight.shape[0], n_bytes)),
        "weight_scale": replace(scales, dtype=scale_numbers),
    }
    if mode == "nvfp4":
        one = np.ones(1, np.float32).view(np.uint8)
        named["weight_scale_2"] = replace(scales, dtype="F32", shape=(), raw=one)
    return replace(module, tensors=named)

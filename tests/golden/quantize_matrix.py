"""One matrix as real packages quantize it, in several ways: the arrays of a module.

    python tests/golden/quantize_matrix.py PACKAGE WEIGHTS.npy FOLDER

PACKAGE is one of `PACKAGES`, which has to be importable (PyTorch for the CPU is enough).
WEIGHTS are float32 (N, K). Writes ``WAY@DTYPE.npz`` for each way and for each type of floats in
which the package is given the weights: arrays by ``LEAF/DTYPE``, and ``config``, a JSON object.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Made = tuple[Mapping[str, Any], dict[str, Any]]
"""Arrays of a module, and ``quantization_config``, with ``recipe.yaml`` where there is one."""
FLOATS = ("bfloat16", "float16", "float32")


def bitsandbytes() -> Iterator[tuple[str, Callable[[Any], Made]]]:
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    def four(w: Any, kind: str, nested: bool, block: int) -> Made:
        layer = Linear4bit(*w.shape[::-1], bias=False, quant_type=kind, compress_statistics=nested)
        layer.weight.data = w.clone()
        layer.weight.blocksize = block
        return layer.to("cpu").state_dict(), {"quant_method": "bitsandbytes", "load_in_4bit": True}

    def eight(w: Any) -> Made:
        layer = Linear8bitLt(*w.shape[::-1], bias=False, has_fp16_weights=False)
        layer.weight.data = w.to(torch.float16)
        return layer.to("cpu").state_dict(), {"quant_method": "bitsandbytes", "load_in_8bit": True}

    yield "NF4, nested", lambda w: four(w, "nf4", True, 64)
    yield "NF4", lambda w: four(w, "nf4", False, 128)
    yield "FP4, nested", lambda w: four(w, "fp4", True, 64)
    yield "LLM.int8", eight


def hqq() -> Iterator[tuple[str, Callable[[Any], Made]]]:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    def make(w: Any, n_bits: int, group: int, axis: int) -> Made:
        how = BaseQuantizeConfig(nbits=n_bits, group_size=group, axis=axis)
        layer = HQQLinear.from_weights(w.clone(), None, how, compute_dtype=w.dtype, device="cpu")
        return layer.state_dict(), {"quant_method": "hqq"}

    yield "HQQ 4 bits", lambda w: make(w, 4, 64, 1)
    yield "HQQ 3 bits, axis 0", lambda w: make(w, 3, 64, 0)


def mlx() -> Iterator[tuple[str, Callable[[Any], Made]]]:
    import mlx.core as mx

    def make(w: Any, n_bits: int, group: int) -> Made:
        parts = mx.quantize(w, group_size=group, bits=n_bits)
        settings = {"group_size": group, "bits": n_bits, "mode": "affine"}
        return dict(zip(("weight", "scales", "biases"), parts, strict=True)), settings

    for n_bits, group in ((4, 64), (8, 64), (3, 32), (2, 128), (6, 64)):
        yield f"MLX {n_bits} bits", partial(make, n_bits=n_bits, group=group)


def torchao() -> Iterator[tuple[str, Callable[[Any], Made]]]:
    import torch
    import torchao.quantization as q
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    def make(w: Any, how: Any) -> Made:
        layer = torch.nn.Linear(*w.shape[::-1], bias=False).to(w.dtype)
        layer.weight.data = w.clone()
        model = torch.nn.Sequential(layer)
        q.quantize_(model, how)
        arrays, _ = flatten_tensor_state_dict(model.state_dict())
        return {k.removeprefix("0."): v for k, v in arrays.items()}, {"quant_method": "torchao"}

    uneven = q.MappingType.ASYMMETRIC
    yield "torchao int8", lambda w: make(w, q.Int8WeightOnlyConfig())
    yield "torchao int4", lambda w: make(w, q.IntxWeightOnlyConfig(torch.int4, q.PerGroup(128)))
    yield (
        "torchao int4, asymmetric",
        lambda w: make(w, q.IntxWeightOnlyConfig(torch.int4, q.PerGroup(64), uneven)),
    )
    yield "torchao FP8", lambda w: make(w, q.Float8WeightOnlyConfig())


def quanto() -> Iterator[tuple[str, Callable[[Any], Made]]]:
    import torch
    from optimum import quanto as q

    def make(w: Any, kind: Any) -> Made:
        model = torch.nn.Sequential(torch.nn.Linear(*w.shape[::-1])).to(w.dtype)
        model[0].weight.data = w.clone()
        q.quantize(model, weights=kind)
        q.freeze(model)
        state = {k.removeprefix("0."): v.detach() for k, v in model.state_dict().items()}
        return state, {"quant_method": "quanto"}

    for name in ("qint4", "qint8", "qfloat8"):
        yield f"quanto {name}", partial(make, kind=getattr(q, name))


def llmcompressor() -> Iterator[tuple[str, Callable[[Any], Made]]]:
    import tempfile

    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    stem = "model.layers.0.mlp.up_proj."

    def make(w: Any, scheme: str) -> Made:
        sizes = {"hidden_size": w.shape[1], "intermediate_size": w.shape[0], "vocab_size": 32}
        config = LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=8)
        model = LlamaForCausalLM(config).to(w.dtype)
        model.model.layers[0].mlp.up_proj.weight.data = w.clone()
        recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
        with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(source)
            model = LlamaForCausalLM.from_pretrained(source, dtype=w.dtype)
            oneshot(model=model, recipe=recipe, output_dir=folder)
            stored = load_file(Path(folder, "model.safetensors"))
            settings = json.loads(Path(folder, "config.json").read_text())["quantization_config"]
            settings["recipe.yaml"] = Path(folder, "recipe.yaml").read_text()
        return {k.removeprefix(stem): v for k, v in stored.items() if k.startswith(stem)}, settings

    schemes = "W4A16", "W4A16_ASYM", "W8A16", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "MXFP4A16"
    for scheme in schemes:
        yield scheme, partial(make, scheme=scheme)


PACKAGES = {
    "bitsandbytes": (bitsandbytes, ("torch", "bitsandbytes")),
    "hqq": (hqq, ("torch", "hqq")),
    "mlx": (mlx, ("mlx",)),
    "torchao": (torchao, ("torch", "torchao")),
    "quanto": (quanto, ("torch", "optimum.quanto")),
    "llmcompressor": (llmcompressor, ("torch", "llmcompressor")),
}
"""The ways of each, and what has to be importable."""


def with_floats(package: str, w: Any, dtype: str) -> Any:
    """The weights as the package takes them."""
    if package == "mlx":
        import mlx.core as mx

        return mx.array(w).astype(getattr(mx, dtype))
    import torch

    return torch.from_numpy(w).to(getattr(torch, dtype))


def as_stored(array: Any) -> tuple[str, Any]:
    """The name of a type that NumPy lacks, and the array."""
    dtype = str(array.dtype).split(".")[-1]
    if type(array).__module__.startswith("mlx"):
        import mlx.core as mx

        return (
            ("bfloat16", np.array(array.view(mx.uint16)))
            if "bfloat16" in dtype
            else (
                "",
                np.array(array),
            )
        )
    import torch

    array = array.detach().contiguous()
    words = {"bfloat16": torch.uint16, "float8_e4m3fn": torch.uint8}
    if dtype in words:
        return dtype, array.view(words[dtype]).numpy()
    return "", array.numpy()


def main(package: str, weights: str, folder: str) -> None:
    w = np.load(weights)
    for way, make in PACKAGES[package][0]():
        for dtype in FLOATS:
            if way == "LLM.int8" and dtype != "float16":
                continue
            arrays, config = make(with_floats(package, w, dtype))
            stored = {leaf: as_stored(array) for leaf, array in arrays.items() if array is not None}
            entries = {f"{leaf}/{kind}": each for leaf, (kind, each) in stored.items()}
            np.savez(Path(folder, f"{way}@{dtype}.npz"), config=json.dumps(config), **entries)


if __name__ == "__main__":
    main(*sys.argv[1:])

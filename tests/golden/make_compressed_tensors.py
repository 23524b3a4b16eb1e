"""What llm-compressor writes: ``pip install llmcompressor gguf ml_dtypes`` in a venv of its own.

    python -m tests.golden.make_compressed_tensors MODEL.gguf

The model is an unquantized one, of which a part of a matrix becomes a matrix of a tiny model.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from tests.golden.foreign_files import Array, Case, save, some_weights

N, K = 8, 256
MODULE = "model.layers.0.mlp.up_proj"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def args(n_bits: int, group: int | None, **more: Any) -> dict[str, Any]:
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    return {"num_bits": n_bits, "type": "int", "symmetric": True, **strategy, **more}


CASES = {
    "int4, groups of 128": (args(4, 128), "BF16", False),
    "int4, groups of 32, asymmetric": (args(4, 32, symmetric=False), "BF16", False),
    "int4, groups of 64, searched": (args(4, 64, observer="mse"), "BF16", False),
    "int4, rows, F16": (args(4, None), "F16", False),
    "int8, groups of 128": (args(8, 128), "BF16", False),
    "int8, rows": (args(8, None), "BF16", False),
    "int8, rows, asymmetric": (args(8, None, symmetric=False), "BF16", False),
    "int8, rows, F32": (args(8, None), "F32", False),
    "int8, rows, with activations": (args(8, None), "BF16", True),
    "int8, one scale": (args(8, None, strategy="tensor"), "BF16", True),
}


def to_numpy(tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def compress(weights: Array, how: dict[str, Any], kind: str, *, activations: bool) -> Case:
    settings = LlamaConfig(
        hidden_size=K,
        intermediate_size=N,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=64,
    )
    original = torch.from_numpy(weights).to(DTYPES[kind])
    dynamic = QuantizationArgs(num_bits=8, dynamic=True, strategy="token") if activations else None
    weight_args = QuantizationArgs(**how)
    scheme = QuantizationScheme(
        targets=["re:.*up_proj"], weights=weight_args, input_activations=dynamic
    )
    recipe = QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
    with tempfile.TemporaryDirectory() as folder:
        plain, out = Path(folder) / "plain", Path(folder) / "out"
        LlamaForCausalLM(settings).to(DTYPES[kind]).save_pretrained(plain)
        model = LlamaForCausalLM.from_pretrained(plain, dtype=DTYPES[kind])
        model.get_submodule(MODULE).weight.data[:] = original
        oneshot(model=model, recipe=recipe, output_dir=str(out))
        text = (out / "recipe.yaml").read_text()
        config = json.loads((out / "config.json").read_text())["quantization_config"]
        arrays = {}
        with safe_open(out / "model.safetensors", "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name.startswith(f"{MODULE}."):
                    arrays[name.removeprefix(f"{MODULE}.")] = file.get_tensor(name)
    decoded = decode(arrays, weight_args).float().numpy()
    stored = {leaf: to_numpy(array) for leaf, array in arrays.items()}
    return Case(stored, original.float().numpy(), decoded, config, text)


def decode(arrays: dict[str, torch.Tensor], how: QuantizationArgs) -> torch.Tensor:
    """What compressed-tensors makes of the arrays."""
    zero = arrays.get("weight_zero_point")
    if "weight_packed" in arrays:
        codes = unpack_from_int32(arrays["weight_packed"], how.num_bits, torch.Size((N, K)))
        if zero is not None:
            shape = torch.Size((N, arrays["weight_scale"].shape[1]))
            zero = unpack_from_int32(zero, how.num_bits, shape, packed_dim=0)
    else:
        codes = arrays["weight"]
    return dequantize(codes, arrays["weight_scale"], zero, how)


def main() -> None:
    weights = some_weights(Path(sys.argv[1]), N, K)
    cases = {
        label: compress(weights, how, kind, activations=activations)
        for label, (how, kind, activations) in CASES.items()
    }
    save("compressed_tensors", cases)


if __name__ == "__main__":
    main()

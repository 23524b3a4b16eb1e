"""Matrices that llm-compressor quantized, and what compressed-tensors decodes.

    python tests/golden/make_llm_compressor.py tests/golden/huggingface

needs ``pip install llmcompressor==0.14.0.1`` (PyTorch for the CPU is enough), which `recover` and
its other tests do not. Writes one safetensors file per scheme: the arrays of one module under the
names that it has in a folder, ``original`` and ``decoded``; the quantization entry of config.json
and the recipe are its metadata.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

SCHEMES = ("FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "MXFP4A16", "MXFP8A16", "FP8_TENSOR")
MODULE = "model.layers.0.mlp.up_proj"
_PER_TENSOR = {
    "targets": ["Linear"],
    "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"},
}


def small_llama() -> LlamaForCausalLM:
    """A llama with one layer and heavy-tailed weights."""
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=160,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=32,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            student = torch.distributions.StudentT(4.0).sample(parameter.shape)
            parameter.data = 0.02 * student
    return model.to(torch.bfloat16)


def recipe_of(scheme: str) -> QuantizationModifier:
    if scheme == "FP8_TENSOR":
        return QuantizationModifier(config_groups={"group_0": _PER_TENSOR}, ignore=["lm_head"])
    return QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])


def main(folder: str) -> None:
    for scheme in SCHEMES:
        model = small_llama()
        original = model.state_dict()[f"{MODULE}.weight"].clone()
        with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as out:
            model.save_pretrained(source)
            model = LlamaForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
            oneshot(model=model, recipe=recipe_of(scheme), output_dir=out)
            stored = load_file(Path(out, "model.safetensors"))
            config = json.loads(Path(out, "config.json").read_text())["quantization_config"]
            recipe = Path(out, "recipe.yaml").read_text()
        arrays = {
            name.removeprefix(f"{MODULE}."): array
            for name, array in stored.items()
            if name.startswith(f"{MODULE}.")
        }
        (group,) = config["config_groups"].values()
        compressor = BaseCompressor.get_value_from_registry(group["format"])
        settings = QuantizationScheme.model_validate(
            {key: value for key, value in group.items() if value is not None}
        )
        decoded = compressor.decompress(dict(arrays), settings)["weight"]
        print(scheme, {name: (array.dtype, tuple(array.shape)) for name, array in arrays.items()})
        save_file(
            {**arrays, "original": original, "decoded": decoded.contiguous()},
            Path(folder, f"{scheme.lower()}.safetensors"),
            {"config": json.dumps(config), "recipe": recipe},
        )


if __name__ == "__main__":
    main(*sys.argv[1:])

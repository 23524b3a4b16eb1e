"""Hugging Face folders of the small Llamas, quantized by the encoders of tests/support/encoders."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from recover.containers.gguf.reader import open_gguf
from recover.containers.huggingface.placing import rotary_order
from recover.containers.safetensors.reader import open_safetensors
from recover.quants import F32Array
from tests.support.encoders import awq, bitsandbytes, fp8, quanto
from tests.support.foreign_modules import Array

Encoder = Callable[[F32Array], dict[str, Array]]


def quanto_groups(w: Array) -> dict[str, Array]:
    """Quanto's qint4 with the group that it takes, of a layer without a bias."""
    width = w.shape[1]  # rows are groups where no size fits
    group = next((size for size in (128, 96, 64, 32) if width % size == 0), width)
    arrays = quanto.encode_groups(w, group=group)
    del arrays["bias"]
    return arrays


ENCODERS: dict[str, tuple[Encoder, dict[str, Any]]] = {
    "fp8": (
        lambda w: fp8.encode(w, "block"),
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
    ),
    "awq": (
        lambda w: awq.pack(awq.grid_of(w)),
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 128,
            "zero_point": True,
            "version": "gemm",
        },
    ),
    "nf4": (bitsandbytes.encode, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "qint4": (quanto_groups, {"quant_method": "quanto"}),
}
"""By format: what makes the arrays of a module, and ``quantization_config``."""

_DTYPES = {
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
}
_KINDS = {"f": "F", "i": "I", "u": "U", "b": "BOOL"}
MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


ONE_LAYER = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
"""``config.json`` of a llama of one layer."""


def write_arrays(
    path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> None:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, array in arrays.items():
        kind = _DTYPES.get(array.dtype.name) or f"{_KINDS[array.dtype.kind]}{8 * array.itemsize}"
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        at += array.nbytes
    text = json.dumps(header).encode()
    body = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def module_name(name: str) -> str:
    """The module of a GGUF tensor of a Llama."""
    if not name.startswith("blk."):
        return _TOP[name.removesuffix(".weight")]
    _, layer, rest = name.removesuffix(".weight").split(".")
    return f"model.layers.{layer}.{MODULES[rest]}"


def write_folder(model: Path, folder: Path, kind: str | None) -> Path:
    """A folder with a Llama's weights, its linear layers in a format; all BF16 if there is none."""
    return write_parts(folder, *folder_parts(model, kind))


def write_parts(folder: Path, arrays: Mapping[str, Array], config: Mapping[str, Any]) -> Path:
    """A folder with these arrays and this ``config.json``."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_arrays(folder / "model.safetensors", arrays)
    return folder


def split_folder(folder: Path) -> Path:
    """The same model in two files and an index."""
    stored = open_safetensors(folder).tensors
    names = list(stored)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    weight_map = {}
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        header, at = {}, 0
        for name in half:
            each = stored[name]
            offsets = [at, at + each.raw.size]
            header[name] = {
                "dtype": each.dtype,
                "shape": list(each.shape),
                "data_offsets": offsets,
            }
            at = offsets[1]
            weight_map[name] = file
        text = json.dumps(header).encode()
        body = b"".join(stored[name].raw.tobytes() for name in half)
        (folder / file).write_bytes(len(text).to_bytes(8, "little") + text + body)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def folder_parts(model: Path, kind: str | None) -> tuple[dict[str, Array], dict[str, Any]]:
    """What `write_folder` writes: arrays by name, and the configuration."""
    gguf = open_gguf(model)
    arrays: dict[str, Array] = {}
    heads = {
        "attn_q": int(gguf.get("llama.attention.head_count")),
        "attn_k": int(gguf.get("llama.attention.head_count_kv")),
    }
    for name, tensor in gguf.tensors.items():
        if name == "rope_freqs.weight":
            continue
        w = tensor.read(0, tensor.n_weights).reshape(tensor.dims[::-1])
        role = name.removesuffix(".weight").rpartition(".")[2]
        if role in heads:
            order = rotary_order(name, len(w), heads[role])
            w = w[np.argsort(order)]
        module = module_name(name)
        is_linear = w.ndim == 2 and name.startswith("blk.")
        if kind is None or not is_linear:
            arrays[f"{module}.weight"] = w.astype(ml_dtypes.bfloat16)
        else:
            made = ENCODERS[kind][0](np.ascontiguousarray(w))
            arrays |= {f"{module}.{leaf}": array for leaf, array in made.items()}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": int(gguf.get("llama.embedding_length")),
        "intermediate_size": int(gguf.get("llama.feed_forward_length")),
        "num_hidden_layers": int(gguf.get("llama.block_count")),
        "num_attention_heads": heads["attn_q"],
        "num_key_value_heads": heads["attn_k"],
        "rms_norm_eps": float(gguf.get("llama.attention.layer_norm_rms_epsilon")),
        "vocab_size": arrays["model.embed_tokens.weight"].shape[0],
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
    }
    if kind is not None:
        config["quantization_config"] = ENCODERS[kind][1]
    return arrays, config

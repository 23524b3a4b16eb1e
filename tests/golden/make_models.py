"""Tiny random models of each architecture, by transformers and by llama.cpp's converter, in F32.

    python tests/golden/make_models.py make FOLDER [NAME ...]
    python tests/golden/make_models.py compare FOLDER NAME EXPORTED

needs what `make_folders.py` needs. The first writes ``NAME`` (as transformers saves it) and
``NAME.gguf``. The second loads ``NAME`` and a folder that was exported from ``NAME.gguf``, and
fails unless all tensors are the same bit for bit (those that the converter adds 1 to, within the
rounding of that), the configurations shape the same computation, and so the logits are the same.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.golden.make_folders import EXPERTS, MODELS, SMALL, convert

LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [1.5 + i / 3 for i in range(8)],
}
# What GGUF files say of the models above, or llama.cpp takes for granted; and further kinds.
OPTIONS: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 8},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7},
    "mistral": {"sliding_window": None},
    "qwen3_moe": {**EXPERTS, "head_dim": 16, "norm_topk_prob": True},
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    name: (kind, {**own, **OPTIONS.get(name, {})}) for name, (kind, own) in MODELS.items()
} | {
    "llama_3": (
        "LlamaConfig",
        {"rope_scaling": LLAMA_3, "rope_theta": 5e5, "tie_word_embeddings": True},
    ),
    "llama_wide": (
        "LlamaConfig",
        {"head_dim": 32, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    "qwen2_yarn": ("Qwen2Config", {"rope_scaling": YARN, "tie_word_embeddings": True}),
    "phi3_long": (
        "Phi3Config",
        {"rope_scaling": LONG, "original_max_position_embeddings": 64, "sliding_window": 24},
    ),
    "deepseek_v2": (
        "DeepseekV2Config",
        {
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "q_lora_rank": None,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "num_key_value_heads": 4,
            "routed_scaling_factor": 1.0,
        },
    ),
}
# Variants: what a table may get wrong where only one size, one tie or one kind was tried.
KINDS |= {
    "llama_biases": (
        "LlamaConfig",
        {"attention_bias": True, "mlp_bias": True, "rope_scaling": YARN, "head_dim": 24},
    ),
    "llama_padded": ("LlamaConfig", {"vocab_size": 88, "tie_word_embeddings": True}),
    "mistral_wide": ("MistralConfig", {"sliding_window": None, "head_dim": 32, "rope_theta": 1e6}),
    "mixtral_odd": (
        "MixtralConfig",
        {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": None},
    ),
    "qwen2_wide": ("Qwen2Config", {"num_attention_heads": 8, "rope_theta": 1e6}),
    "qwen2_moe_shared": (
        "Qwen2MoeConfig",
        {
            **EXPERTS,
            "shared_expert_intermediate_size": 80,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_tied": (
        "Qwen3Config",
        {"head_dim": 32, "tie_word_embeddings": True, "rope_scaling": YARN, "rope_theta": 1e6},
    ),
    "qwen3_moe_tied": (
        "Qwen3MoeConfig",
        {**EXPERTS, "head_dim": 24, "norm_topk_prob": True, "tie_word_embeddings": True},
    ),
    "gemma2_caps": (
        "Gemma2Config",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "attn_logit_softcapping": 30.0,
            "final_logit_softcapping": 20.0,
        },
    ),
    "gemma3_linear": (
        "Gemma3TextConfig",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "num_hidden_layers": 7,
            "rope_theta": 1e6,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "phi3_partial": (
        "Phi3Config",
        {"partial_rotary_factor": 0.75, "tie_word_embeddings": True, "sliding_window": 32},
    ),
    "deepseek_v3_yarn": (
        "DeepseekV3Config",
        {
            **MODELS["deepseek_v3"][1],
            "rope_scaling": {
                **YARN,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "beta_fast": 32,
                "beta_slow": 1,
            },
            "n_shared_experts": 2,
        },
    ),
    "gpt_oss_yarn": (
        "GptOssConfig",
        {
            "num_local_experts": 5,
            "head_dim": 32,
            "sliding_window": 24,
            "rope_scaling": {**YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
        },
    ),
}
# By architecture, so that their logits tell of all of it.
SHAPING = (
    "rope_theta",
    "rope_scaling",
    "rms_norm_eps",
    "sliding_window",
    "layer_types",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "norm_topk_prob",
    "routed_scaling_factor",
    "tie_word_embeddings",
    "num_experts_per_tok",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "hidden_act",
    "attention_bias",
    "mlp_bias",
    "partial_rotary_factor",
    "max_position_embeddings",
    "num_local_experts",
    "n_shared_experts",
    "n_routed_experts",
    "shared_expert_intermediate_size",
    "moe_intermediate_size",
    "n_group",
    "topk_group",
    "first_k_dense_replace",
    "decoder_sparse_step",
    "mlp_only_layers",
)


def make(folder: Path, names: list[str]) -> None:
    for name in names:
        kind, options = KINDS[name]
        torch.manual_seed(7)
        config = getattr(transformers, kind)(**{**SMALL, **options})
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                scale = 0.1 if weight.ndim < 2 else 0.2
                weight.add_(torch.randn_like(weight) * scale)
                if "layernorm" in key and weight.ndim < 2:
                    weight.mul_(1.25)
            for key, buffer in model.named_buffers():
                if key.endswith("e_score_correction_bias"):
                    buffer.add_(torch.randn_like(buffer) * 0.1)
        model.save_pretrained(folder / name)
        convert(folder / name, folder / f"{name}.gguf")


def _effective(config: Any, key: str) -> object:
    """A field's value, or what transformers takes where it is None."""
    value = getattr(config, key, None)
    if value is None and key == "head_dim":
        return config.hidden_size // config.num_attention_heads
    return 1 if value is None and key in ("n_group", "topk_group") else value


def compare(folder: Path, name: str, exported: Path) -> None:
    first, second = (
        transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
        for path in (folder / name, exported)
    )
    ours, theirs = second.state_dict(), first.state_dict()
    assert set(ours) == set(theirs), set(ours) ^ set(theirs)
    adds_one = name.startswith("gemma")
    for key, wanted in theirs.items():
        found = ours[key]
        assert found.dtype == wanted.dtype, key
        if adds_one and key.endswith("norm.weight"):
            ulp = torch.finfo(torch.float32).eps * (1 + wanted.abs())
            assert ((found - wanted).abs() <= ulp).all(), key
        else:
            assert torch.equal(found, wanted), key
    for key in SHAPING:
        if not hasattr(first.config, key):  # the architecture has no such field
            continue
        wanted, found = (_effective(each.config, key) for each in (first, second))
        assert found == wanted or key == "rope_scaling", (key, found, wanted)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, SMALL["vocab_size"], (2, 96), generator=generator)
    with torch.no_grad():
        wanted, found = (model(tokens).logits for model in (first, second))
    off = float((found - wanted).abs().max())
    scale = float(wanted.abs().max())
    print(f"{name}: logits up to {scale:.3g}, off by at most {off:.3g}")
    assert off <= (1e-4 if adds_one or "llama_3" in name else 1e-6) * scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("make", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("rest", nargs="*")
    arguments = parser.parse_args()
    if arguments.what == "make":
        make(arguments.folder, arguments.rest or list(KINDS))
    else:
        compare(arguments.folder, arguments.rest[0], Path(arguments.rest[1]))


if __name__ == "__main__":
    main()

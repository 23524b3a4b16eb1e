"""Small models of several architectures, all of whose linear layers have biases."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.support.packed_weights import Array, packed_int4
from tests.support.quantized_folders import COMPRESSED, LLAMA, model, named

WIDTH, N_FF, N_TOKENS, N_EXPERTS = 256, 96, 64, 2
ATTENTION = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
DENSE = {"gate_proj": (N_FF, WIDTH), "up_proj": (N_FF, WIDTH), "down_proj": (WIDTH, N_FF)}
LATENT = {
    "self_attn.q_a_proj": (64, WIDTH),
    "self_attn.q_b_proj": (4 * 48, 64),
    "self_attn.kv_a_proj_with_mqa": (64 + 16, WIDTH),
    "self_attn.kv_b_proj": (4 * 64, 64),
    "self_attn.o_proj": (WIDTH, 4 * 32),
}
MIXED = {
    "num_experts": N_EXPERTS,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": N_FF,
    "shared_expert_intermediate_size": N_FF,
}
LATENT_SIZES = {
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 0,
    "routed_scaling_factor": 1.0,
}

# By --arch and whether there are experts: matrices and vectors of the layer, configuration, and
# the biases that stay although they are zeros.
QKV = {f"blk.0.attn_{name}.bias" for name in "qkv"}
FFN = {f"mlp.{name}": shape for name, shape in DENSE.items()}
EXPERTS = {
    f"mlp.experts.{i}.{name}": shape for i in range(N_EXPERTS) for name, shape in DENSE.items()
}
SHARED = {f"mlp.shared_expert.{name}": shape for name, shape in DENSE.items()}
ROUTER = {"mlp.gate": (N_EXPERTS, WIDTH)}
KINDS: dict[str, tuple[str, dict[str, tuple[int, int]], dict[str, int], dict[str, Any], set[str]]]
KINDS = {
    "llama": (
        "llama",
        ATTENTION | FFN,
        {},
        {},
        QKV | {f"blk.0.{name}.bias" for name in ("attn_output", "ffn_gate", "ffn_up", "ffn_down")},
    ),
    "qwen2": ("qwen2", ATTENTION | FFN, {}, {}, QKV),
    "qwen3": ("qwen3", ATTENTION | FFN, {"q_norm": 64, "k_norm": 64}, {}, set()),
    "qwen2moe": (
        "qwen2",
        ATTENTION | EXPERTS | SHARED | ROUTER | {"mlp.shared_expert_gate": (1, WIDTH)},
        {},
        MIXED,
        QKV,
    ),
    "qwen3moe": (
        "qwen3",
        ATTENTION | EXPERTS | ROUTER,
        {"q_norm": 64, "k_norm": 64},
        MIXED,
        set(),
    ),
    "deepseek2": (
        "deepseek2",
        LATENT
        | EXPERTS
        | {f"mlp.shared_experts.{name}": shape for name, shape in DENSE.items()}
        | ROUTER,
        {"q_a_layernorm": 64, "kv_a_layernorm": 64},
        {**MIXED, **LATENT_SIZES, "n_routed_experts": N_EXPERTS},
        set(),
    ),
}
LEFT_ALONE = ("mlp.gate", "mlp.shared_expert_gate")  # routers are not quantized


def folder(path: Path, kind: str, rng: np.random.Generator, **biases: Array) -> tuple[Path, str]:
    """A model all of whose linear layers have biases: those given, zeros for all others."""
    arch, matrices, vectors, config, _ = KINDS[kind]
    tensors: dict[str, Array] = {}
    for name, shape in matrices.items():
        module = f"model.layers.0.{name}"
        if name in LEFT_ALONE:
            tensors[f"{module}.weight"] = rng.standard_normal(shape).astype(np.float16)
        else:
            tensors |= named(module, packed_int4(rng, *shape)[0])
        tensors[f"{module}.bias"] = biases.get(name, np.zeros(shape[0], np.float16))
    for name, size in vectors.items():
        tensors[f"model.layers.0.self_attn.{name}.weight"] = np.ones(size, np.float16)
    for name in ("model.norm", "model.layers.0.input_layernorm"):
        tensors[f"{name}.weight"] = np.ones(WIDTH, np.float16)
    tensors["model.layers.0.post_attention_layernorm.weight"] = np.ones(WIDTH, np.float16)
    for name in ("model.embed_tokens", "lm_head"):
        tensors[f"{name}.weight"] = rng.standard_normal((N_TOKENS, WIDTH)).astype(np.float16)
    tensors["lm_head.bias"] = biases.get("lm_head", np.zeros(N_TOKENS, np.float16))
    sizes = {"num_key_value_heads": 4, "intermediate_size": N_FF}
    return model(path, tensors, {**LLAMA, **COMPRESSED, **sizes, **config}), arch

"""``config.json`` of a model, rebuilt from the metadata of a GGUF file.

All that shapes the computation is in it. What llama.cpp takes for granted of an architecture and
GGUF files do not tell is what llama.cpp does: queries of Gemma are scaled by the size of a head (by
that of the model over the number of heads, in the largest ones), experts of Qwen 3 are weighted so
that their shares sum to 1.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from recover._text import quoted
from recover.containers.huggingface.rope import rope_entries
from recover.containers.model import Model, StoredTensor
from recover.errors import SafetensorsError

Config = dict[str, Any]

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_LARGEST_GEMMAS = {("gemma2", 46), ("gemma3", 62)}
_TOKENS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}


class Said:
    """What a GGUF file says of its model.

    Parameters
    ----------
    model : Model
        The opened file.
    tensors : mapping of str to StoredTensor, optional
        Those of its tensors that count; default: all of them.
    """

    def __init__(self, model: Model, tensors: Mapping[str, StoredTensor] | None = None) -> None:
        self.model = model
        self.tensors = model.tensors if tensors is None else tensors
        self.architecture = str(model.get("general.architecture"))

    def has(self, ending: str) -> bool:
        """Whether there is a tensor whose name has that end."""
        return any(name.endswith(ending) for name in self.tensors)

    def get(self, key: str) -> Any:
        """A value of the architecture: that of all layers, where they have one each.

        Raises
        ------
        SafetensorsError
            If layers have different ones.
        """
        value = self.model.get(f"{self.architecture}.{key}")
        if not isinstance(value, list):
            return value
        if len(set(value)) != 1:
            raise SafetensorsError(
                f"metadata {quoted(f'{self.architecture}.{key}')}: layers have different values,"
                " which config.json cannot say"
            )
        return value[0]

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number.

        Raises
        ------
        SafetensorsError
            If it is missing or none.
        """
        value = self.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 <= value < 1 << 40:
            raise SafetensorsError(
                f"metadata {quoted(f'{self.architecture}.{key}')} is {quoted(str(value))}, so that"
                " config.json cannot be rebuilt; take one with --config"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float | None:
        """A float, with as few digits as tell it from others of 32 bits."""
        value = self.get(key)
        return default if value is None else short(value)

    @property
    def n_layers(self) -> int:
        """Layers, but for those that predict further tokens."""
        return self.integer("block_count") - self.integer("nextn_predict_layers", 0)


def short(value: Any) -> float:
    """The shortest decimal number that is this float of 32 bits."""
    return float(str(np.float32(value)))


@dataclass(frozen=True)
class Rebuilt:
    """How the configuration of an architecture is rebuilt.

    Attributes
    ----------
    model_type, class_name : str
        As transformers calls them.
    naming : str
        Key of `recover.containers.huggingface.naming.NAMINGS`.
    fields : callable
        What is its own.
    """

    model_type: str
    class_name: str
    naming: str
    fields: Callable[[Said], Config]


def rebuilt_of(said: Said) -> Rebuilt | None:
    """How the configuration of a GGUF model is rebuilt; None if its architecture is not known."""
    name = said.architecture
    if name == "llama" and said.has(".ffn_gate_inp.weight"):
        name = "mixtral"
    if name == "deepseek2" and said.has("exp_probs_b.bias"):
        name = "deepseek3"
    if name == "grok" and said.has(".layer_output_norm.weight"):
        name = "grok1"
    return _REBUILT.get(name)


def config_of(said: Said) -> Config:
    """The contents of ``config.json``, but for the type of the weights.

    Parameters
    ----------
    said : Said
        Of an architecture that `rebuilt_of` knows.

    Raises
    ------
    SafetensorsError
        If the file does not say all that is needed.
    """
    rebuilt = rebuilt_of(said)
    assert rebuilt is not None
    config = {
        "architectures": [rebuilt.class_name],
        "model_type": rebuilt.model_type,
        **_common(said),
        **_tokens(said.model),
        **rope_entries(said),
        **rebuilt.fields(said),
        "use_cache": True,
    }
    return {key: value for key, value in config.items() if value is not _LEFT_OUT}


_LEFT_OUT = object()


def generation_of(model: Model) -> Config:
    """The contents of ``generation_config.json``."""
    known = {key: value for key, value in _tokens(model).items() if value is not None}
    return {"_from_model_config": True, **known}


def dtype_name(kind: str) -> str:
    """What ``config.json`` calls a type of floats."""
    return _DTYPES[kind]


def _tokens(model: Model) -> Config:
    found = {key: model.get(own) for key, own in _TOKENS.items()}
    return {key: value if type(value) is int else None for key, value in found.items()}


def _common(said: Said) -> Config:
    """What all architectures have."""
    embedding = said.tensors.get("token_embd.weight")
    if embedding is None:
        raise SafetensorsError("there is no tensor 'token_embd.weight'")
    n_heads = said.integer("attention.head_count")
    width = said.integer("embedding_length")
    return {
        "vocab_size": embedding.dims[1],
        "hidden_size": width,
        "intermediate_size": said.integer("feed_forward_length"),
        "num_hidden_layers": said.n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": said.integer("attention.head_count_kv", n_heads),
        "head_dim": said.integer("attention.key_length", width // max(1, n_heads)),
        "hidden_act": "silu",
        "max_position_embeddings": said.integer("context_length"),
        "rms_norm_eps": said.number("attention.layer_norm_rms_epsilon", 1e-6),
        "tie_word_embeddings": "output.weight" not in said.tensors,
        "attention_dropout": 0.0,
    }


def _llama(said: Said) -> Config:
    return {
        "attention_bias": _biases(said, "attn_q", "attn_k", "attn_v", "attn_output"),
        "mlp_bias": _biases(said, "ffn_gate", "ffn_up", "ffn_down"),
    }


def _biases(said: Said, *roles: str) -> bool:
    """Whether modules have biases; all of them, or none."""
    found = {role: said.has(f".{role}.bias") for role in roles}
    if len(set(found.values())) != 1:
        with_bias = ", ".join(role for role, has in found.items() if has)
        raise SafetensorsError(
            f"only {with_bias} of {', '.join(roles)} have biases, which config.json cannot say"
        )
    return found[roles[0]]


def _mixtral(said: Said) -> Config:
    return {
        "num_local_experts": said.integer("expert_count"),
        "num_experts_per_tok": said.integer("expert_used_count"),
        "sliding_window": None,
        "output_router_logits": False,
    }


def _qwen2(_said: Said) -> Config:
    return {"use_sliding_window": False, "sliding_window": None}


def _qwen3(said: Said) -> Config:
    biases = _biases(said, "attn_q", "attn_k", "attn_v", "attn_output")
    return _qwen2(said) | {"attention_bias": biases}


def _experts(said: Said) -> Config:
    """Of Qwen's mixtures."""
    stack = next((t for n, t in said.tensors.items() if n.endswith(".ffn_gate_exps.weight")), None)
    n_inner = said.integer("expert_feed_forward_length", stack.dims[1] if stack else None)
    dense = [
        layer for layer in range(said.n_layers) if f"blk.{layer}.ffn_gate.weight" in said.tensors
    ]
    return {
        "num_experts": said.integer("expert_count"),
        "num_experts_per_tok": said.integer("expert_used_count"),
        "moe_intermediate_size": n_inner,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
        "output_router_logits": False,
    }


def _qwen2_moe(said: Said) -> Config:
    shared = next((t for n, t in said.tensors.items() if n.endswith(".ffn_up_shexp.weight")), None)
    key = "expert_shared_feed_forward_length"
    n_shared = said.integer(key, shared.dims[1] if shared else None)
    return (
        _qwen2(said)
        | _experts(said)
        | {
            "head_dim": _LEFT_OUT,  # that of the model over the number of heads
            "norm_topk_prob": False,
            "qkv_bias": said.has(".attn_q.bias"),
            "shared_expert_intermediate_size": n_shared,
        }
    )


def _qwen3_moe(said: Said) -> Config:
    return _qwen3(said) | _experts(said) | {"norm_topk_prob": True}


def _gemma(said: Said) -> Config:
    width, n_heads = said.integer("embedding_length"), said.integer("attention.head_count")
    is_largest = (said.architecture, said.n_layers) in _LARGEST_GEMMAS
    return {
        "hidden_act": _LEFT_OUT,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": width // n_heads
        if is_largest
        else said.integer("attention.key_length", width // n_heads),
        "attention_bias": False,
        "attn_logit_softcapping": said.number("attn_logit_softcapping"),
        "final_logit_softcapping": said.number("final_logit_softcapping"),
        "sliding_window": said.integer("attention.sliding_window", 4096),
    }


def _gemma2(said: Said) -> Config:
    return _gemma(said) | {"layer_types": list(_layer_types(said, 2))}


def _gemma3(said: Said) -> Config:
    return _gemma(said) | {
        "layer_types": list(_layer_types(said, 6)),
        "rope_local_base_freq": said.number("rope.freq_base_swa", 10000.0),
    }


def _layer_types(said: Said, period: int) -> Iterator[str]:
    """Every so many layers one sees all tokens, the last of each group."""
    for layer in range(said.n_layers):
        yield "sliding_attention" if (layer + 1) % period else "full_attention"


def _phi3(said: Said) -> Config:
    width, n_heads = said.integer("embedding_length"), said.integer("attention.head_count")
    head = width // max(1, n_heads)
    return {
        "head_dim": _LEFT_OUT,
        "partial_rotary_factor": said.integer("rope.dimension_count", head) / head,
        "sliding_window": said.integer("attention.sliding_window", 0) or None,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def _deepseek(said: Said) -> Config:
    n_rotated = said.integer("rope.dimension_count")
    n_key = said.get("attention.key_length_mla") or said.integer("attention.key_length")
    n_value = said.get("attention.value_length_mla") or said.integer("attention.value_length")
    return {
        "head_dim": n_rotated,
        "num_key_value_heads": said.integer("attention.head_count"),
        "q_lora_rank": said.get("attention.q_lora_rank"),
        "kv_lora_rank": said.integer("attention.kv_lora_rank"),
        "qk_rope_head_dim": n_rotated,
        "qk_nope_head_dim": n_key - n_rotated,
        "v_head_dim": n_value,
        "moe_intermediate_size": said.integer("expert_feed_forward_length"),
        "n_routed_experts": said.integer("expert_count"),
        "n_shared_experts": said.integer("expert_shared_count", 0),
        "num_experts_per_tok": said.integer("expert_used_count"),
        "first_k_dense_replace": said.integer("leading_dense_block_count", 0),
        "routed_scaling_factor": said.number("expert_weights_scale", 1.0),
        "norm_topk_prob": bool(said.get("expert_weights_norm")),
        "attention_bias": False,
    }


def _deepseek2(said: Said) -> Config:
    n_groups = said.integer("expert_group_count", 1)
    return _deepseek(said) | {
        "n_group": n_groups,
        "topk_group": said.integer("expert_group_used_count", 1),
        "topk_method": "group_limited_greedy" if n_groups > 1 else "greedy",
    }


def _deepseek3(said: Said) -> Config:
    return _deepseek(said) | {
        "n_group": said.integer("expert_group_count", 1),
        "topk_group": said.integer("expert_group_used_count", 1),
        "rope_interleave": True,
    }


def _gpt_oss(said: Said) -> Config:
    n_inner = said.integer("feed_forward_length", 0)
    return {
        "intermediate_size": said.integer("expert_feed_forward_length", n_inner),
        "num_local_experts": said.integer("expert_count"),
        "num_experts_per_tok": said.integer("expert_used_count"),
        "sliding_window": said.integer("attention.sliding_window"),
        "layer_types": list(_layer_types(said, 2)),
        "attention_bias": True,
        "swiglu_limit": 7.0,
        "output_router_logits": False,
    }


def _grok(said: Said) -> Config:
    n_inner = said.get("expert_feed_forward_length")
    return {
        "hidden_act": _LEFT_OUT,
        "num_local_experts": said.integer("expert_count"),
        "num_experts_per_tok": said.integer("expert_used_count"),
        "moe_intermediate_size": _LEFT_OUT if n_inner is None else n_inner,
        "attn_logit_softcapping": said.number("attn_logit_softcapping", 30.0),
        "router_logit_softcapping": said.number("router_logit_softcapping", 30.0),
        "final_logit_softcapping": said.number("final_logit_softcapping"),
        "attn_output_multiplier": said.number("attention.output_scale"),
        "embedding_multiplier_scale": said.number("embedding_scale"),
        "output_multiplier_scale": said.number("logit_scale"),
    }


_REBUILT = {
    "llama": Rebuilt("llama", "LlamaForCausalLM", "llama", _llama),
    "mixtral": Rebuilt("mixtral", "MixtralForCausalLM", "mixtral", _mixtral),
    "qwen2": Rebuilt("qwen2", "Qwen2ForCausalLM", "qwen2", _qwen2),
    "qwen2moe": Rebuilt("qwen2_moe", "Qwen2MoeForCausalLM", "qwen2_moe", _qwen2_moe),
    "qwen3": Rebuilt("qwen3", "Qwen3ForCausalLM", "qwen3", _qwen3),
    "qwen3moe": Rebuilt("qwen3_moe", "Qwen3MoeForCausalLM", "qwen3_moe", _qwen3_moe),
    "gemma2": Rebuilt("gemma2", "Gemma2ForCausalLM", "gemma2", _gemma2),
    "gemma3": Rebuilt("gemma3_text", "Gemma3ForCausalLM", "gemma3_text", _gemma3),
    "phi3": Rebuilt("phi3", "Phi3ForCausalLM", "phi3", _phi3),
    "deepseek2": Rebuilt("deepseek_v2", "DeepseekV2ForCausalLM", "deepseek", _deepseek2),
    "deepseek3": Rebuilt("deepseek_v3", "DeepseekV3ForCausalLM", "deepseek", _deepseek3),
    "gpt-oss": Rebuilt("gpt_oss", "GptOssForCausalLM", "gpt_oss", _gpt_oss),
    "grok1": Rebuilt("grok-1", "GrokForCausalLM", "grok-1", _grok),
    "grok": Rebuilt("git", "Grok1ForCausalLM", "grok-2", _grok),  # as published
}
"""By ``general.architecture``, and what tells apart those that share one."""


def known_architectures() -> str:
    """For people."""
    return ", ".join(sorted({each.model_type for each in _REBUILT.values()}))

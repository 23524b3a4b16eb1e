"""GGUF's names and metadata for models in the layout of Hugging Face's transformers.

Names come from gguf-py's tensor map, metadata from ``config.json``. As llama.cpp's converter does,
rows of queries and keys are reordered for architecture llama, and experts are stacked.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted, some
from recover.containers.gguf.header import ValueType, encode_key_value
from recover.containers.huggingface.architectures import (
    EXPERT,
    MAX_EXPERTS,
    QUERY_OR_KEY,
    Architecture,
    Names,
    size_of,
    text_config,
)
from recover.containers.safetensors.reader import Model
from recover.errors import ReblockError
from recover.reblock.drafts import Draft, permuted, stacked
from recover.reblock.integers import check_row_length
from recover.reblock.places import has_place, is_void_bias
from recover.reblock.rope import rope_factors, rope_scaling
from recover.reblock.schemes.base import FloatRows

# Constants that llama.cpp computes itself.
_DROPPED = re.compile(r".*(rotary_emb\.inv_freq|\.masked_bias|\.rotary_emb)")

# By --arch: the architecture in gguf-py, and the one for models with experts.
_ARCHITECTURES = {
    "llama": ("LLAMA", "LLAMA"),
    "mistral": ("LLAMA", "LLAMA"),
    "qwen2": ("QWEN2", "QWEN2MOE"),
    "qwen3": ("QWEN3", "QWEN3MOE"),
    "deepseek2": ("DEEPSEEK2", "DEEPSEEK2"),
    "kimi": ("DEEPSEEK2", "DEEPSEEK2"),
}

# config.json's name, GGUF's name, whether it is a whole number.
_KEYS = (
    ("max_position_embeddings", "context_length", True),
    ("hidden_size", "embedding_length", True),
    ("num_hidden_layers", "block_count", True),
    ("intermediate_size", "feed_forward_length", True),
    ("num_attention_heads", "attention.head_count", True),
    ("num_key_value_heads", "attention.head_count_kv", True),
    ("head_dim", "attention.key_length", True),
    ("head_dim", "attention.value_length", True),
    ("head_dim", "rope.dimension_count", True),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon", False),
    ("rope_theta", "rope.freq_base", False),
    ("vocab_size", "vocab_size", True),
    ("num_local_experts", "expert_count", True),
    ("num_experts", "expert_count", True),
    ("n_routed_experts", "expert_count", True),
    ("num_experts_per_tok", "expert_used_count", True),
    ("n_shared_experts", "expert_shared_count", True),
    ("moe_intermediate_size", "expert_feed_forward_length", True),
    ("shared_expert_intermediate_size", "expert_shared_feed_forward_length", True),
    ("first_k_dense_replace", "leading_dense_block_count", True),
    ("q_lora_rank", "attention.q_lora_rank", True),
    ("kv_lora_rank", "attention.kv_lora_rank", True),
    ("qk_rope_head_dim", "rope.dimension_count", True),
    ("v_head_dim", "attention.value_length", True),
    ("routed_scaling_factor", "expert_weights_scale", False),
    ("n_group", "expert_group_count", True),
    ("topk_group", "expert_group_used_count", True),
)
_GATING = {"softmax": 1, "sigmoid": 2}


def apply_architecture(
    model: Model, drafts: Sequence[Draft], arch: str
) -> tuple[list[Draft], list[bytes], list[str]]:
    """Rename, reorder and stack tensors for an architecture.

    Parameters
    ----------
    model : Model
        Whose configuration is used.
    drafts : sequence of Draft
        Under the model's own names.
    arch : str
        ``llama``, ``mistral``, ``qwen2``, ``qwen3``, ``deepseek2`` or ``kimi``.

    Returns
    -------
    list of Draft, list of bytes, list of str
        The tensors by their new names, encoded metadata, and what the user should know.

    Raises
    ------
    ReblockError
        If the configuration is missing, or a tensor has no place in the architecture, or none in
        llama.cpp and is no bias of zeros.
    """
    if arch not in _ARCHITECTURES:
        raise ReblockError(f"{quoted(arch)} is only for checkpoints, not for safetensors")
    config = _text_config(model.config)
    has_experts = any(EXPERT.fullmatch(draft.name) for draft in drafts)
    name = _ARCHITECTURES[arch][has_experts]
    names = Names(Architecture(name), config)
    merged = _with_experts([draft for draft in drafts if not _DROPPED.fullmatch(draft.name)])
    if name == "LLAMA":
        merged = [_reordered(draft, config) for draft in merged]
    void: list[str] = []
    renamed = list(_renamed(merged, name, names, void))
    factors = rope_factors(config)
    if not all(has_place(factor.name, name) for factor in factors):
        raise ReblockError(
            "config.json: llama.cpp knows rope_scaling of type 'llama3' for architecture llama"
            f" only, not for {_gguf_name(name)}"
        )
    warnings = []
    if void:
        warnings.append(
            f"left out are {some(void)}: biases of zeros, which change nothing, and for which"
            f" llama.cpp has no place in architecture {_gguf_name(name)}"
        )
    return renamed + factors, list(_metadata(model, config, name)), warnings


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = text_config(config)
    if not found:
        raise ReblockError("there is no config.json, which --arch needs")
    return found


def _with_experts(drafts: Sequence[Draft]) -> list[Draft]:
    """Experts that are tensors of their own become one tensor each kind."""
    experts: dict[str, dict[int, Draft]] = {}
    order: dict[str, Draft | None] = {}
    for draft in drafts:
        match = EXPERT.fullmatch(draft.name)
        if match is None:
            order[draft.name] = draft
            continue
        number = int(match["number"])
        if number >= MAX_EXPERTS:
            raise ReblockError(f"tensor {quoted(draft.name)}: too many experts")
        name = f"{match['module']}.{match['rest']}"
        experts.setdefault(name, {})[number] = draft
        order.setdefault(name, None)
    found = []
    for name, single in order.items():
        if single is not None:
            found.append(single)
            continue
        numbered = experts[name]
        missing = next((i for i in range(len(numbered)) if i not in numbered), None)
        if missing is not None:
            raise ReblockError(f"tensor {quoted(name)}: expert {missing} is missing")
        found.append(stacked(name, [numbered[i] for i in range(len(numbered))]))
    return found


def _reordered(draft: Draft, config: Mapping[str, Any]) -> Draft:
    """Rows of queries and keys as llama.cpp's rotary embedding wants them for llama.

    Mirrors `LlamaModel.permute` of its converter: inside a head, row (i, j) of the two halves j
    becomes row 2 i + j.
    """
    match = QUERY_OR_KEY.fullmatch(draft.name)
    if match is None:
        return draft
    n_heads = size_of(config, "num_attention_heads")
    if match["which"] == "k" and config.get("num_key_value_heads") is not None:
        n_heads = size_of(config, "num_key_value_heads")
    n_rows = draft.dims[-1]
    if n_rows % (2 * n_heads):
        raise ReblockError(f"tensor {quoted(draft.name)}: {n_rows} rows for {n_heads} heads")
    half = n_rows // n_heads // 2
    order: NDArray[np.int64] = np.arange(2 * half).reshape(2, half).T.reshape(-1)
    return permuted(_as_column(draft) if len(draft.dims) == 1 else draft, order)


def _as_column(draft: Draft) -> Draft:
    """A vector as rows of one weight."""
    check_row_length(draft.name, draft.rows.row_length)
    whole = draft.rows.reference(0, 1).reshape(-1, 1)
    rows = FloatRows(
        n_rows=whole.size,
        row_length=1,
        group=None,
        obstacle="",
        reference=lambda first, last: whole[first:last],
    )
    return replace(draft, rows=rows, plain=None)


def _gguf_name(name: str) -> str:
    import gguf

    return gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[name]]


def _renamed(drafts: Sequence[Draft], name: str, names: Names, void: list[str]) -> Iterator[Draft]:
    """Tensors by their new names, without biases of zeros, which are named in `void`."""
    seen: dict[str, str] = {}
    for draft in drafts:
        found = names.of(draft.name)
        if found is None:
            raise ReblockError(f"tensor {quoted(draft.name)} has no place in architecture {name}")
        if seen.setdefault(found, draft.name) != draft.name:
            raise ReblockError(
                f"tensors {quoted(seen[found])} and {quoted(draft.name)} both become {found}"
            )
        if is_void_bias(draft, found, name):
            void.append(quoted(draft.name))
            continue
        if not has_place(found, name):
            raise ReblockError(
                f"tensor {quoted(draft.name)} would be {found}, for which llama.cpp has no place in"
                f" architecture {_gguf_name(name)}: it would refuse the file; leave out --arch to"
                " keep the model's own names, for other programs"
            )
        yield replace(draft, name=found)


def _metadata(model: Model, config: Mapping[str, Any], name: str) -> Iterator[bytes]:
    arch = _gguf_name(name)
    entries: dict[str, tuple[ValueType, Any]] = {
        "general.architecture": (ValueType.STRING, arch),
        "general.name": (ValueType.STRING, model.path.resolve().stem),
        "general.quantization_version": (ValueType.UINT32, 2),
    }
    for key, value in (_hyper_parameters(config, name) | rope_scaling(config)).items():
        kind = ValueType.FLOAT32 if isinstance(value, float) else ValueType.UINT32
        kind = ValueType.STRING if isinstance(value, str) else kind
        kind = ValueType.BOOL if isinstance(value, bool) else kind
        entries[f"{arch}.{key}"] = (kind, value)
    for key, (kind, value) in entries.items():
        yield encode_key_value(key, kind, value)
    yield encode_key_value("tokenizer.ggml.model", ValueType.STRING, "none")


def _hyper_parameters(config: Mapping[str, Any], name: str) -> dict[str, int | float | bool]:
    n_heads = size_of(config, "num_attention_heads")
    head_size = size_of(config, "hidden_size") // n_heads
    found: dict[str, int | float | bool] = {
        "rope.dimension_count": head_size,
        "attention.head_count_kv": n_heads,
    }
    for own, key, is_integer in _KEYS:
        value = config.get(own)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if is_integer and type(value) is int and 0 <= value < 1 << 32:
            found[key] = value
        elif not is_integer and abs(value) < 1e38:
            found[key] = float(value)
    if name == "DEEPSEEK2":
        rope = size_of(config, "qk_rope_head_dim")
        found["attention.key_length"] = size_of(config, "qk_nope_head_dim") + rope
        found["attention.value_length"] = size_of(config, "v_head_dim")
        found["attention.head_count_kv"] = n_heads
        found["rope.dimension_count"] = rope
        found["expert_weights_norm"] = config.get("norm_topk_prob") is True
        found["expert_gating_func"] = _GATING.get(str(config.get("scoring_func")), 1)
    return found

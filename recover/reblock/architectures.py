"""GGUF's names and metadata for models in the layout of Hugging Face's transformers.

Names come from gguf-py's tensor map, metadata from ``config.json``. As llama.cpp's converter does,
rows of queries and keys are reordered for architecture llama, and experts are stacked.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from recover._text import quoted, some
from recover.containers.gguf.header import ValueType, encode_key_value
from recover.containers.huggingface.architectures import (
    MAX_LAYERS,
    Names,
    architecture_by_key,
    architecture_of,
    size_of,
    text_config,
)
from recover.containers.safetensors.reader import Model
from recover.errors import ReblockError, SafetensorsError
from recover.reblock.drafts import Draft
from recover.reblock.layouts import inputs_last, laid_out
from recover.reblock.places import has_place, is_void_bias
from recover.reblock.rope import rope_factors, rope_scaling

# What sees or hears, and what leads from there to the language model.
_OTHER_PARTS = re.compile(
    r"(model\.)?(vision_tower|vision_model|vision_embedder|visual|image_newline|audio_tower|audio|"
    r"embed_vision|embed_audio|mm_projector|multi_modal_projector|sam_model|projector)\b.*"
)
# What is measured of activations, or of what is kept of them, beside weights.
_OF_ACTIVATIONS = re.compile(r".*\.(k|v|q|kv|kv_cache|prob|input|output|input_global)_scale")
_EXPERTS = re.compile(r"\.(experts|switch_mlp)\.")
_MORE_TOKENS = re.compile(r"(?:model\.)?mtp\..*")
_LAYER = re.compile(r"(?:language_model\.)?model\.(?:language_model\.)?layers\.(\d{1,9})\..*")

# By --arch: the architecture in gguf-py, and the one for models with experts.
_ARCHITECTURES = {
    "llama": ("LLAMA", "LLAMA"),
    "mistral": ("LLAMA", "LLAMA"),
    "qwen2": ("QWEN2", "QWEN2MOE"),
    "qwen3": ("QWEN3", "QWEN3MOE"),
    "deepseek2": ("DEEPSEEK2", "DEEPSEEK2"),
    "kimi": ("DEEPSEEK2", "DEEPSEEK2"),
    "gemma2": ("GEMMA2", "GEMMA2"),
    "gemma3": ("GEMMA3", "GEMMA3"),
    "gpt-oss": ("GPT_OSS", "GPT_OSS"),
}
ARCHITECTURES = tuple(_ARCHITECTURES)
"""What ``--arch`` takes, for safetensors."""

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
    ("attn_logit_softcapping", "attn_logit_softcapping", False),
    ("final_logit_softcapping", "final_logit_softcapping", False),
)
# Where all layers look back as far as the context goes, these say nothing.
_WITH_WINDOW = "GEMMA2", "GEMMA3", "GPT_OSS"
_GATING = {"softmax": 1, "sigmoid": 2}


def fitting(config: Mapping[str, Any]) -> list[str]:
    """What ``--arch`` may be for a model, by its ``config.json``; nothing where that is not known.

    Parameters
    ----------
    config : mapping of str to Any
        Of the model; may be empty.
    """
    try:
        key = architecture_of(config).key
    except SafetensorsError:
        return []
    return [arch for arch, keys in _ARCHITECTURES.items() if key in keys]


def check_arch(config: Mapping[str, Any], arch: str) -> None:
    """Refuse an architecture that is not the model's own.

    Parameters
    ----------
    config : mapping of str to Any
        Of the model.
    arch : str
        What ``--arch`` says.

    Raises
    ------
    ReblockError
        If ``config.json`` names a model_type of another architecture.
    """
    suitable = fitting(config)
    if suitable and arch in _ARCHITECTURES and arch not in suitable:
        kind = text_config(config).get("model_type", config.get("model_type"))
        raise ReblockError(
            f"config.json says model_type {quoted(str(kind))}: that is --arch"
            f" {' or '.join(suitable)}, not {arch}"
        )


def names_kept(config: Mapping[str, Any]) -> list[str]:
    """What is said where a model is to get no architecture, although llama.cpp has it.

    Parameters
    ----------
    config : mapping of str to Any
        Of the model.
    """
    suitable = fitting(config)
    if not suitable:
        return []
    kept = "tensors keep the model's own names, with which llama.cpp loads no file"
    return [f"{kept}; with --arch {suitable[0]} they get llama.cpp's, and its metadata"]


class Applied(NamedTuple):
    """A model as an architecture of llama.cpp."""

    drafts: list[Draft]
    """The tensors by their new names."""
    metadata: list[bytes]
    """Encoded."""
    warnings: list[str]
    """What the user should know."""
    left_out: list[str]
    """Tensors that are not written."""


def apply_architecture(model: Model, drafts: Sequence[Draft], arch: str) -> Applied:
    """Rename, reorder and stack tensors for an architecture.

    Parameters
    ----------
    model : Model
        Whose configuration is used.
    drafts : sequence of Draft
        Under the model's own names.
    arch : str
        One of `ARCHITECTURES`.

    Returns
    -------
    Applied

    Raises
    ------
    ReblockError
        If the configuration is missing, or a tensor has no place in the architecture, or none in
        llama.cpp, is no bias of zeros, and belongs to no tower for images or sound.
    """
    config = _text_config(model.config)
    drafts, warnings, left_out = _of_language(drafts, config)
    name = _name_of(drafts, arch)
    architecture = architecture_by_key(name)
    names = Names(architecture, config)
    merged = laid_out(drafts, architecture, config)
    void: list[str] = []
    renamed = list(_renamed(merged, name, names, void))
    factors = rope_factors(config)
    if not all(has_place(factor.name, name) for factor in factors):
        raise ReblockError(
            "config.json: llama.cpp knows rope_scaling of type 'llama3' for architecture llama"
            f" only, not for {_gguf_name(name)}"
        )
    if void:
        warnings.append(
            f"left out are {_some(void)}: biases of zeros, which change nothing, and for which"
            f" llama.cpp has no place in architecture {_gguf_name(name)}"
        )
    metadata = list(_metadata(model, config, name))
    return Applied(renamed + factors, metadata, warnings, [*left_out, *void])


def _name_of(drafts: Sequence[Draft], arch: str) -> str:
    """gguf-py's name of the architecture of some tensors."""
    if arch not in _ARCHITECTURES:
        raise ReblockError(f"{quoted(arch)} is only for checkpoints, not for safetensors")
    return _ARCHITECTURES[arch][any(_EXPERTS.search(draft.name) for draft in drafts)]


def rows_along_inputs(drafts: Sequence[Draft], arch: str) -> list[Draft]:
    """The tensors with rows along their inputs, which share scales; errors as of an architecture.

    Parameters
    ----------
    drafts, arch
        See `apply_architecture`.
    """
    architecture = architecture_by_key(_name_of(drafts, arch))
    return [inputs_last(draft, architecture) for draft in drafts]


def _of_language(
    drafts: Sequence[Draft], config: Mapping[str, Any]
) -> tuple[list[Draft], list[str], list[str]]:
    """The tensors of the language model's own layers, what is said of the others, and these."""
    n_layers, n_more = config.get("num_hidden_layers"), config.get("num_nextn_predict_layers")
    first = n_layers if type(n_layers) is int else MAX_LAYERS
    end = first + n_more if type(n_more) is int else first
    kept: list[Draft] = []
    others: list[str] = []
    further: list[str] = []
    scales: list[str] = []
    for draft in drafts:
        layer = _LAYER.fullmatch(draft.name)
        if _OTHER_PARTS.fullmatch(draft.name):
            others.append(draft.name)
        elif _OF_ACTIVATIONS.fullmatch(draft.name) and len(draft.dims) == 1:
            scales.append(draft.name)
        elif _MORE_TOKENS.fullmatch(draft.name) or (layer and first <= int(layer[1]) < end):
            further.append(draft.name)
        else:
            kept.append(draft)
    warnings = []
    if others:
        warnings.append(
            f"left out are {_some(others)}: they belong to a tower or a projector for images or"
            " sound, which llama.cpp keeps in a file of its own (mmproj)"
        )
    if further:
        warnings.append(
            f"left out are {_some(further)}: they predict further tokens"
            " (num_nextn_predict_layers), which the model does not need"
        )
    if scales:
        warnings.append(f"left out are {_some(scales)}: scales of activations, not of weights")
    return kept, warnings, [*others, *further, *scales]


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = text_config(config)
    if not found:
        raise ReblockError("there is no config.json, which --arch needs")
    return found


def _some(names: list[str]) -> str:
    return some([quoted(name) for name in names])


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
            void.append(draft.name)
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
    if name in _WITH_WINDOW and type(config.get("sliding_window")) is int:
        found["attention.sliding_window"] = size_of(config, "sliding_window")
    if name == "GPT_OSS":
        found["expert_feed_forward_length"] = size_of(config, "intermediate_size")
    if name == "DEEPSEEK2":
        rope = size_of(config, "qk_rope_head_dim")
        found["attention.key_length"] = size_of(config, "qk_nope_head_dim") + rope
        found["attention.value_length"] = size_of(config, "v_head_dim")
        found["attention.head_count_kv"] = n_heads
        found["rope.dimension_count"] = rope
        found["expert_weights_norm"] = config.get("norm_topk_prob") is True
        found["expert_gating_func"] = _GATING.get(str(config.get("scoring_func")), 1)
    return found

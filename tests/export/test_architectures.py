"""GGUF files of every architecture become the folders that they were converted from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover.containers.huggingface.architectures import text_config
from recover.containers.huggingface.reader import open_folder
from recover.export.execute import execute_export
from recover.export.plan import plan_export
from tests.support.golden_models import as_float32, read_arrays, write_golden_gguf
from tests.support.random_folders import NAMES, golden

# What does not shape the computation, or that GGUF files do not tell: what llama.cpp takes for
# granted is written instead (see `recover.containers.huggingface.configuration`).
UNTOLD = {
    "dtype",
    "torch_dtype",
    "transformers_version",
    "initializer_range",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "pretraining_tp",
    "max_window_layers",
    "num_nextn_predict_layers",
    "qk_head_dim",
    "_sliding_window_pattern",
    "aux_loss_alpha",
    "seq_aux",
    "mlp_bias",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
}
OTHER: dict[str, dict[str, Any]] = {
    "kimi_k2": {"model_type": "deepseek_v3"},
    "grok_1": {"model_type": "grok-1"},
    "phi3_long": {"rope_scaling": None},  # whose factors are not made here
    "qwen2_tied": {"head_dim": 16},
    "deepseek_v2": {"topk_method": "group_limited_greedy"},  # as published, where there are groups
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16},
    "mistral": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "sliding_window": None,
        "head_dim": 16,
    },
    "mixtral": {"head_dim": 16},
    "qwen2": {"head_dim": 16},
    "qwen3_moe": {"norm_topk_prob": True},
}
STEMS = ("model.", "lm_head.", "transformer.")
NEXT = "layers.2."  # predicts further tokens
TOKENS = {"bos": "bos", "eos": "eos", "padding": "pad"}
DEFAULTS = {
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_bidirectional_attention": False,
    "layer_types": ["full_attention"] * 2,
}
# Other numbers than those that transformers has by default: metadata and config.json.
ODD = {
    "rope.freq_base": ("rope_theta", 1234567.0),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", 3e-6),
    "attention.sliding_window": ("sliding_window", 77),
    "attn_logit_softcapping": ("attn_logit_softcapping", 41.5),
    "final_logit_softcapping": ("final_logit_softcapping", 27.25),
    "context_length": ("max_position_embeddings", 333),
    "rope.freq_base_swa": ("rope_local_base_freq", 20000.0),
    "expert_used_count": ("num_experts_per_tok", 3),
    "expert_weights_scale": ("routed_scaling_factor", 1.7),
}


def export(model: Path, output: Path, **options: Any) -> Path:
    execute_export(plan_export(model, output, **options), n_threads=1)
    return output


@pytest.mark.parametrize("name", NAMES)
def test_arrays_come_back(name: str, tmp_path: Path) -> None:
    known = golden(name)
    model = write_golden_gguf(known, tmp_path / f"{name}.gguf")
    folder = export(model, tmp_path / "out", outtype="f32")
    found = read_arrays(folder)
    wanted = {
        own: array
        for key, array in read_arrays(tmp_path / f"{name}.folder").items()
        if (own := key.removeprefix("language_model.")).startswith(STEMS) and NEXT not in own
    }
    assert set(found) == set(wanted)
    for key, (dtype, shape, stored) in wanted.items():
        kind, own_shape, own_stored = found[key]
        assert (kind, own_shape) == ("F32", shape), key
        original, again = as_float32(dtype, stored), as_float32(kind, own_stored)
        if name.startswith("gemma") and key.endswith("norm.weight"):
            # as 1 was added in float32
            assert (np.abs(again - original) <= np.spacing(np.abs(original) + 1)).all(), key
        else:
            np.testing.assert_array_equal(again, original, key)


@pytest.mark.parametrize("name", NAMES)
def test_configuration_is_rebuilt(name: str, tmp_path: Path) -> None:
    known = golden(name)
    model = write_golden_gguf(known, tmp_path / f"{name}.gguf")
    folder = export(model, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    wanted = {**text_config(known["config"]), **OTHER.get(name, {})}
    for key, value in wanted.items():
        if key not in UNTOLD:
            assert config.get(key, DEFAULTS.get(key)) == value, key
    assert config["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_the_configuration_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    known = golden(name)
    architecture = known["metadata"]["general.architecture"][1]
    odd = {key: own for key, own in ODD.items() if f"{architecture}.{key}" in known["metadata"]}
    for key, (_, value) in odd.items():
        known["metadata"][f"{architecture}.{key}"][1] = value
    assert len(odd) > 1
    tokens = {f"tokenizer.ggml.{key}_token_id": ("UINT32", i) for i, key in enumerate(TOKENS, 7)}
    model = write_golden_gguf(known, tmp_path / f"{name}.gguf", tokens)
    folder = export(model, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    for own, value in odd.values():
        assert config[own] == value
    generation = json.loads((folder / "generation_config.json").read_text())
    for i, key in enumerate(TOKENS.values(), 7):
        assert config[f"{key}_token_id"] == generation[f"{key}_token_id"] == i


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_as_the_same_model(name: str, tmp_path: Path) -> None:
    known = golden(name)
    folder = export(write_golden_gguf(known, tmp_path / f"{name}.gguf"), tmp_path / "out")
    again = open_folder(folder).fitted(known["tensors"])
    first = open_folder(tmp_path / f"{name}.folder").fitted(known["tensors"])
    assert set(again.tensors) == set(first.tensors)
    for key, tensor in first.tensors.items():
        own = again.tensors[key]
        assert own.type.name == "F32" or own.type is tensor.type, key
        np.testing.assert_array_equal(
            own.read(0, own.n_weights), tensor.read(0, tensor.n_weights), key
        )

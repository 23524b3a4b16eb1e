"""Whole models in safetensors to GGUF: files, names, metadata, order of rows, experts."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import save_file

from recover.cli import main
from tests.oracle.llama_cpp import LlamaModel
from tests.support.packed_weights import BF16, Array, packed_int4
from tests.support.quantized_folders import COMPRESSED, LLAMA, check, model, named, refusal
from tests.support.reblock_files import reblock

# Whole models


@pytest.mark.parametrize("method", ["bitsandbytes", "hqq"])
def test_unknown_schemes_are_refused(method: str, tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": method}}
    source = model(tmp_path / "m", {"a.weight": np.zeros((8, 64), np.uint8)}, config)
    text = refusal(source, tmp_path)
    assert "tensor 'a.weight' (U8 of shape [8, 64]) belongs to no known scheme" in text
    assert method in text


def test_tables_of_integers_are_copied(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, _ = packed_int4(rng)
    positions = np.arange(64, dtype=np.int64)[None]
    source = model(tmp_path / "m", {**named("a", tensors), "b.position_ids": positions})
    reblock(source, tmp_path / "a.gguf")
    (found,) = (t for t in GGUFReader(tmp_path / "a.gguf").tensors if t.name == "b.position_ids")
    assert (found.tensor_type.name, found.data.tolist()) == ("I64", positions.tolist())


def test_single_file_and_index(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, truth = packed_int4(rng)
    single = model(tmp_path / "m", named("a", tensors)) / "model.safetensors"
    check(single, tmp_path / "a.gguf", {"a.weight": ("Q4_0", truth)})
    folder = tmp_path / "sharded"
    folder.mkdir()
    weight_map = {}
    for i, (leaf, tensor) in enumerate(tensors.items()):
        file = f"model-{i + 1:05}-of-00003.safetensors"
        save_file({f"a.{leaf}": tensor}, folder / file)
        weight_map[f"a.{leaf}"] = file
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    check(folder, tmp_path / "b.gguf", {"a.weight": ("Q4_0", truth)})
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors: there is no such file" in refusal(folder, tmp_path)


def llama3_factors(scaling: dict[str, Any]) -> Array:
    """One frequency after the other, as in llama.cpp's convert_hf_to_gguf.py."""
    factors = []
    context = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    for i in range(0, 64, 2):
        wave = 2 * math.pi * 10000.0 ** (i / 64)
        if wave < context / high:
            factors.append(1.0)
        elif wave > context / low:
            factors.append(scaling["factor"])
        else:
            smooth = (context / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    assert 1.0 in factors
    assert 8.0 in factors
    assert any(1.5 < factor < 7.5 for factor in factors)
    return np.array(factors, np.float32).astype(np.float64)


@pytest.mark.inference
def test_llama_names_metadata_and_order_of_rows(rng: np.random.Generator, tmp_path: Path) -> None:
    sizes = {
        "self_attn.q_proj": (256, 256, "attn_q"),
        "self_attn.k_proj": (128, 256, "attn_k"),
        "self_attn.v_proj": (128, 256, "attn_v"),
        "self_attn.o_proj": (256, 256, "attn_output"),
        "mlp.gate_proj": (96, 256, "ffn_gate"),
        "mlp.up_proj": (96, 256, "ffn_up"),
        "mlp.down_proj": (256, 96, "ffn_down"),
    }
    tensors: dict[str, Array] = {}
    truth: dict[str, tuple[str, Array]] = {}
    for name, (n, k, own) in sizes.items():
        found, weights = packed_int4(rng, n, k)
        tensors |= named(f"model.layers.0.{name}", found)
        if own in ("attn_q", "attn_k"):
            # as in llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute
            n_heads = 4 if own == "attn_q" else 2
            heads = weights.reshape(n_heads, 2, n // n_heads // 2, k)
            weights = heads.swapaxes(1, 2).reshape(n, k)
        truth[f"blk.0.{own}.weight"] = ("Q4_0", weights)
    embedding = rng.standard_normal((64, 256)).astype(BF16)
    for name, own in (("model.embed_tokens", "token_embd"), ("lm_head", "output")):
        tensors[f"{name}.weight"] = embedding
        truth[f"{own}.weight"] = ("BF16", embedding.astype(np.float64))
    for name, own in (
        ("model.norm", "output_norm"),
        ("model.layers.0.input_layernorm", "blk.0.attn_norm"),
        ("model.layers.0.post_attention_layernorm", "blk.0.ffn_norm"),
    ):
        tensors[f"{name}.weight"] = rng.uniform(0.9, 1.1, 256).astype(BF16)
        truth[f"{own}.weight"] = ("F32", tensors[f"{name}.weight"].astype(np.float64))
    bias = rng.standard_normal(128).astype(np.float16)
    tensors["model.layers.0.self_attn.k_proj.bias"] = bias
    moved = bias.astype(np.float64).reshape(2, 2, 32).swapaxes(1, 2).reshape(128)
    truth["blk.0.attn_k.bias"] = ("F32", moved)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(32, np.float32)
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    truth["rope_freqs.weight"] = ("F32", llama3_factors(scaling))
    config = {**LLAMA, **COMPRESSED, "model_type": "llama", "rope_scaling": scaling}
    source = model(tmp_path / "m", tensors, config)
    out = tmp_path / "a.gguf"
    check(source, out, truth, arch="llama")
    fields = {key: field.contents() for key, field in GGUFReader(out).fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["llama.attention.head_count_kv"] == 2
    assert fields["llama.rope.dimension_count"] == 64
    with LlamaModel(out, n_ctx=64) as loaded:
        assert np.isfinite(loaded.logits(np.arange(9))).all()


def test_an_architecture_that_is_not_the_models(
    rng: np.random.Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused; where none is named, it is said which one to name."""
    tensors, _ = packed_int4(rng)
    source = model(tmp_path / "m", named("a", tensors), {**COMPRESSED, **LLAMA})
    text = refusal(source, tmp_path, arch="qwen3")
    assert "config.json says model_type 'llama': that is --arch llama or mistral, not qwen3" in text
    assert main(["reblock", str(source), "-o", str(tmp_path / "a.gguf")]) == 0
    assert "with --arch llama they get llama.cpp's" in capsys.readouterr().err
    unknown = model(tmp_path / "n", named("a", tensors), {**COMPRESSED, "model_type": "other"})
    assert main(["reblock", str(unknown), "-o", str(tmp_path / "b.gguf")]) == 0
    assert "--arch" not in capsys.readouterr().err


def test_experts_are_stacked(rng: np.random.Generator, tmp_path: Path) -> None:
    config = {
        **LLAMA,
        **COMPRESSED,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 3,
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "rope_scaling": {
            "type": "yarn",
            "factor": 32,
            "mscale_all_dim": 1,
            "original_max_position_embeddings": 4096,
        },
    }
    tensors: dict[str, Array] = {}
    expected = []
    for expert in (1, 0, 2):
        found, weights = packed_int4(rng)
        tensors |= named(f"model.layers.0.mlp.experts.{expert}.up_proj", found)
        expected.append((expert, weights))
    tensors["model.layers.0.mlp.gate.e_score_correction_bias"] = np.ones(3, np.float32)
    source = model(tmp_path / "m", tensors, config)
    stack = np.stack([weights for _, weights in sorted(expected, key=lambda pair: pair[0])])
    truth = {
        "blk.0.ffn_up_exps.weight": ("Q4_0", stack),
        "blk.0.exp_probs_b.bias": ("F32", np.ones(3)),
    }
    check(source, tmp_path / "a.gguf", truth, arch="kimi")
    fields = {
        key: field.contents() for key, field in GGUFReader(tmp_path / "a.gguf").fields.items()
    }
    assert fields["deepseek2.attention.key_length"] == 48
    assert fields["deepseek2.expert_gating_func"] == 2
    assert fields["deepseek2.rope.scaling.type"] == "yarn"
    assert type(fields["deepseek2.rope.scaling.factor"]) is float
    assert fields["deepseek2.rope.scaling.original_context_length"] == 4096
    assert fields["deepseek2.rope.scaling.yarn_log_multiplier"] == np.float32(0.1)
    for leaf in ("weight_packed", "weight_scale", "weight_shape"):
        del tensors[f"model.layers.0.mlp.experts.1.up_proj.{leaf}"]
    source = model(tmp_path / "m", tensors, config)
    assert "expert 1 is missing" in refusal(source, tmp_path, arch="kimi")


@pytest.mark.parametrize("value", ["x", -1, 0, 2**40, None, [1], {"a": 1}, True, 1.5])
@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads", "rope_scaling"])
def test_strange_configurations(
    key: str, value: Any, rng: np.random.Generator, tmp_path: Path
) -> None:
    tensors, _ = packed_int4(rng)
    other = {"type": value} if key == "rope_scaling" else value
    config = {**LLAMA, **COMPRESSED, key: other}
    source = model(tmp_path / "m", named("model.layers.0.mlp.up_proj", tensors), config)
    if key == "rope_scaling" and value is None:
        reblock(source, tmp_path / "a.gguf", arch="llama")
        return
    assert f"config.json: {key}" in refusal(source, tmp_path, arch="llama")


def test_names_without_a_place_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, _ = packed_int4(rng)
    source = model(
        tmp_path / "m", named("model.layers.0.strange", tensors), {**LLAMA, **COMPRESSED}
    )
    assert "'model.layers.0.strange.weight' has no place" in refusal(source, tmp_path, arch="llama")

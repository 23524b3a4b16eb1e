"""Folders of quantized safetensors, and what becomes of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover.errors import RecoverError
from tests.support.hf_folders import write_arrays
from tests.support.packed_weights import Array
from tests.support.reblock_files import read_gguf, reblock


def model(folder: Path, tensors: dict[str, Array], config: dict[str, Any] | None = None) -> Path:
    """A model folder."""
    folder.mkdir(exist_ok=True)
    write_arrays(folder / "model.safetensors", dict(sorted(tensors.items())))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def check(source: Path, out: Path, truth: dict[str, tuple[str, Array]], **options: Any) -> Any:
    """Convert, and compare each weight with the truth in float64."""
    result = reblock(source, out, **options)
    assert result.exact
    assert all(tensor.verified for tensor in result.tensors)
    found = read_gguf(out)
    assert set(found) == set(truth)
    for name, (kind, weights) in truth.items():
        assert found[name][0] == kind, name
        assert np.array_equal(found[name][1].astype(np.float64), weights), name
    return result


def refusal(source: Path, folder: Path, **options: Any) -> str:
    out = folder / "refused"
    out.mkdir()
    with pytest.raises(RecoverError) as caught:
        reblock(source, out / "a.gguf", **options)
    assert not list(out.iterdir())
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 600
    return text


def gptq_config(n_bits: int = 4, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "gptq", "bits": n_bits, **more}}


def named(name: str, tensors: dict[str, Array]) -> dict[str, Array]:
    return {f"{name}.{leaf}": each for leaf, each in tensors.items()}


COMPRESSED = {"quantization_config": {"quant_method": "compressed-tensors"}, "model_type": "kimi"}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}

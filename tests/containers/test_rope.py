"""Rotary embeddings of GGUF files, as ``config.json`` says them."""

import math
from typing import Any

import numpy as np
import pytest

from recover.containers.huggingface.rope import rope_entries
from recover.containers.model import ArrayTensor
from recover.errors import SafetensorsError
from recover.quants import type_by_name


class Said:
    """A file that says this."""

    def __init__(self, architecture: str = "llama", factors: Any = None, **values: Any) -> None:
        self.architecture = architecture
        self.tensors = {
            name: ArrayTensor(name, (each.size,), type_by_name("F32"), each.view(np.uint8))
            for name, each in (factors or {}).items()
        }
        self.values = {f"rope.{key.replace('__', '.')}": value for key, value in values.items()}

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        assert isinstance(value, int)
        return value

    def number(self, key: str, default: float | None = None) -> float | None:
        value = self.values.get(key)
        return default if value is None else float(str(np.float32(value)))


def factors(n: int, base: float, factor: float, low: float, high: float, context: int) -> Any:
    """As llama.cpp's converter computes them."""
    found = []
    for i in range(n):
        wave = 2 * math.pi * base ** (i / n)
        if wave < context / high:
            found.append(1.0)
        elif wave > context / low:
            found.append(factor)
        else:
            smooth = (context / wave - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


@pytest.mark.parametrize("n", [64, 32, 8])
@pytest.mark.parametrize(
    ("factor", "low", "high", "context"),
    [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (4.0, 1.0, 3.0, 3000), (16.0, 1.0, 8.0, 512)],
)
def test_llama_3(n: int, factor: float, low: float, high: float, context: int) -> None:
    wanted = factors(n, 5e5, factor, low, high, context)
    said = Said(factors={"rope_freqs.weight": wanted}, freq_base=5e5)
    scaling = rope_entries(said)["rope_scaling"]
    assert scaling["rope_type"] == "llama3"
    again = factors(
        n,
        5e5,
        scaling["factor"],
        scaling["low_freq_factor"],
        scaling["high_freq_factor"],
        scaling["original_max_position_embeddings"],
    )
    np.testing.assert_allclose(again, wanted, rtol=1e-5)
    if n == 64:
        assert scaling["original_max_position_embeddings"] == context
        assert scaling["high_freq_factor"] == high


def test_factors_of_another_kind_are_refused() -> None:
    odd = np.linspace(1, 3, 32).astype(np.float32)
    with pytest.raises(SafetensorsError, match="--config"):
        rope_entries(Said(factors={"rope_freqs.weight": odd}))


def test_kinds_of_scaling() -> None:
    plain = rope_entries(Said())
    assert plain == {"rope_theta": 10000.0, "rope_scaling": None}
    assert rope_entries(Said("gemma3"))["rope_theta"] == 1e6
    linear = rope_entries(Said(scaling__type="linear", scaling__factor=8.0))
    assert linear["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    older = rope_entries(Said(scale_linear=4.0))
    assert older["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert rope_entries(Said(scaling__type="none"))["rope_scaling"] is None
    with pytest.raises(SafetensorsError, match="longrope"):
        rope_entries(Said(scaling__type="longrope"))


def test_yarn() -> None:
    said = Said(
        "deepseek2",
        scaling__type="yarn",
        scaling__factor=40.0,
        scaling__original_context_length=4096,
        scaling__yarn_log_multiplier=np.float32(0.0707),
        scaling__yarn_beta_fast=32.0,
    )
    assert rope_entries(said)["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    }


def test_longrope() -> None:
    lists = {
        f"rope_factors_{which}.weight": np.array([1.1, 2.7], np.float32)
        for which in ("short", "long")
    }
    entries = rope_entries(Said("phi3", lists, scaling__original_context_length=4096))
    assert entries["original_max_position_embeddings"] == 4096
    assert entries["rope_scaling"] == {
        "type": "longrope",
        "short_factor": [1.1, 2.7],
        "long_factor": [1.1, 2.7],
    }

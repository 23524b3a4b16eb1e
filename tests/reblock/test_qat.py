"""Weights trained to be quantized, published as BF16: their codes come back, all of them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray

from recover.containers.gguf.reader import open_gguf
from recover.inputs.originals.fp4 import find_fp4
from recover.inputs.originals.grid import Floats, find_grid
from tests.naive.grids import stored_bytes
from tests.oracle import libggml
from tests.oracle.llama_cpp import LlamaModel
from tests.support.packed_weights import BF16, Array
from tests.support.quantized_folders import model
from tests.support.random_folders import folder_of, golden
from tests.support.reblock_files import read_gguf, reblock

N, K = 160, 1024
Generator = np.random.Generator
U8 = NDArray[np.uint8]


def q4_0(rng: Generator, n: int = N, k: int = K) -> tuple[U8, Array]:
    """Blocks of Q4_0 by ggml, whose scale is the largest weight over -8, and what they mean."""
    weights = (0.02 * rng.standard_t(6, (n, k))).astype(BF16).astype(np.float32)
    raw = libggml.quantize(2, weights).reshape(-1, 18)
    return raw, libggml.dequantize(2, raw.reshape(-1)).reshape(n, k)


def codes(raw: U8) -> NDArray[np.int64]:
    return np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], 1).astype(np.int64) - 8


def file_blocks(path: Path) -> U8:
    (tensor,) = GGUFReader(path).tensors
    assert tensor.tensor_type.name == "Q4_0"
    return np.array(tensor.data).reshape(-1, 18)


def test_codes_of_q4_0_come_back(rng: Generator, tmp_path: Path) -> None:
    raw, weights = q4_0(rng)
    source = model(tmp_path / "m", {"a.weight": weights.astype(BF16)})
    result = reblock(source, tmp_path / "a.gguf")
    assert result.exact
    found = file_blocks(tmp_path / "a.gguf")
    assert np.array_equal(codes(found), codes(raw))
    assert np.array_equal(found, raw)


def test_blocks_of_few_codes_keep_them(rng: Generator, tmp_path: Path) -> None:
    """Codes with a factor in common are told by their extreme, -8 as in all other blocks."""
    raw, weights = q4_0(rng)
    sparse = rng.random(len(raw)) < 0.03
    few = np.where(rng.random((len(raw), 32)) < 0.9, 0, -8)[sparse]
    few[:, 5] = -8
    d = np.ascontiguousarray(raw[:, :2]).view(np.float16).astype(np.float32)
    weights.reshape(-1, 32)[sparse] = few * d[sparse]
    source = model(tmp_path / "m", {"a.weight": weights.astype(BF16)})
    reblock(source, tmp_path / "a.gguf")
    found = codes(file_blocks(tmp_path / "a.gguf"))
    assert np.array_equal(found[sparse], few)
    assert np.array_equal(found[~sparse], codes(raw)[~sparse])


def test_touched_weights_do_not_change_other_codes(rng: Generator, tmp_path: Path) -> None:
    """One in 10,000 is no code times a scale any more."""
    raw, weights = q4_0(rng, 500)
    touched = rng.random(weights.shape) < 1e-4
    stored = weights.astype(BF16)
    stored[touched] = (0.05 * rng.standard_normal(int(touched.sum()))).astype(BF16)
    source = model(tmp_path / "m", {"a.weight": stored})
    kept = reblock(source, tmp_path / "kept.gguf")
    assert kept.exact
    assert kept.tensors[0].tensor.outtype.name == "BF16"
    warning, *_ = kept.to_json()["warnings"]
    assert "--allow-inexact keeps all their other codes, in Q4_0" in warning
    result = reblock(source, tmp_path / "a.gguf", allow_inexact=True)
    assert not result.exact
    assert not any("--allow-inexact" in each for each in result.to_json()["warnings"])
    assert not result.to_json()["tensors"][0]["exact"]
    assert 0 < result.tensors[0].n_different <= touched.sum()
    assert "single weights off the grid in rows" in result.tensors[0].reason
    assert f"{result.tensors[0].n_different} of {weights.size} weights differ" in (
        result.tensors[0].reason
    )
    kind, found = read_gguf(tmp_path / "a.gguf")["a.weight"]
    assert kind == "Q4_0"
    assert np.array_equal(found[~touched], weights[~touched])
    whole = ~touched.reshape(-1, 32).any(1)
    assert np.array_equal(file_blocks(tmp_path / "a.gguf")[whole], raw[whole])


@pytest.mark.parametrize("seed", range(4))
def test_touched_weights_that_look_like_codes_change_no_type(seed: int, tmp_path: Path) -> None:
    """Some are +8 beside -8, or make a scale that is no float16 number: few blocks of all."""
    rng = np.random.default_rng(seed)
    raw, weights = q4_0(rng, 500)
    touched = rng.random(weights.shape) < 5e-4
    stored = weights.astype(BF16)
    stored[touched] = (0.05 * rng.standard_normal(int(touched.sum()))).astype(BF16)
    source = model(tmp_path / "m", {"a.weight": stored})
    assert not reblock(source, tmp_path / "a.gguf", allow_inexact=True).exact
    kind, found = read_gguf(tmp_path / "a.gguf")["a.weight"]
    assert kind == "Q4_0"
    whole = ~touched.reshape(-1, 32).any(1)
    assert np.array_equal(file_blocks(tmp_path / "a.gguf")[whole], raw[whole])
    assert np.mean(found[~touched] == weights[~touched]) > 1 - 1e-4


def test_touched_weights_stay_floats_unless_allowed(rng: Generator, tmp_path: Path) -> None:
    _, weights = q4_0(rng, 500)
    stored = weights.astype(BF16)
    touched = rng.random(weights.shape) < 2e-3
    stored[touched] = (0.05 * rng.standard_normal(int(touched.sum()))).astype(BF16)
    source = model(tmp_path / "m", {"a.weight": stored})
    kept = reblock(source, tmp_path / "kept.gguf")
    assert kept.exact
    assert kept.tensors[0].tensor.outtype.name == "BF16"
    assert "times a scale per 32 weights, rounded to BF16, but" in kept.tensors[0].reason
    result = reblock(source, tmp_path / "a.gguf", allow_inexact=True)
    assert not result.exact
    assert result.tensors[0].tensor.outtype.name == "Q4_0"


def test_scales_that_were_float32(rng: Generator, tmp_path: Path) -> None:
    """They are no float16 numbers: the codes are kept where that is allowed, and it is said."""
    weights = 0.02 * rng.standard_normal((N, K)).reshape(-1, 32)
    largest = weights[np.arange(len(weights)), np.abs(weights).argmax(1)]
    d = (largest / -8).astype(np.float32)[:, None]
    q = np.clip(np.floor(weights / d + 8.5), 0, 15).astype(int) - 8
    stored = (q * d).astype(BF16).reshape(N, K)
    source = model(tmp_path / "m", {"a.weight": stored})
    kept = reblock(source, tmp_path / "kept.gguf")
    assert (kept.exact, kept.tensors[0].tensor.outtype.name) == (True, "BF16")
    result = reblock(source, tmp_path / "a.gguf", allow_inexact=True)
    assert "are no F16 numbers: every other code is kept" in result.tensors[0].reason
    assert result.tensors[0].relative_rmse < 2.0**-9
    found = file_blocks(tmp_path / "a.gguf")
    signs = np.sign(np.ascontiguousarray(found[:, :2]).view(np.float16)).astype(int)
    assert np.array_equal(codes(found) * signs, q * np.sign(d).astype(int))


def test_int4_of_kimi(rng: Generator, tmp_path: Path) -> None:
    """Groups of 32 whose scale is the largest weight over 7."""
    weights = 0.02 * rng.standard_normal((N, K)).reshape(-1, 32)
    d = (np.abs(weights).max(1) / 7).astype(BF16).astype(np.float64)[:, None]
    q = np.clip(np.rint(weights / d), -8, 7)
    source = model(tmp_path / "m", {"a.weight": (q * d).astype(BF16).reshape(N, K)})
    assert reblock(source, tmp_path / "a.gguf").exact
    kind, found = read_gguf(tmp_path / "a.gguf")["a.weight"]
    assert kind == "Q4_0"
    assert np.array_equal(found.reshape(-1, 32), q * d)


@pytest.mark.slow
def test_no_grid_in_a_hundred_million_continuous_weights() -> None:
    rng, n_seen = np.random.default_rng(1), 0
    for i in range(24):
        weights = 0.02 * rng.standard_t(5 if i % 2 else 30, (1024, 4096))
        raw = stored_bytes(weights, ("BF16", "F16", "F32")[i % 3])
        stored = Floats(raw, ("BF16", "F16", "F32")[i % 3], 4096)
        assert find_grid(stored) is None
        assert find_fp4(stored) is None
        n_seen += weights.size
    assert n_seen > 1e8


# Whole models of floats by llama.cpp's names.

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "mistral",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}


@pytest.mark.inference
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tensors_are_those_of_the_converter(name: str, tmp_path: Path) -> None:
    known = golden(name)
    source, out = folder_of(known, tmp_path / name), tmp_path / "a.gguf"
    reblock(source, out, arch=ARCHITECTURES[name])
    tensors = open_gguf(out).tensors
    assert set(tensors) == set(known["tensors"]) - {"rope_freqs.weight"}
    for key, tensor in tensors.items():
        numbers = tensor.read(0, tensor.n_weights)
        assert hashlib.sha256(numbers.tobytes()).hexdigest() == known["tensors"][key][2], key
    with LlamaModel(out, n_ctx=64) as loaded:
        assert np.isfinite(loaded.logits(np.arange(9))).all()

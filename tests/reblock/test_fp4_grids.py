"""4-bit floats published as BF16: MXFP4 and NVFP4 that were multiplied out come back."""

from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray

from recover.cli import main
from tests.naive.grids import TYPES
from tests.oracle import libggml
from tests.support.packed_weights import BF16, Array
from tests.support.quantized_folders import LLAMA, model
from tests.support.reblock_files import read_gguf, reblock

N, K = 160, 1024
MXFP4, NVFP4 = 39, 40
E4M3 = ml_dtypes.float8_e4m3fn
LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
Generator = np.random.Generator
U8 = NDArray[np.uint8]

storage = pytest.mark.parametrize("type_name", TYPES)


class Made(NamedTuple):
    """A matrix in NVFP4, and what is stored of it."""

    codes: NDArray[np.int64]
    """Blocks of 16, sign included."""
    scales: Array
    """As E4M3."""
    common: np.float32
    weights: Array
    """Code times both scales, in float64."""
    stored: Array


def continuous(rng: Generator, n: int = N, k: int = K) -> Array:
    return (0.02 * rng.standard_t(6, (n, k))).astype(BF16).astype(np.float32)


def by_ggml(rng: Generator, kind: int, n: int = N, factor: float = 1) -> tuple[U8, Array]:
    """Stored blocks and what they mean."""
    raw = libggml.quantize(kind, np.float32(factor) * continuous(rng, n))
    return raw.reshape(-1), libggml.dequantize(kind, raw.reshape(-1)).reshape(n, K)


def nvfp4(rng: Generator, type_name: str = "BF16", *, in_steps: bool = False) -> Made:
    """By ModelOpt's rule: the scale of the matrix is its largest weight over 6 x 448.

    in_steps: both scales are multiplied and rounded before they meet a code.
    """
    blocks = continuous(rng).astype(np.float64).reshape(-1, 16)
    common = np.float32(np.abs(blocks).max() / (6 * 448))
    scales = (np.abs(blocks).max(1) / 6 / common).astype(E4M3)
    both = scales.astype(np.float64) * np.float64(common)
    codes = np.abs(np.abs(blocks / both[:, None])[..., None] - LEVELS).argmin(-1)
    levels = np.where(np.signbit(blocks), -1, 1) * LEVELS[codes]
    kind = TYPES[type_name]
    factors = both.astype(np.float32).astype(kind).astype(np.float64) if in_steps else both
    stored = (levels * factors[:, None]).astype(np.float32).astype(kind).reshape(N, K)
    weights = (levels * both[:, None]).reshape(N, K)
    return Made(codes | np.where(np.signbit(blocks), 8, 0), scales, common, weights, stored)


def only_blocks(path: Path, type_name: str) -> U8:
    tensor = GGUFReader(path).tensors[0]
    assert tensor.tensor_type.name == type_name
    return np.array(tensor.data).reshape(-1)


def check_nvfp4(path: Path, made: Made) -> None:
    """All codes, block scales and the scale of the matrix."""
    raw = only_blocks(path, "NVFP4").reshape(-1, 36)
    assert np.array_equal(raw[:, :4].reshape(-1), made.scales.view(np.uint8))
    nibbles = raw[:, 4:].reshape(-1, 8)
    assert np.array_equal(np.concatenate((nibbles & 15, nibbles >> 4), 1), made.codes)
    (beside,) = read_gguf(path)["a.scale"][1]
    assert beside == made.common


@storage
def test_mxfp4_comes_back(type_name: str, rng: Generator, tmp_path: Path) -> None:
    raw, weights = by_ggml(rng, MXFP4)
    source = model(tmp_path / "m", {"a.weight": weights.astype(TYPES[type_name])})
    result = reblock(source, tmp_path / "a.gguf")
    assert result.exact
    assert result.tensors[0].n_different == 0
    assert np.array_equal(only_blocks(tmp_path / "a.gguf", "MXFP4"), raw)
    entry = result.to_json()["tensors"][0]
    assert (entry["from"], entry["to"], entry["group"]) == (type_name, "MXFP4", 32)
    assert "4-bit floats times a scale per 32 weights" in entry["reason"]


@storage
def test_nvfp4_comes_back(type_name: str, rng: Generator, tmp_path: Path) -> None:
    made = nvfp4(rng, type_name)
    source = model(tmp_path / "m", {"a.weight": made.stored})
    result = reblock(source, tmp_path / "a.gguf")
    assert result.exact
    assert result.tensors[0].n_different == 0
    check_nvfp4(tmp_path / "a.gguf", made)


def test_products_that_were_rounded_twice(tmp_path: Path) -> None:
    """One of them, as float32, is half-way between two BF16 numbers: the next scale explains it."""
    made = nvfp4(np.random.default_rng(13))
    source = model(tmp_path / "m", {"a.weight": made.stored})
    assert reblock(source, tmp_path / "a.gguf").exact
    (beside,) = read_gguf(tmp_path / "a.gguf")["a.scale"][1]
    assert abs(beside / made.common - 1) < 2.0**-22
    assert beside != made.common


@pytest.mark.parametrize("type_name", ["BF16", "F32"])
def test_scales_that_were_multiplied_first(type_name: str, rng: Generator, tmp_path: Path) -> None:
    made = nvfp4(rng, type_name, in_steps=True)
    source = model(tmp_path / "m", {"a.weight": made.stored})
    result = reblock(source, tmp_path / "a.gguf")
    assert result.exact
    assert f"multiplied and rounded to {type_name} first" in result.tensors[0].reason
    check_nvfp4(tmp_path / "a.gguf", made)


def test_nvfp4_of_ggml_has_no_scale_beside(rng: Generator, tmp_path: Path) -> None:
    raw, weights = by_ggml(rng, NVFP4, factor=100)
    source = model(tmp_path / "m", {"a.weight": weights.astype(BF16)})
    assert reblock(source, tmp_path / "a.gguf").exact
    assert set(read_gguf(tmp_path / "a.gguf")) == {"a.weight"}
    assert np.array_equal(only_blocks(tmp_path / "a.gguf", "NVFP4"), raw)


def test_blocks_of_few_codes_keep_them(rng: Generator, tmp_path: Path) -> None:
    """Codes that would do with a coarser scale have the scale that all other blocks have."""
    _, weights = by_ggml(rng, MXFP4)
    blocks = np.abs(weights).reshape(-1, 32)
    is_small = (blocks < blocks.max(1, keepdims=True)) & (rng.random((len(blocks), 1)) < 0.03)
    weights[is_small.reshape(weights.shape)] = 0
    source = model(tmp_path / "m", {"a.weight": weights.astype(BF16)})
    assert reblock(source, tmp_path / "a.gguf").exact
    raw = libggml.quantize(MXFP4, weights).reshape(-1)
    assert np.array_equal(only_blocks(tmp_path / "a.gguf", "MXFP4"), raw)


@pytest.mark.parametrize("kind", ["MXFP4", "NVFP4"])
def test_touched_weights(kind: str, rng: Generator, tmp_path: Path) -> None:
    """Kept as they are; if allowed all other codes; with a wanted type rows apart."""
    if kind == "MXFP4":
        weights = by_ggml(rng, MXFP4)[1].astype(np.float64)
        stored = weights.astype(BF16)
    else:
        made = nvfp4(rng)
        weights, stored = made.weights, made.stored
    touched = rng.random(weights.shape) < 1e-4
    touched[0, 5] = True
    stored[touched] = (0.05 * rng.standard_normal(int(touched.sum()))).astype(BF16)
    source, out = model(tmp_path / "m", {"a.weight": stored}), tmp_path / "a.gguf"
    kept = reblock(source, out)
    assert kept.exact
    assert kept.tensors[0].tensor.outtype.name == "BF16"
    assert f"keeps all their other codes, in {kind}" in kept.to_json()["warnings"][0]

    result = reblock(source, out, allow_inexact=True)
    assert not result.exact
    assert 0 < result.tensors[0].n_different <= touched.sum()
    found = read_gguf(out)
    common = found["a.scale"][1].astype(np.float64) if kind == "NVFP4" else 1.0
    assert found["a.weight"][0] == kind
    assert np.array_equal((found["a.weight"][1] * common)[~touched], weights[~touched])

    assert reblock(source, out, outtype=kind).exact
    found = read_gguf(out)
    rows = found["a.weight.float_row_index"][1].astype(int)
    assert set(np.flatnonzero(touched.any(1))) >= set(rows)
    assert np.array_equal(found["a.weight.float_rows"][1], stored[rows].astype(np.float32))
    on = np.delete(np.arange(N), rows)
    common = found["a.weight.grid_rows.scale"][1].astype(np.float64) if kind == "NVFP4" else 1.0
    whole = ~touched[on]
    assert np.array_equal((found["a.weight.grid_rows"][1] * common)[whole], weights[on][whole])


def test_rows_that_were_replaced(rng: Generator, tmp_path: Path) -> None:
    """Whole rows without a grid get the nearest codes, and the error is told."""
    raw, weights = by_ggml(rng, MXFP4)
    stored = weights.astype(BF16)
    stored[7] = (0.02 * rng.standard_normal(K)).astype(BF16)
    source, out = model(tmp_path / "m", {"a.weight": stored}), tmp_path / "a.gguf"
    result = reblock(source, out, allow_inexact=True)
    found = only_blocks(out, "MXFP4").reshape(N, -1)
    others = np.delete(np.arange(N), 7)
    assert np.array_equal(found[others], raw.reshape(N, -1)[others])
    assert np.array_equal(
        read_gguf(out)["a.weight"][1][7],
        libggml.dequantize(
            MXFP4, libggml.quantize(MXFP4, stored[7:8].astype(np.float32)).reshape(-1)
        ),
    )
    assert "32 whole runs off the grid in rows 7" in result.tensors[0].reason


def test_numbers_that_are_not_finite_are_never_rounded(
    rng: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = by_ggml(rng, MXFP4)[1].astype(BF16)
    stored[3, 3] = np.nan
    source = model(tmp_path / "m", {"a.weight": stored})
    assert reblock(source, tmp_path / "a.gguf").exact
    command = ["reblock", str(source), "-o", str(tmp_path / "b.gguf"), "--allow-inexact"]
    assert main(command) == 1
    assert "holds numbers that are not finite" in capsys.readouterr().err
    assert not (tmp_path / "b.gguf").exists()


@pytest.mark.parametrize("seed", range(3))
@storage
def test_other_numbers_are_not_taken_for_4_bit_floats(
    type_name: str, seed: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    weights = continuous(rng)
    d = (np.abs(weights.reshape(-1, 32)).max(1, keepdims=True) / 7).astype(BF16)
    d = d.astype(np.float64)
    int4 = (np.rint(weights.reshape(-1, 32) / d).clip(-7, 7) * d).reshape(N, K)
    ternary = np.where(np.abs(weights) < 0.01, 0, np.sign(weights)) * 0.03125
    few = np.clip(np.rint(weights / 0.01), -3, 3) * 0.0078125
    tensors = {"c.weight": weights, "i.weight": int4, "t.weight": ternary, "f.weight": few}
    stored = {name: each.astype(TYPES[type_name]) for name, each in tensors.items()}
    out = tmp_path / "a.gguf"
    assert reblock(model(tmp_path / "m", stored), out).exact
    kinds = {name: kind for name, (kind, _) in read_gguf(out).items()}
    # the type stays, or a smaller one of integers is found
    expected = {"i.weight": "Q4_0", "t.weight": "TQ2_0", "f.weight": "Q4_0"}
    assert kinds == {"c.weight": type_name, **expected}


def experts(rng: Generator) -> tuple[dict[str, Array], dict[str, Array], list[Any]]:
    """Experts of a layer, each with a scale of its own, and what the stacks mean."""
    tensors, truth, made = {}, {}, []
    for new, old in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        each = [nvfp4(rng) for _ in range(2)]
        for i, one in enumerate(each):
            tensors[f"model.layers.0.block_sparse_moe.experts.{i}.{old}.weight"] = one.stored
        truth[f"blk.0.ffn_{new}_exps"] = np.stack([one.weights for one in each])
        made.append(each)
    return tensors, truth, made


def test_stacked_experts(rng: Generator, tmp_path: Path) -> None:
    tensors, truth, _ = experts(rng)
    source, out = model(tmp_path / "m", tensors, LLAMA), tmp_path / "a.gguf"
    assert reblock(source, out, arch="llama").exact
    found = read_gguf(out)
    for name, expected in truth.items():
        kind, weights = found[f"{name}.weight"]
        assert kind == "NVFP4"
        beside = found[f"{name}.scale"][1].astype(np.float64)[:, None, None]
        assert np.array_equal(weights * beside, expected)


def test_a_stack_with_a_touched_expert_stays_as_it_is(rng: Generator, tmp_path: Path) -> None:
    tensors, _, _ = experts(rng)
    touched = next(iter(tensors))
    tensors[touched][0, 0] = 0.2
    source, out = model(tmp_path / "m", tensors, LLAMA), tmp_path / "a.gguf"
    assert reblock(source, out, arch="llama").exact
    kinds = {name: kind for name, (kind, _) in read_gguf(out).items() if "exps" in name}
    gate = kinds.pop("blk.0.ffn_gate_exps.weight")
    assert gate == "BF16"
    assert {kind for name, kind in kinds.items() if name.endswith("weight")} == {"NVFP4"}
    result = reblock(source, out, arch="llama", allow_inexact=True)
    assert not result.exact
    assert read_gguf(out)["blk.0.ffn_gate_exps.weight"][0] == "NVFP4"

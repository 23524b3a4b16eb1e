"""NF4 and FP4 weights of bitsandbytes: what their codes prove of the weights."""

import json
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from recover.containers.huggingface.formats import Matrix, read_matrix
from recover.containers.huggingface.formats.bitsandbytes import FP4, NF4, NF4_NESTED
from tests.support.encoders import bitsandbytes
from tests.support.foreign_modules import (
    FLOATS,
    Array,
    heavy_tailed,
    module_of,
    n_outside,
    rounded,
    state,
)
from tests.support.format_checks import check_matrix, check_widened, matrix_of
from tests.support.golden import golden
from tests.support.hostile_modules import check_hostile, is_refused

WAYS: dict[str, dict[str, Any]] = {
    "NF4, blocks of 64, nested": {},
    "NF4, blocks of 64": {"nested": False},
    "NF4, blocks of 128, nested": {"block": 128, "seen_as": "F16"},
    "NF4, blocks of 4096": {"block": 4096, "nested": False, "seen_as": "F32"},
    "FP4, blocks of 64, nested": {"kind": "fp4"},
    "FP4, blocks of 32": {"kind": "fp4", "block": 32, "nested": False},
}
STATE = "weight.quant_state.bitsandbytes__nf4"


def check(rng: np.random.Generator, shape: tuple[int, int], way: str) -> Matrix:
    w = heavy_tailed(rng, *shape)
    matrix = matrix_of(bitsandbytes.encode(w, **WAYS[way]))
    check_matrix(matrix, rounded(w, matrix.seen_as), within=0.08)
    for original in FLOATS:  # cast to what the encoder saw
        if original != matrix.seen_as:
            x = rounded(w, original)
            check_widened(matrix_of(bitsandbytes.encode(x, **WAYS[way])), x)
    return matrix


@pytest.mark.parametrize("way", WAYS)
def test_weights_lie_in_their_cells(way: str, rng: np.random.Generator) -> None:
    matrix = check(rng, (91, 1000), way)
    assert matrix.has_cells
    assert matrix.label == way
    assert matrix.seen_as == WAYS[way].get("seen_as", "BF16")
    kind = NF4_NESTED if way.endswith("nested") else NF4
    assert matrix.type is (FP4 if way.startswith("FP4") else kind)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_many_weights_lie_in_their_cells(way: str, rng: np.random.Generator) -> None:
    check(rng, (3000, 1701), way)


@pytest.mark.parametrize("name", ["nf4_nested", "nf4", "fp4_nested", "fp4"])
def test_bitsandbytes(name: str) -> None:
    case = golden(name)
    matrix = read_matrix(case.module)
    assert matrix is not None
    assert matrix.leaves == set(case.module.tensors) | matrix.leaves
    stated = state(matrix)
    np.testing.assert_array_equal(stated.value.reshape(case.decoded.shape), case.decoded)
    assert n_outside(stated, case.original) == 0


@pytest.mark.parametrize("name", ["nf4", "nf4_nested"])
def test_own_encoder_is_that_of_bitsandbytes(name: str) -> None:
    case = golden(name)
    how = {"block": 128, "nested": False, "seen_as": "F16"} if name == "nf4" else {}
    own = module_of(bitsandbytes.encode(case.original, **how))  # type: ignore[arg-type]
    assert own.tensors.keys() == case.module.tensors.keys()
    for leaf in ("weight", "weight.quant_map"):
        np.testing.assert_array_equal(own.tensors[leaf].raw, case.module.tensors[leaf].raw)
    # Nested codes are looked up by 16 bits only.
    found, expected = (each.tensors["weight.absmax"].raw for each in (own, case.module))
    assert np.count_nonzero(found != expected) <= (3 if name == "nf4_nested" else 0)


def test_the_only_outermost_code_is_the_largest_weight(rng: np.random.Generator) -> None:
    w = rounded(heavy_tailed(rng, 64, 128), "BF16")
    stated = state(matrix_of(bitsandbytes.encode(w, nested=False)))
    blocks = w.reshape(-1, 64)
    largest = np.abs(blocks).max(1, keepdims=True)
    n_outermost = np.count_nonzero(np.abs(stated.value.reshape(-1, 64)) == largest, axis=1)
    known = (np.abs(blocks) == largest) & (n_outermost == 1)[:, None]
    assert np.count_nonzero(known) > 20
    width = (stated.upper - stated.lower).reshape(-1, 64)
    assert np.all(width[known] < 1e-5 * np.abs(blocks[known]))
    assert np.all(width[~known] > 0.01 * np.broadcast_to(largest, width.shape)[~known])


def test_blocks_of_zeros_are_known() -> None:
    w = np.zeros((4, 64), np.float32)
    w[0, 5] = 1
    stated = state(matrix_of(bitsandbytes.encode(w, nested=False)))
    assert np.all(np.abs(stated.upper[64:] - stated.lower[64:]) < 1e-30)
    assert n_outside(stated, w) == 0


def test_bytes_may_be_stored_as_other_numbers(rng: np.random.Generator) -> None:
    """As for training in shards: `quant_storage`."""
    arrays = bitsandbytes.encode(heavy_tailed(rng, 8, 128))
    other = {**arrays, "weight": arrays["weight"].reshape(-1).view(ml_dtypes.bfloat16)[:, None]}
    for one, same in zip(state(matrix_of(arrays)), state(matrix_of(other)), strict=True):
        np.testing.assert_array_equal(one, same)


def with_state(arrays: dict[str, Array], **changes: object) -> dict[str, Array]:
    told = json.loads(arrays[STATE].tobytes()) | changes
    text = json.dumps(told).encode()
    return {**arrays, STATE: np.frombuffer(text, np.uint8)}


@pytest.mark.parametrize(
    "changes",
    [
        {"quant_type": "fp4"},
        {"quant_type": ["nf4"]},
        {"blocksize": 63},
        {"blocksize": 1 << 40},
        {"blocksize": None},
        {"shape": [8]},
        {"shape": [-8, -128]},
        {"shape": [1 << 47, 1 << 47]},
        {"shape": None},
        {"dtype": "float8"},
        {"dtype": ["float16"]},
        {"nested_blocksize": 0},
        {"nested_offset": "1"},
        {"nested_offset": float("nan")},
        {"nested_offset": 1 << 2000},
    ],
    ids=str,
)
def test_states_that_say_something_else(
    changes: dict[str, object], rng: np.random.Generator
) -> None:
    arrays = bitsandbytes.encode(heavy_tailed(rng, 8, 128))
    assert not is_refused(module_of(arrays))
    assert is_refused(module_of(with_state(arrays, **changes)))


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"null", b"\xff", b"{}" + b" " * 70_000])
def test_states_that_are_none(text: bytes, rng: np.random.Generator) -> None:
    arrays = bitsandbytes.encode(heavy_tailed(rng, 8, 128))
    assert is_refused(module_of({**arrays, STATE: np.frombuffer(text, np.uint8)}))


def test_levels_of_another_program_confine_nothing(rng: np.random.Generator) -> None:
    """They are decoded as stored; errors are expected as of codes that make up for others."""
    arrays = bitsandbytes.encode(heavy_tailed(rng, 8, 128), nested=False)
    levels = np.linspace(-1, 1, 16, dtype=np.float32)
    matrix = matrix_of({**arrays, "weight.quant_map": levels})
    stated = state(matrix)
    assert not matrix.has_cells
    assert np.isinf(stated.lower).all()
    assert np.isinf(stated.upper).all()
    packed = arrays["weight"].reshape(-1)
    codes = np.stack([packed >> 4, packed & 15], 1).reshape(-1)
    scales = np.repeat(arrays["weight.absmax"], 64)
    np.testing.assert_allclose(stated.value, levels[codes] * scales, 1e-6)
    inner = (codes > 0) & (codes < 15)
    uniform = np.square(scales * np.float32(2 / 15)) / 12
    np.testing.assert_allclose(stated.variance[inner], 1.45 * uniform[inner], 0.02)


def test_other_levels_are_refused(rng: np.random.Generator) -> None:
    arrays = bitsandbytes.encode(heavy_tailed(rng, 8, 128))
    other = {**arrays, "weight.quant_map": arrays["weight.quant_map"] * np.float32(1.001)}
    assert is_refused(module_of(other))
    falling = {**arrays, "weight.nested_quant_map": arrays["weight.nested_quant_map"][::-1]}
    assert is_refused(module_of(falling))


def test_damaged_modules(rng: np.random.Generator) -> None:
    for nested in (True, False):
        arrays = bitsandbytes.encode(heavy_tailed(rng, 7, 96), nested=nested)
        assert check_hostile(arrays) > 60
    module = module_of(arrays)
    for bits in (0x7F800000, 0x7FC00000, 0xBF800000, 1):  # infinite, NaN, negative, subnormal
        raw = np.full(module.tensors["weight.absmax"].n_weights, bits, np.uint32).view(np.uint8)
        broken = replace(module.tensors["weight.absmax"], raw=raw)
        tensors = {**module.tensors, "weight.absmax": broken}
        assert not is_refused(replace(module, tensors=tensors))

"""Types of ik_llama.cpp: decoded as that program does, bit for bit; what they prove holds."""

from pathlib import Path

import numpy as np
import pytest

from recover._compiled.jit import kernel
from recover.containers.rows import blocks_of, type_of_blocks
from recover.quants import (
    BlockIntervals,
    F32Array,
    InterleavedType,
    Stated,
    all_types,
    dequantize,
    state_all,
    type_by_name,
)
from recover.quants._trellis import fill_group
from tests.golden.make_ik import NAMES, NO_SIGNS_OF_ZERO, digest
from tests.support.fork_files import names, rows_of

SHARED = Path(__file__).parents[3] / "shared" / "golden-ik"


def decoded_of(name: str) -> F32Array:
    rows = rows_of(name)
    n_rows, n = rows.original.shape
    blocks = blocks_of(rows.raw.reshape(-1), rows.kind, n, 0, n_rows * n)
    return dequantize(blocks, type_of_blocks(rows.kind)).reshape(n_rows, n)


def test_all_types_have_golden_rows() -> None:
    forks = {kind.name for kind in all_types() if "ik_llama.cpp" in kind.writer}
    without = {"MXFP4_R8"}  # that program's own function for it is defective
    inside = {kind.plain.name for kind in all_types() if isinstance(kind, InterleavedType)}
    assert forks - without - inside <= set(names())
    assert len(names()) >= 50


@pytest.mark.parametrize("name", names())
def test_decoded_as_that_program_does(name: str) -> None:
    assert digest(name, decoded_of(name)) == rows_of(name).decoded


@pytest.mark.parametrize("name", names())
def test_sizes_are_those_of_the_golden_rows(name: str) -> None:
    rows = rows_of(name)
    assert rows.kind.tensor_bytes(rows.original.shape[::-1]) == rows.raw.size


STATED = [
    name for name in names() if isinstance(type_of_blocks(rows_of(name).kind), BlockIntervals)
]


@pytest.mark.parametrize("name", STATED)
def test_no_original_is_outside(name: str) -> None:
    rows = rows_of(name)
    kind, x = type_of_blocks(rows.kind), rows.original.reshape(-1)
    assert isinstance(kind, BlockIntervals)
    stated = Stated.of(x.size)
    blocks = blocks_of(rows.raw.reshape(-1), rows.kind, rows.original.shape[1], 0, x.size)
    state_all(blocks, kind, stated)
    assert np.count_nonzero((x < stated.lower) | (x > stated.upper)) == 0
    is_bounded = np.isfinite(stated.lower) | np.isfinite(stated.upper)
    assert is_bounded.any() == kind.has_cells
    assert (is_bounded | (stated.variance > 0)).all()
    used = np.isfinite(stated.variance)
    if "BN" not in name:  # whose originals were of three values
        off = np.square(x - stated.value, dtype=np.float64)[used] / stated.variance[used]
        assert 0.2 < np.median(off) < 1  # 0.45 of normal errors, 0.75 of uniform ones


@pytest.mark.parametrize("name", names())
def test_parts_are_those_of_the_whole(name: str) -> None:
    """Also ranges that begin and end within rows."""
    rows = rows_of(name)
    raw, (n_rows, n), plain = rows.raw.reshape(-1), rows.original.shape, type_of_blocks(rows.kind)
    whole = decoded_of(name).reshape(-1)
    size = plain.block_size
    for start, end in ((0, size), (n - size, n + size), (n, n_rows * n), (3 * n + size, 4 * n)):
        part = dequantize(blocks_of(raw, rows.kind, n, start, end), plain)
        np.testing.assert_array_equal(part.view(np.uint32), whole[start:end].view(np.uint32))


@pytest.mark.parametrize("name", names())
def test_any_bytes_are_decoded(name: str) -> None:
    kind = rows_of(name).kind
    plain, n_rows = type_of_blocks(kind), 2 * kind.rows_interleaved
    rng = np.random.default_rng(5)
    for fill in (None, 0, 255):
        raw = rng.integers(0, 256, kind.tensor_bytes((512, n_rows)), np.uint8)
        if fill is not None:
            raw[:] = fill
        blocks = blocks_of(raw, kind, 512, 0, 512 * n_rows)
        with np.errstate(all="ignore"):
            assert dequantize(blocks, plain).size == 512 * n_rows
            if isinstance(plain, BlockIntervals):
                stated = Stated.of(512 * n_rows)
                state_all(blocks, plain, stated)
                assert not (stated.lower > stated.upper).any()
                assert not (stated.variance < 0).any()


@kernel
def _group(seed: int, levels: F32Array) -> None:
    fill_group(seed, levels, False)


def test_generator_of_trellis_codes() -> None:
    """Computed here with integers of Python."""
    for seed in (0, 1, 4095, 32768, 65535):
        levels, state = np.empty(8, np.float32), seed + 4096
        _group(seed, levels)
        expected = []
        for _ in range(8):
            state = state * 0xCBAC1FED % 2**32
            expected.append(sum((state >> shift) & 0x3F for shift in (0, 8, 16, 24)) - 126)
        assert levels.tolist() == expected


def test_levels_of_iq6_k_are_those_of_the_encoder() -> None:
    """The row function's cubic polynomial gives other ones, up to half a level away."""
    q = np.arange(64)
    cubic = ((0.0011972 * q - 0.11218) * q + 6.2568) * q - 127
    from recover.quants.iq6_k import LEVELS

    assert 0.3 < np.abs(cubic - LEVELS).max() < 0.5


ARRAYS = [
    path for path in sorted(SHARED.glob("*.npz")) if path.stem not in ("tables", "interleave")
]


@pytest.mark.slow
@pytest.mark.parametrize("path", ARRAYS, ids=lambda path: path.stem)
def test_whole_golden_arrays(path: Path) -> None:
    with np.load(path) as golden:
        kind = type_by_name(NAMES.get(path.stem, path.stem.upper()))
        decoded = golden["decoded_integers" if "decoded_integers" in golden else "decoded"]
        raw, x = golden["raw"], golden["original"].reshape(-1)
    n_rows, n = decoded.shape
    blocks, plain = blocks_of(raw.reshape(-1), kind, n, 0, n_rows * n), type_of_blocks(kind)
    found = dequantize(blocks, plain).reshape(n_rows, n)
    if kind.name in NO_SIGNS_OF_ZERO:
        found = found + np.float32(0)
    np.testing.assert_array_equal(found.view(np.uint32), decoded.view(np.uint32))
    if isinstance(plain, BlockIntervals):
        stated = Stated.of(x.size)
        state_all(blocks, plain, stated)
        assert np.count_nonzero((x < stated.lower) | (x > stated.upper)) == 0

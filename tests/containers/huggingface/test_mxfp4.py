"""Experts of gpt-oss are the blocks that GGUF files have of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from recover.containers.huggingface.reader import open_folder
from recover.errors import SafetensorsError
from recover.quants import type_by_name
from tests.support.foreign_modules import Array
from tests.support.hf_folders import write_arrays

LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
CONFIG = {"model_type": "gpt_oss", "num_hidden_layers": 1}
N_EXPERTS, N_ROWS, LENGTH = 3, 8, 64
STEM = "model.layers.0.mlp.experts."


def arrays(rng: np.random.Generator, n_rows: int = N_ROWS) -> tuple[Array, Array]:
    shape = N_EXPERTS, n_rows, LENGTH // 32
    blocks = rng.integers(0, 256, (*shape, 16), np.uint8)
    return blocks, rng.integers(100, 140, shape, np.uint8)


def decoded(blocks: Array, scales: Array) -> Array:
    """By definition: (experts, rows, row length)."""
    nibbles = np.stack([blocks & 15, blocks >> 4], -1).reshape(*scales.shape, 32)
    signs = np.where(nibbles & 8, np.float32(-1), np.float32(1))
    values = signs * LEVELS[nibbles & 7] * np.ldexp(1.0, scales.astype(int) - 127)[..., None]
    return values.reshape(*scales.shape[:2], -1).astype(np.float32)


def write(folder: Path, stored: dict[str, Array]) -> Path:
    folder.mkdir()
    write_arrays(folder / "model.safetensors", stored)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_blocks(rng: np.random.Generator, tmp_path: Path) -> None:
    fused, down = arrays(rng, 2 * N_ROWS), arrays(rng)
    stored = {
        f"{STEM}{name}_{part}": array
        for name, both in (("gate_up_proj", fused), ("down_proj", down))
        for part, array in zip(("blocks", "scales"), both, strict=True)
    }
    model = open_folder(write(tmp_path / "model", stored))
    whole = decoded(*fused)
    expected = {"gate": whole[:, 0::2], "up": whole[:, 1::2], "down": decoded(*down)}
    assert set(model.tensors) == {f"blk.0.ffn_{name}_exps.weight" for name in expected}
    assert not model.left_out
    for name, x in expected.items():
        tensor = model.tensors[f"blk.0.ffn_{name}_exps.weight"]
        assert tensor.type is type_by_name("MXFP4")
        assert tensor.dims == (LENGTH, N_ROWS, N_EXPERTS)
        assert tensor.n_bytes == 17 * x.size // 32
        assert np.array_equal(tensor.read(0, x.size), x.reshape(-1))
        assert np.array_equal(tensor.read(96, 224), x.reshape(-1)[96:224])


@pytest.mark.parametrize("change", ["missing", "rows", "dtype"])
def test_damaged(change: str, rng: np.random.Generator, tmp_path: Path) -> None:
    blocks, scales = arrays(rng)
    stored = {f"{STEM}down_proj_blocks": blocks, f"{STEM}down_proj_scales": scales}
    if change == "missing":
        del stored[f"{STEM}down_proj_scales"]
    elif change == "rows":
        stored[f"{STEM}down_proj_scales"] = scales[:, 1:]
    else:
        stored[f"{STEM}down_proj_blocks"] = blocks.astype(np.int32)
    with pytest.raises(SafetensorsError, match="down_proj_"):
        open_folder(write(tmp_path / "model", stored))


def test_scales_without_blocks_are_named(rng: np.random.Generator, tmp_path: Path) -> None:
    _, scales = arrays(rng)
    stored = {
        "model.norm.weight": np.ones(64, np.float32),
        f"{STEM}down_proj_scales": scales,
    }
    model = open_folder(write(tmp_path / "model", stored))
    assert model.left_out == (f"{STEM}down_proj_scales",)


@pytest.mark.parametrize("name", ["recipe.yaml", "quantize_config.json"])
def test_a_fingerprint_knows_what_tells_of_formats(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", {"model.norm.weight": np.ones(64, np.float32)})
    (folder / name).write_text("{}")
    before = open_folder(folder).fingerprint()
    (folder / name).write_text('{"bits": 4}')
    assert open_folder(folder).fingerprint() != before

"""Bounds of folders are those of what encoders saw where that is proven to be the original."""

import json
from pathlib import Path

import numpy as np
import pytest

from recover.bounds.plan import plan_bounds
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.inputs.alignment import align
from recover.inputs.completion import complete
from recover.inputs.open import open_model
from recover.inputs.recorded import Input
from recover.quants import F32Array, Stated
from tests.support.encoders import bitsandbytes, compressed_tensors
from tests.support.foreign_modules import Array, heavy_tailed, n_outside, rounded
from tests.support.gguf_files import stored, write_gguf
from tests.support.hf_folders import ONE_LAYER, write_arrays

NAME = "blk.0.ffn_down.weight"
CONFIG = ONE_LAYER | {"quantization_config": compressed_tensors.config("minmax")}


def write_folder(path: Path, arrays: dict[str, Array]) -> Path:
    path.mkdir()
    stem = "model.layers.0.mlp.down_proj"
    flat = {f"{stem}.{leaf}": each for leaf, each in arrays.items()}
    write_arrays(path / "model.safetensors", flat)
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "recipe.yaml").write_text(compressed_tensors.RECIPE)
    return path


def bounds_of(tensor: QuantizedTensor) -> Stated:
    stated = Stated.of(tensor.n_weights)
    tensor.intervals(0, tensor.n_weights, stated)
    return stated


def weights(kind: str) -> F32Array:
    return rounded(heavy_tailed(np.random.default_rng(3), 256, 512), kind)


@pytest.mark.parametrize("encoder", ["INT8", "NF4"])
@pytest.mark.parametrize(
    ("original", "beside", "is_known"),
    [("BF16", "Q8_0", True), ("BF16", "Q4_0", True), ("BF16", "Q4_K", False)]
    + [(kind, "Q8_0", False) for kind in ("F32", "F16")],
)
def test_bounds_are_narrow_only_where_the_bytes_prove_it(
    encoder: str, original: str, beside: str, is_known: bool, tmp_path: Path
) -> None:
    w = weights(original)
    arrays = compressed_tensors.encode(w, 8, "channel")
    if encoder == "NF4":
        arrays = bitsandbytes.encode(w)
    folder = write_folder(tmp_path / "folder", arrays)
    model = write_gguf(tmp_path / "model.gguf", {NAME: stored(beside, w)})
    opened = [open_model(folder), open_model(model)]
    aligned = align(opened)
    completed = complete(aligned.models, aligned.names, [])[0]
    tensor, before = completed.tensors[NAME], opened[0].tensors[NAME]
    assert isinstance(tensor, QuantizedTensor)
    assert isinstance(before, QuantizedTensor)
    assert tensor.is_as_seen == is_known
    found, wide = bounds_of(tensor), bounds_of(before)
    assert n_outside(found, w) == 0
    share = np.mean(found.upper - found.lower) / np.mean(wide.upper - wide.lower)
    assert share < 0.99 if is_known else share == 1
    record = json.loads(json.dumps(Input.of(opened[0], completed).to_record()))
    again = Input.from_record(record).open().tensors[NAME]
    assert np.array_equal(again.part(0, 4096), tensor.part(0, 4096))


def test_bounds_of_all_inputs_hold(tmp_path: Path) -> None:
    w = weights("BF16")
    folder = write_folder(tmp_path / "folder", compressed_tensors.encode(w, 8, "channel"))
    model = write_gguf(tmp_path / "model.gguf", {NAME: stored("Q8_0", w)})
    (tensor,) = plan_bounds([model, folder], n_threads=1).tensors
    assert len(tensor.sources) == 2
    assert not tensor.failures

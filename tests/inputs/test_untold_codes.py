"""Folders that do not say whether codes are plainly rounded weights: other inputs tell."""

import json
from pathlib import Path

import numpy as np
import pytest

from recover.bounds.plan import plan_bounds
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.containers.model import Model
from recover.inputs.alignment import align
from recover.inputs.completion import complete
from recover.inputs.open import open_model
from recover.inputs.recorded import Input
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from recover.quants import F32Array
from tests.support.encoders import compressed_tensors, gptq
from tests.support.encoders.mlx import pack
from tests.support.foreign_modules import Array, rounded
from tests.support.gguf_files import read_weights, stored, write_gguf
from tests.support.hf_folders import ONE_LAYER, write_arrays
from tests.support.layer_inputs import synthetic_block

NAME = "blk.0.ffn_down.weight"


def moved(w: F32Array, inputs: F32Array) -> dict[str, Array]:
    """GPTQ's codes in the arrays of compressed-tensors."""
    found = gptq.quantize(w, inputs, 4, 128)
    return {
        "weight_packed": pack(found.codes.astype(np.uint8), 4).view(np.int32),
        "weight_scale": found.scales.astype(np.float16),
        "weight_shape": np.array(w.shape, np.int64),
    }


@pytest.fixture(scope="module")
def weights() -> tuple[F32Array, F32Array]:
    """A matrix and the inputs of its layer."""
    block = synthetic_block(np.random.default_rng(5))
    return rounded(block.matrices["ffn_down"], "BF16"), block.inputs["ffn_down"]


def write_folder(
    path: Path, arrays: dict[str, Array], recipe: str = "", *, n_rows: int = 256
) -> Path:
    path.mkdir()
    stem = "model.layers.0.mlp.down_proj"
    flat = {f"{stem}.{leaf}": each for leaf, each in arrays.items()}
    write_arrays(path / "model.safetensors", flat)
    config = compressed_tensors.config("minmax")
    told = ONE_LAYER | {"hidden_size": n_rows, "quantization_config": config}
    (path / "config.json").write_text(json.dumps(told))
    if recipe:
        (path / "recipe.yaml").write_text(recipe)
    return path


def found_beside(model: Path, folder: Path) -> tuple[Model, QuantizedTensor]:
    aligned = align([open_model(model), open_model(folder)])
    completed = complete(aligned.models, aligned.names, [])[1]
    tensor = completed.tensors[NAME]
    assert isinstance(tensor, QuantizedTensor)
    return completed, tensor


@pytest.mark.parametrize("kind", ["Q2_K", "Q4_K", "Q8_0"])
def test_other_inputs_tell_how_codes_were_made(
    kind: str, weights: tuple[F32Array, F32Array], tmp_path: Path
) -> None:
    w, inputs = weights
    model = write_gguf(tmp_path / "model.gguf", {NAME: stored(kind, w)})
    plain = write_folder(tmp_path / "plain", compressed_tensors.encode(w))
    gptqs = write_folder(tmp_path / "gptq", moved(w, inputs))
    completed, tensor = found_beside(model, plain)
    assert tensor.has_cells
    assert tensor.type.name == "INT4"
    again = Input.from_record(
        json.loads(json.dumps(Input.of(open_model(plain), completed).to_record()))
    ).open()
    assert np.array_equal(again.tensors[NAME].part(0, 4096), tensor.part(0, 4096))
    tensor = found_beside(model, gptqs)[1]
    assert not tensor.has_cells
    assert tensor.type.name == "INT4 corrected"


def test_codes_of_another_model_are_not_told(
    weights: tuple[F32Array, F32Array], tmp_path: Path
) -> None:
    """Nor too few of them."""
    w, _ = weights
    model = write_gguf(tmp_path / "model.gguf", {NAME: stored("Q4_K", w)})
    other = write_folder(tmp_path / "other", compressed_tensors.encode(w[::-1]))
    assert not found_beside(model, other)[1].has_cells
    few = write_gguf(tmp_path / "few.gguf", {NAME: stored("Q4_K", w[:8])})
    folder = write_folder(tmp_path / "few", compressed_tensors.encode(w[:8]), n_rows=8)
    assert not found_beside(few, folder)[1].has_cells
    right = write_gguf(tmp_path / "right.gguf", {NAME: stored("Q4_K", w[::-1])})
    assert found_beside(right, other)[1].has_cells


def test_a_merge_uses_such_cells_and_bounds_do_not(
    weights: tuple[F32Array, F32Array], tmp_path: Path
) -> None:
    w, _ = weights
    model = write_gguf(tmp_path / "model.gguf", {NAME: stored("Q4_K", w)})
    arrays = compressed_tensors.encode(w)
    told = write_folder(tmp_path / "told", arrays, compressed_tensors.RECIPE)
    untold = write_folder(tmp_path / "untold", arrays)
    merged = []
    for folder in (told, untold):
        plan = plan_merge([model, folder], tmp_path / f"{folder.name}.gguf", outtype="f32")
        execute_merge(plan, n_threads=1)
        merged.append(read_weights(plan.output)[NAME])
    np.testing.assert_array_equal(merged[0], merged[1])
    (tensor,) = plan_bounds([model, untold], n_threads=1).tensors
    assert len(tensor.sources) == 1
    assert len(plan_bounds([model, told], n_threads=1).tensors[0].sources) == 2

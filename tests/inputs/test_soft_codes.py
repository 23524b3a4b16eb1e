"""Codes without cells: how far off they are is measured, whatever format they are stored in."""

import json
from pathlib import Path

import numpy as np
import pytest

from recover.containers.huggingface.tensors import QuantizedTensor
from recover.inputs.alignment import align
from recover.inputs.completion import complete
from recover.inputs.open import open_model
from recover.inputs.recorded import Input
from recover.inspect.report import inspect_files
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from recover.quants import F32Array, Stated
from tests.support.encoders import compressed_tensors, fp8, gptq
from tests.support.encoders.mlx import pack
from tests.support.foreign_modules import Array, rounded
from tests.support.gguf_files import read_weights, stored, write_gguf
from tests.support.hf_folders import ONE_LAYER, write_arrays
from tests.support.layer_inputs import synthetic_block

DOWN, UP = "blk.0.ffn_down.weight", "blk.0.ffn_up.weight"
NORM = "blk.0.ffn_norm.weight"
STEMS = {DOWN: "mlp.down_proj", UP: "mlp.up_proj", NORM: "post_attention_layernorm"}
GPTQ = "GPTQModifier: {}\n"
SMOOTHED = """default_stage:
  default_modifiers:
    SmoothQuantModifier:
      smoothing_strength: 0.8
      mappings:
      - !!python/tuple
        - ['re:.*gate_proj', 're:.*up_proj']
        - re:.*post_attention_layernorm
      ignore: []
    GPTQModifier:
      scheme: W8A8
"""


@pytest.fixture(scope="module")
def weights() -> dict[str, F32Array]:
    block = synthetic_block(np.random.default_rng(5))
    return {
        name: rounded(block.matrices[short], "BF16")
        for name, short in ((DOWN, "ffn_down"), (UP, "ffn_up"))
    }


@pytest.fixture(scope="module")
def inputs() -> dict[str, F32Array]:
    block = synthetic_block(np.random.default_rng(5))
    return {name: block.inputs[short] for name, short in ((DOWN, "ffn_down"), (UP, "ffn_up"))}


def moved(w: F32Array, inputs: F32Array, n_bits: int = 4) -> dict[str, Array]:
    """GPTQ's codes in the arrays of compressed-tensors."""
    found = gptq.quantize(w, inputs, n_bits, 128)
    scales = found.scales.astype(np.float16)
    if n_bits == 8:
        return {"weight": (found.codes.astype(int) - 128).astype(np.int8), "weight_scale": scales}
    return {
        "weight_packed": pack(found.codes.astype(np.uint8), n_bits).view(np.int32),
        "weight_scale": scales,
        "weight_shape": np.array(w.shape, np.int64),
    }


def write_folder(
    path: Path, arrays: dict[str, dict[str, Array]], quantization: object, recipe: str = ""
) -> Path:
    path.mkdir()
    flat = {
        f"model.layers.0.{STEMS[name]}.{leaf}": each
        for name, of_module in arrays.items()
        for leaf, each in of_module.items()
    }
    write_arrays(path / "model.safetensors", flat)
    config = ONE_LAYER | {"quantization_config": quantization}
    (path / "config.json").write_text(json.dumps(config))
    (path / "recipe.yaml").write_text(recipe)
    return path


def stated_error(tensor: QuantizedTensor, w: F32Array) -> float:
    """The mean square error that is stated, over the true one."""
    stated = Stated.of(w.size)
    tensor.intervals(0, w.size, stated)
    return float(np.sum(stated.variance) / np.sum((stated.value - w.reshape(-1)) ** 2.0))


def completed(folder: Path, *others: Path) -> tuple[Input, QuantizedTensor]:
    opened = [open_model(each) for each in (folder, *others)]
    aligned = align(opened)
    model = complete(aligned.models, aligned.names, [])[0]
    tensor = model.tensors[DOWN]
    assert isinstance(tensor, QuantizedTensor)
    return Input.of(opened[0], model), tensor


@pytest.mark.parametrize("kind", ["ints", "floats"])
def test_errors_are_measured_in_every_format(
    kind: str, weights: dict[str, F32Array], inputs: dict[str, F32Array], tmp_path: Path
) -> None:
    w = weights[DOWN]
    arrays = moved(w, inputs[DOWN]) if kind == "ints" else fp8.encode(w, "row")
    folder = write_folder(tmp_path / "f", {DOWN: arrays}, compressed_tensors.config(), GPTQ)
    alone = open_model(folder).tensors[DOWN]
    assert isinstance(alone, QuantizedTensor)
    assert not alone.has_cells
    assert not 0.9 < stated_error(alone, w) < 1.1  # of what is typical
    model = write_gguf(tmp_path / "model.gguf", {DOWN: stored("Q8_0", w)})
    recorded, tensor = completed(folder, model)
    assert stated_error(tensor, w) == pytest.approx(1, abs=0.1)
    again = Input.from_record(json.loads(json.dumps(recorded.to_record()))).open().tensors[DOWN]
    assert isinstance(again, QuantizedTensor)
    assert stated_error(again, w) == pytest.approx(stated_error(tensor, w), rel=1e-6)


def test_finer_codes_without_cells_tell_the_errors_of_coarser_ones(
    weights: dict[str, F32Array], inputs: dict[str, F32Array], tmp_path: Path
) -> None:
    w = weights[DOWN]
    settings = {"quant_method": "gptq", "bits": 2, "group_size": 128}
    coarse = gptq.pack(gptq.quantize(w, inputs[DOWN], 2), 2)
    two = write_folder(tmp_path / "two", {DOWN: coarse}, settings)
    untold = {DOWN: compressed_tensors.encode(w)}
    four = write_folder(tmp_path / "four", untold, compressed_tensors.config())
    assert stated_error(completed(two, four)[1], w) == pytest.approx(1, abs=0.1)
    assert stated_error(completed(four, two)[1], w) == pytest.approx(1.45, abs=0.1)


def test_nothing_is_claimed_where_no_input_confines_the_weights(
    weights: dict[str, F32Array], inputs: dict[str, F32Array], tmp_path: Path
) -> None:
    """Beside one that does there is a claim; of the weights themselves nothing changes."""
    arrays = {DOWN: moved(weights[DOWN], inputs[DOWN])}
    folder = write_folder(tmp_path / "f", arrays, compressed_tensors.config(), GPTQ)
    for name, is_told in (("IQ3_S", False), ("Q2_K", True)):
        model = write_gguf(tmp_path / f"{name}.gguf", {DOWN: stored(name, weights[DOWN])})
        found = execute_merge(plan_merge([folder, model], tmp_path / "out.gguf"), n_threads=1)
        assert (found.expected_mse_ratio is not None) == is_told
        assert [each.expected_rmse is not None for each in found.tensors] == [is_told]
        assert found.n_without_claim == (not is_told)
        expected = inspect_files([folder, model])
        assert (expected.expected_mse_ratio is not None) == is_told


def test_scaled_columns_with_such_codes(
    weights: dict[str, F32Array], inputs: dict[str, F32Array], tmp_path: Path
) -> None:
    """SmoothQuant scales what is behind norms and nothing else, as the recipe's mappings say."""
    rng = np.random.default_rng(1)
    columns = np.exp2(rng.uniform(-1, 1, weights[UP].shape[1])).astype(np.float32)
    norm = rng.uniform(0.5, 1.5, columns.size).astype(np.float32)
    arrays = {
        UP: moved(weights[UP] * columns, inputs[UP] / columns, 8),
        DOWN: moved(weights[DOWN], inputs[DOWN], 8),
        NORM: {"weight": (norm / columns).astype(np.float16)},
    }
    folder = write_folder(tmp_path / "f", arrays, compressed_tensors.config(), SMOOTHED)
    tensors = {name: stored("Q8_0", w) for name, w in weights.items()}
    model = write_gguf(tmp_path / "model.gguf", tensors | {NORM: stored("F32", norm)})
    plan = plan_merge([model, folder], tmp_path / "out.gguf", outtype="f32")
    result = execute_merge(plan, n_threads=1)
    merged, before = read_weights(plan.output), read_weights(model)
    off, alone = (
        sum(float(np.sum((each[name] - w) ** 2.0)) for name, w in weights.items())
        for each in (merged, before)
    )
    assert off < 0.85 * alone
    assert result.expected_mse_ratio == pytest.approx(off / alone, rel=0.06)

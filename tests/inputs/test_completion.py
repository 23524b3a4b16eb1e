"""What folders of GPTQ and AWQ do not say is found beside a GGUF file of the same model."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from recover.bounds.plan import plan_bounds
from recover.bounds.verify import verify_model
from recover.cli import main
from recover.containers.huggingface.placing import rotary_order
from recover.containers.huggingface.scaled import ScaledMatrix, UnscaledMatrix
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.errors import PlanError, QuantError
from recover.evidence.intervals import Intervals
from recover.inputs.alignment import align
from recover.inputs.completion import complete
from recover.inputs.open import open_model
from recover.inputs.recorded import Input
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from recover.quants import TILE, Stated
from tests.support.encoders import awq, gptq
from tests.support.foreign_modules import Array
from tests.support.gguf_files import F32Array, Stored, read_weights, stored, write_gguf
from tests.support.hf_folders import MODULES, write_arrays
from tests.support.layer_inputs import Block, synthetic_block

N_HEADS = 4
CONFIG = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": N_HEADS,
    "num_key_value_heads": N_HEADS,
}


def in_gguf(name: str, w: F32Array) -> F32Array:
    """Rows as GGUF has them."""
    if name in ("attn_q", "attn_k"):
        return np.ascontiguousarray(w[rotary_order(name, len(w), N_HEADS)])
    return w


@pytest.fixture(scope="module")
def block() -> Block:
    found = synthetic_block(np.random.default_rng(5))
    matrices = {
        name: w.astype(ml_dtypes.bfloat16).astype(np.float32) for name, w in found.matrices.items()
    }
    return found._replace(matrices=matrices)


def write_model(path: Path, block: Block, kind: str) -> Path:
    tensors: dict[str, Stored] = {
        f"blk.0.{name}.weight": stored(kind, in_gguf(name, w)) for name, w in block.matrices.items()
    }
    norms = {f"blk.0.{name}.weight": stored("F32", w) for name, w in block.norms.items()}
    return write_gguf(path, tensors | norms)


def write_folder(
    path: Path, arrays: dict[str, dict[str, Array]], norms: dict[str, F32Array], config: Any
) -> Path:
    flat = {
        f"model.layers.0.{MODULES[name]}.{leaf}": array
        for name, of_module in arrays.items()
        for leaf, array in of_module.items()
    }
    for name, norm in norms.items():
        flat[f"model.layers.0.{MODULES[name]}.weight"] = norm.astype(np.float16)
    path.mkdir()
    write_arrays(path / "model.safetensors", flat)
    (path / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": config}))
    return path


@pytest.fixture(scope="module")
def awq_folder(block: Block, tmp_path_factory: pytest.TempPathFactory) -> Path:
    quantized = awq.quantize(block)
    path = tmp_path_factory.mktemp("awq") / "model-AWQ"
    config = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}
    return write_folder(path, quantized.arrays, quantized.norms, config)


@pytest.fixture(scope="module")
def gptq_folder(block: Block, tmp_path_factory: pytest.TempPathFactory) -> Path:
    arrays = {
        name: gptq.pack(gptq.quantize(w, block.inputs[name], 4, 128), 4)
        for name, w in block.matrices.items()
    }
    path = tmp_path_factory.mktemp("gptq") / "model-GPTQ"
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    return write_folder(path, arrays, block.norms, config)


def mean_square(off: F32Array) -> float:
    return float(np.mean(np.square(off.astype(np.float64))))


def errors(path: Path, block: Block) -> dict[str, float]:
    weights = read_weights(path)
    return {
        name: mean_square(weights[f"blk.0.{name}.weight"] - in_gguf(name, w))
        for name, w in block.matrices.items()
    }


def test_awq_beside_a_gguf_file(block: Block, awq_folder: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "Q4_K.gguf", block, "Q4_K")
    plan = plan_merge([model, awq_folder], tmp_path / "out.gguf", outtype="f32")
    result = execute_merge(plan, n_threads=1)
    before, after = errors(model, block), errors(plan.output, block)
    for name in block.matrices:
        assert after[name] < 0.8 * before[name], name
    assert result.expected_mse_ratio is not None
    ratio = sum(after.values()) / sum(before.values())
    assert result.expected_mse_ratio == pytest.approx(ratio, rel=0.15)


def test_scales_hold(block: Block, awq_folder: Path, tmp_path: Path) -> None:
    """No weight of the original is outside of what an AWQ folder proves beside a GGUF file."""
    model = write_model(tmp_path / "Q5_K.gguf", block, "Q5_K")
    aligned = align([open_model(model), open_model(awq_folder)])
    _, folder = complete(aligned.models, aligned.names, [])
    n_outside = 0
    for name, w in block.matrices.items():
        tensor = folder.tensors[f"blk.0.{name}.weight"]
        assert isinstance(tensor, QuantizedTensor)
        assert tensor.has_cells
        value, lower, upper, variance = np.empty((4, w.size), np.float32)
        tensor.intervals(0, w.size, Stated(value, lower, upper, variance))
        x = in_gguf(name, w).reshape(-1)
        n_outside += int(np.count_nonzero((x < lower) | (x > upper)))
    assert n_outside <= 3  # of 655,360: three deviations


def test_scales_that_nothing_tells(awq_folder: Path, block: Block, tmp_path: Path) -> None:
    """Without norms in another input such matrices say nothing."""
    model = write_model(tmp_path / "Q4_K.gguf", block._replace(norms={}), "Q4_K")
    plan = plan_merge([model, awq_folder], tmp_path / "out.gguf")
    assert any("scaled before they were quantized" in text for text in plan.warnings)
    by_name = {tensor.name: tensor for tensor in plan.tensors}
    assert by_name["blk.0.attn_q.weight"].types == ("Q4_K", "absent")


def test_weights_that_only_awq_has_are_refused(
    awq_folder: Path, block: Block, tmp_path: Path
) -> None:
    some = block._replace(matrices={"attn_q": block.matrices["attn_q"]})
    model = write_model(tmp_path / "Q4_K.gguf", some, "Q4_K")
    with pytest.raises(PlanError, match="no other input tells the scales; name a GGUF file"):
        plan_merge([model, awq_folder], tmp_path / "out.gguf")


def test_scaled_weights_are_no_weights(awq_folder: Path) -> None:
    tensor = open_model(awq_folder).tensors["blk.0.attn_q.weight"]
    with pytest.raises(QuantError, match="merge the folder with a GGUF file"):
        tensor.read(0, 256)


def test_gptq_beside_a_gguf_file(block: Block, gptq_folder: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "Q4_K.gguf", block, "Q4_K")
    plan = plan_merge([model, gptq_folder], tmp_path / "out.gguf", outtype="f32")
    result = execute_merge(plan, n_threads=1)
    before, after = errors(model, block), errors(plan.output, block)
    for name in block.matrices:
        assert after[name] < 0.9 * before[name], name
    ratio = sum(after.values()) / sum(before.values())
    assert result.expected_mse_ratio == pytest.approx(ratio, rel=0.1)


def test_what_was_found_goes_to_a_record_and_back(
    block: Block, awq_folder: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "Q4_K.gguf", block, "Q4_K")
    opened = [open_model(model), open_model(awq_folder)]
    aligned = align(opened)
    _, folder = complete(aligned.models, aligned.names, [])
    record = json.loads(json.dumps(Input.of(opened[1], folder).to_record()))
    again = Input.from_record(record).open()
    for name in ("ffn_down", "ffn_up", "attn_q"):
        one, other = (m.tensors[f"blk.0.{name}.weight"] for m in (folder, again))
        assert np.array_equal(one.part(0, 4096), other.part(0, 4096))
        assert isinstance(one, QuantizedTensor)
        assert isinstance(one.runs[0].matrix, UnscaledMatrix)
    fresh = open_model(awq_folder).tensors["blk.0.ffn_up.weight"]
    assert isinstance(fresh, QuantizedTensor)
    assert isinstance(fresh.runs[0].matrix, ScaledMatrix)


def test_norms_of_awq_are_not_taken(block: Block, awq_folder: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "Q4_K.gguf", block, "Q4_K")
    for order in (1, -1):
        output = tmp_path / f"{order}.gguf"
        execute_merge(plan_merge([model, awq_folder][::order], output), n_threads=1)
        written = read_weights(output)
        for name, norm in block.norms.items():
            np.testing.assert_array_equal(written[f"blk.0.{name}.weight"], norm)


@pytest.mark.parametrize("order", [1, -1])
def test_bounds_hold_and_say_what_is_no_proof(
    block: Block, awq_folder: Path, tmp_path: Path, order: int
) -> None:
    """Scales from norms are sure, those that were measured are not; such norms confine nothing."""
    model = write_model(tmp_path / "Q8_0.gguf", block, "Q8_0")
    plan = plan_bounds([model, awq_folder][::order], n_threads=1)
    measured = {f"blk.0.{name}.weight" for name in ("attn_v", "attn_output", "ffn_up", "ffn_down")}
    assert {tensor.name for tensor in plan.tensors if tensor.failures} == measured
    originals = {name: in_gguf(name, w) for name, w in {**block.matrices, **block.norms}.items()}
    for tensor in plan.tensors:
        assert len(tensor.sources) == 2 - (tensor.name in measured or "norm" in tensor.name)
        x = originals[tensor.name.split(".")[2]].reshape(-1)
        bounds = Intervals()
        bounds.look_at(tensor.sources)
        for start in range(0, x.size, TILE):
            end = min(start + TILE, x.size)
            lower, upper = bounds.bound(start, end)
            assert (lower <= x[start:end]).all()
            assert (x[start:end] <= upper).all()


def test_verify_does_not_look_at_divided_norms(
    block: Block, awq_folder: Path, tmp_path: Path
) -> None:
    truth = write_model(tmp_path / "F32.gguf", block, "F32")
    model = write_model(tmp_path / "Q4_K.gguf", block, "Q4_K")
    result = verify_model(truth, [awq_folder, model], n_threads=1)
    assert result.is_consistent
    assert {"blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"} <= set(result.inputs[0].only_model)
    assert not verify_model(truth, [awq_folder], n_threads=1).is_checked


def test_verify_takes_scales_that_another_input_proves(
    block: Block, awq_folder: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "Q4_K.gguf", block, "Q4_K")
    truth = write_model(tmp_path / "F32.gguf", block, "F32")
    check = verify_model(truth, [awq_folder, model], n_threads=1).inputs[0]
    bounded = {each.name for each in check.tensors if each.n_bounded}
    assert bounded == {f"blk.0.{name}.weight" for name in ("attn_q", "attn_k", "ffn_gate")}
    assert not check.total("n_outside")
    finer = {**block.matrices, "attn_q": 1.1 * block.matrices["attn_q"]}
    other = write_model(tmp_path / "other.gguf", block._replace(matrices=finer), "F32")
    check = verify_model(other, [awq_folder, model], n_threads=1).inputs[0]
    outside = {each.name for each in check.tensors if each.n_outside}
    assert outside == {"blk.0.attn_q.weight"}


@pytest.mark.parametrize("is_model", [True, False])
def test_scaled_weights_are_not_taken_for_others(
    is_model: bool,
    block: Block,
    awq_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nor is a folder of them checked or compared as if they were the original's."""
    other = write_model(tmp_path / "F32.gguf", block, "F32")
    pair = (awq_folder, other) if is_model else (other, awq_folder)
    commands = [["evaluate", str(pair[0]), "--truth", str(pair[1])]]
    for command in [*commands, ["verify", str(awq_folder), str(other)]]:
        assert main(command) == 1
        assert f"{awq_folder}: columns of 'blk.0." in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "bounds"])
def test_commands(
    command: str, block: Block, awq_folder: Path, gptq_folder: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "Q4_K.gguf", block, "Q4_K")
    options = ["--summary"] if command == "bounds" else []
    assert main([command, str(model), str(awq_folder), str(gptq_folder), *options]) == 0


@pytest.mark.parametrize("pattern", ["ffn_up", "ffn_down", "attn_v", "attn_q", "ffn_gate"])
def test_a_part_of_the_tensors(
    pattern: str, block: Block, awq_folder: Path, tmp_path: Path
) -> None:
    """Scales of rows are found beside the matrix behind, also where that one is not asked for."""
    model = write_model(tmp_path / "Q4_K.gguf", block, "Q4_K")
    plan = plan_merge([model, awq_folder], tmp_path / "out.gguf", outtype="f32", tensors=pattern)
    execute_merge(plan, n_threads=1)
    name = f"blk.0.{pattern}.weight"
    w = in_gguf(pattern, block.matrices[pattern])
    off = mean_square(read_weights(plan.output)[name] - w)
    assert off < 0.8 * mean_square(read_weights(model)[name] - w)


@pytest.mark.parametrize("lacking", ["ffn_down", "attn_output"])
def test_rows_whose_scales_nothing_tells(
    lacking: str, block: Block, awq_folder: Path, tmp_path: Path
) -> None:
    """The rows of the matrix in front were scaled as well: it says nothing either."""
    some = {name: w for name, w in block.matrices.items() if name != lacking}
    model = write_model(tmp_path / "Q4_K.gguf", block._replace(matrices=some), "Q4_K")
    before = {"ffn_down": "ffn_up", "attn_output": "attn_v"}[lacking]
    plan = plan_merge([model, awq_folder], tmp_path / "out.gguf", tensors=before)
    (tensor,) = plan.tensors
    assert tensor.types == ("Q4_K", "absent")


FUSED = {"qkv_proj": ("attn_q", "attn_k", "attn_v"), "gate_up_proj": ("ffn_gate", "ffn_up")}


def test_fused_matrices(block: Block, tmp_path: Path) -> None:
    """Of queries, keys and values in one, and of gate and up, the last rows were scaled."""
    quantized, matrices = awq.quantize(block), block.matrices
    stem, flat = "model.layers.0.", {}
    for name, parts in FUSED.items():
        room = "self_attn." if name == "qkv_proj" else "mlp."
        for leaf in quantized.arrays[parts[0]]:
            arrays = [quantized.arrays[part][leaf] for part in parts]
            flat[f"{stem}{room}{name}.{leaf}"] = np.concatenate(arrays, 1)
    for name in ("attn_output", "ffn_down"):
        flat |= {f"{stem}{MODULES[name]}.{k}": a for k, a in quantized.arrays[name].items()}
    for name, norm in quantized.norms.items():
        flat[f"{stem}{MODULES[name]}.weight"] = norm.astype(np.float16)
    folder = tmp_path / "phi3"
    folder.mkdir()
    write_arrays(folder / "model.safetensors", flat)
    config = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}
    settings = CONFIG | {"model_type": "phi3", "quantization_config": config}
    (folder / "config.json").write_text(json.dumps(settings))
    whole = {
        "attn_qkv": np.concatenate([matrices[part] for part in FUSED["qkv_proj"]]),
        "ffn_up": np.concatenate([matrices[part] for part in FUSED["gate_up_proj"]]),
        **{name: matrices[name] for name in ("attn_output", "ffn_down")},
    }
    fused = block._replace(matrices=whole)
    tensors = {f"blk.0.{name}.weight": stored("Q4_K", w) for name, w in whole.items()}
    norms = {f"blk.0.{name}.weight": stored("F32", w) for name, w in block.norms.items()}
    model = write_gguf(tmp_path / "Q4_K.gguf", tensors | norms, architecture="phi3")
    plan = plan_merge([model, folder], tmp_path / "out.gguf", outtype="f32")
    execute_merge(plan, n_threads=1)
    before, after = errors(model, fused), errors(plan.output, fused)
    for name in whole:
        assert after[name] < 0.8 * before[name], name

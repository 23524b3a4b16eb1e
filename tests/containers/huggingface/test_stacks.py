"""Quantized experts in one array say what they say where each is stored alone."""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from recover.containers.huggingface.reader import FolderModel, open_folder
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.containers.safetensors.reader import open_safetensors
from recover.errors import SafetensorsError
from recover.quants import F32Array, Stated
from tests.support.encoders import fp8, mlx
from tests.support.foreign_modules import Array
from tests.support.hf_folders import write_parts
from tests.support.random_folders import write_safetensors

GOLDEN = Path(__file__).parents[2] / "golden" / "huggingface"
NAMES = "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3"
EXPERT = re.compile(r"(?P<stem>.+)\.experts\.(?P<number>\d+)\.(?P<rest>\w+)\.weight")
OF_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
MLX: dict[str, Any] = {"quantization": {"bits": 4, "group_size": 32}}
FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
Arrays = dict[str, Array]


def plain_arrays(name: str, home: Path) -> tuple[Arrays, dict[str, Any]]:
    known = json.loads((GOLDEN / f"{name}.json").read_text())
    write_safetensors(home / "plain.safetensors", known["arrays"])
    arrays = {}
    for key, tensor in open_safetensors(home / "plain.safetensors").tensors.items():
        dtype = {"BF16": ml_dtypes.bfloat16, "F32": np.float32}[tensor.dtype]
        arrays[key] = np.frombuffer(tensor.raw.tobytes(), dtype).reshape(tensor.shape)
    return arrays, known["config"]


def experts_of(arrays: Arrays) -> dict[tuple[str, str], list[F32Array]]:
    """The experts' matrices by layer and kind, which are taken out of the arrays."""
    found: defaultdict[tuple[str, str], list[F32Array]] = defaultdict(list)
    for key in list(arrays):
        if match := EXPERT.fullmatch(key):
            rest = OF_MIXTRAL.get(match["rest"], match["rest"])
            found[match["stem"], rest].append(arrays.pop(key).astype(np.float32))
    assert found
    return found


def stacked(modules: list[dict[str, Array]]) -> dict[str, Array]:
    return {leaf: np.stack([each[leaf] for each in modules]) for leaf in modules[0]}


def stated_of(tensor: QuantizedTensor) -> F32Array:
    stated = np.empty((4, tensor.n_weights), np.float32)
    tensor.intervals(0, tensor.n_weights, Stated(*stated))
    return stated


@pytest.mark.parametrize("name", NAMES)
def test_stacks_of_mlx(name: str, tmp_path: Path) -> None:
    arrays, config = plain_arrays(name, tmp_path)
    alone = dict(arrays)
    for (stem, rest), matrices in experts_of(arrays).items():
        made = [mlx.encode(w, 4, 32) for w in matrices]
        arrays |= {f"{stem}.switch_mlp.{rest}.{k}": a for k, a in stacked(made).items()}
        own = next((k for k, v in OF_MIXTRAL.items() if v == rest and name == "mixtral"), rest)
        for i, module in enumerate(made):
            del alone[f"{stem}.experts.{i}.{own}.weight"]
            alone |= {f"{stem}.experts.{i}.{own}.{k}": a for k, a in module.items()}
    one = open_folder(write_parts(tmp_path / "stacked", arrays, config | MLX))
    two = open_folder(write_parts(tmp_path / "alone", alone, config | MLX))
    assert dict.fromkeys(one.tensors) == dict.fromkeys(two.tensors)
    n_stacks = 0
    for key, tensor in one.tensors.items():
        other = two.tensors[key]
        assert tensor.dims == other.dims
        if isinstance(tensor, QuantizedTensor) and isinstance(other, QuantizedTensor):
            np.testing.assert_array_equal(stated_of(tensor), stated_of(other))
            n_stacks += key.endswith("_exps.weight")
    assert n_stacks >= 3


def fused_fp8(name: str, home: Path, **changes: Array) -> tuple[FolderModel, Arrays]:
    """A folder whose experts are fused, and the same in bfloat16."""
    arrays, config = plain_arrays(name, home)
    plain = dict(arrays)
    experts = experts_of(arrays)
    for stem in {stem for stem, _ in experts}:
        pairs = zip(experts[stem, "gate_proj"], experts[stem, "up_proj"], strict=True)
        both = [np.concatenate(pair) for pair in pairs]
        for rest, matrices in (("gate_up_proj", both), ("down_proj", experts[stem, "down_proj"])):
            made = stacked([fp8.encode(w, "block") for w in matrices])
            module = f"{stem}.experts.{rest}"
            arrays[module] = made["weight"]
            arrays[f"{module}_scale_inv"] = made["weight_scale_inv"]
            arrays |= {f"{module}{leaf}": array for leaf, array in changes.items()}
    return open_folder(write_parts(home / "fused", arrays, config | FP8)), plain


@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe", "deepseek_v3"])
def test_fused_experts_in_fp8(name: str, tmp_path: Path) -> None:
    model, plain = fused_fp8(name, tmp_path)
    config = json.loads((GOLDEN / f"{name}.json").read_text())["config"]
    truth = open_folder(write_parts(tmp_path / "plain", plain, config))
    assert set(model.tensors) == set(truth.tensors)
    assert not model.left_out
    n_stacks = 0
    for key, tensor in model.tensors.items():
        original = truth.tensors[key]
        assert tensor.dims == original.dims
        if isinstance(tensor, QuantizedTensor):
            w = original.read(0, original.n_weights)
            _, lower, upper, _ = stated_of(tensor)
            assert np.all((lower <= w) & (w <= upper)), key
            assert np.mean(upper - lower) < np.std(w)
            n_stacks += 1
    assert n_stacks >= 3


def test_scales_of_other_experts_are_refused(tmp_path: Path) -> None:
    odd = np.ones((3, 1, 1), np.float32)
    with pytest.raises(SafetensorsError, match=r"_scale_inv.*\[3, 1, 1\].* 4 experts beside it"):
        fused_fp8("qwen3_moe", tmp_path, _scale_inv=odd)

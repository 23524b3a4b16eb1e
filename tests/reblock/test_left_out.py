"""What belongs to no language model of llama.cpp is left out, with a list."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.packed_weights import BF16, Array, packed_int4
from tests.support.quantized_folders import COMPRESSED, LLAMA, check, model, named, refusal
from tests.support.reblock_files import reblock

UP = "model.layers.0.mlp.up_proj"
TOWER = "vision_tower.encoder.blocks.0.wqkv.weight"


def folder(
    path: Path, rng: np.random.Generator, others: dict[str, Array], **config: Any
) -> tuple[Path, Array]:
    tensors, truth = packed_int4(rng)
    stored = {**named(UP, tensors), **others}
    return model(path, stored, {**LLAMA, **COMPRESSED, **config}), truth


def ones(*names: str) -> dict[str, Array]:
    return dict.fromkeys(names, np.ones(8, BF16))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((TOWER, "mm_projector.proj.0.bias"), "a tower or a projector for images or sound"),
        (("model.visual.blocks.0.norm1.weight",), "a tower or a projector for images or sound"),
        (("mtp.layers.0.norm.weight",), "they predict further tokens"),
        (("model.layers.0.self_attn.k_proj.k_scale",), "scales of activations"),
        (("model.layers.1.enorm.weight", "model.layers.1.eh_proj.weight"), "further tokens"),
    ],
)
def test_they_are_left_out_and_named(
    names: tuple[str, ...], reason: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    source, truth = folder(tmp_path / "m", rng, ones(*names), num_nextn_predict_layers=1)
    expected = {"blk.0.ffn_up.weight": ("Q4_0", truth)}
    result = check(source, tmp_path / "a.gguf", expected, arch="llama")
    (warning,) = (text for text in result.plan.source.warnings if "left out" in text)
    assert reason in warning
    assert f"'{names[0]}'" in warning
    report = json.loads((tmp_path / "a.gguf.report.json").read_text())
    assert report["left_out"] == sorted(names)


def test_their_quantized_weights_are_left_out(rng: np.random.Generator, tmp_path: Path) -> None:
    more, _ = packed_int4(rng)
    others = named("model.layers.1.mlp.experts.0.up_proj", more)
    source, truth = folder(tmp_path / "m", rng, others, num_nextn_predict_layers=1)
    expected = {"blk.0.ffn_up.weight": ("Q4_0", truth)}
    check(source, tmp_path / "a.gguf", expected, arch="llama")


def test_layers_that_the_configuration_does_not_have_are_refused(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    source, _ = folder(tmp_path / "m", rng, ones("model.layers.1.enorm.weight"))
    assert "'model.layers.1.enorm.weight' has no place" in refusal(source, tmp_path, arch="llama")


def test_the_text_model_inside_another_one(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, truth = packed_int4(rng)
    stored = named(f"language_model.{UP}", tensors) | ones(TOWER)
    config = {"model_type": "kimi_k25", "text_config": {**LLAMA, **COMPRESSED}}
    source = model(tmp_path / "m", stored, config)
    expected = {"blk.0.ffn_up.weight": ("Q4_0", truth)}
    check(source, tmp_path / "a.gguf", expected, arch="llama")
    own = reblock(source, tmp_path / "b.gguf")  # with its own names it is all there
    assert {each.tensor.name for each in own.tensors} == {f"language_model.{UP}.weight", TOWER}

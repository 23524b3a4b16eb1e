"""Re-blocked models hold the tensors that llama.cpp creates, and no other: it loads them."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from recover.cli import main
from recover.cli._commands import build_parser
from recover.reblock.architectures import ARCHITECTURES
from tests.oracle.llama_cpp import LlamaModel
from tests.support.llama_folders import KINDS, N_TOKENS, WIDTH, folder
from tests.support.quantized_folders import refusal
from tests.support.reblock_files import reblock

pytestmark = pytest.mark.inference


@pytest.mark.parametrize("kind", KINDS)
def test_biases_of_zeros_without_a_place_are_left_out(
    kind: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    source, arch = folder(tmp_path / "m", kind, rng)
    out = tmp_path / "a.gguf"
    result = reblock(source, out, arch=arch)
    assert result.exact
    names = {tensor.name for tensor in GGUFReader(out).tensors}
    assert {name for name in names if name.endswith(".bias")} == KINDS[kind][-1]
    (warning,) = (each for each in result.plan.source.warnings if "biases of zeros" in each)
    assert "has no place" in warning
    with LlamaModel(out, n_ctx=64) as loaded:
        assert np.isfinite(loaded.logits(np.arange(9))).all()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("qwen2", "self_attn.o_proj"),
        ("qwen2", "mlp.down_proj"),
        ("qwen3", "mlp.up_proj"),
        ("llama", "lm_head"),
        ("qwen3moe", "mlp.experts.1.gate_proj"),
        ("qwen2moe", "mlp.gate"),
        ("deepseek2", "self_attn.q_b_proj"),
    ],
)
def test_other_biases_without_a_place_are_refused(
    kind: str, name: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    size = N_TOKENS if name == "lm_head" else KINDS[kind][1][name][0]
    bias = np.zeros(size, np.float16)
    bias[-1] = 6e-8  # the smallest number but 0
    source, arch = folder(tmp_path / "m", kind, rng, **{name: bias})
    text = refusal(source, tmp_path, arch=arch)
    assert f"{name.rpartition('.')[2]}.bias'" in text
    assert "llama.cpp has no place" in text
    assert "leave out --arch" in text
    reblock(source, tmp_path / "a.gguf")  # under the model's own names all is kept


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_biases_with_a_place_are_kept(kind: str, rng: np.random.Generator, tmp_path: Path) -> None:
    bias = rng.standard_normal(WIDTH).astype(np.float16)
    source, arch = folder(tmp_path / "m", kind, rng, **{"self_attn.v_proj": bias})
    out = tmp_path / "a.gguf"
    reblock(source, out, arch=arch)
    found = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(out).tensors}
    assert np.array_equal(found["blk.0.attn_v.bias"], bias.astype(np.float32))
    with LlamaModel(out, n_ctx=64) as loaded:
        assert np.isfinite(loaded.logits(np.arange(9))).all()


def test_rope_factors_without_a_place_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    source, _ = folder(tmp_path / "m", "qwen2", rng)
    config = json.loads((source / "config.json").read_text())
    config["rope_scaling"] = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    (source / "config.json").write_text(json.dumps(config))
    text = refusal(source, tmp_path, arch="qwen2")
    assert "rope_scaling of type 'llama3'" in text
    assert "qwen2" in text


def test_what_is_left_out_is_said(
    rng: np.random.Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, arch = folder(tmp_path / "m", "qwen2", rng)
    command = ["reblock", str(source), "-o", str(tmp_path / "a.gguf"), "--arch", arch]
    assert main([*command, "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert {"source", "output", "exact", "tensors"} <= set(document)
    assert document["exact"]
    (said,) = (warning for warning in document["warnings"] if "biases of zeros" in warning)
    assert "'model.layers.0.mlp.down_proj.bias'" in said
    assert f"warning: {said}" in err
    report = json.loads((tmp_path / "a.gguf.report.json").read_text())
    assert report["warnings"] == document["warnings"]
    assert "model.layers.0.mlp.down_proj.bias" in report["left_out"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_command_takes_every_architecture(arch: str) -> None:
    """Its list is its own, so that the help loads nothing."""
    args = build_parser().parse_args(["reblock", "m", "-o", "m.gguf", "--arch", arch])
    assert args.arch == arch

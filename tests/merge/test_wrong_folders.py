"""Folders that do not belong to the other inputs, or are damaged, are refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover.cli import main
from recover.quants import F32Array
from tests.support.encoders import compressed_tensors, gptq, mlx
from tests.support.foreign_modules import Array
from tests.support.gguf_files import read_weights, squared_error
from tests.support.hf_folders import folder_parts, split_folder, write_parts
from tests.support.models import DATA, ROOT
from tests.support.random_folders import write_safetensors
from tests.support.small_llama import N_TOKENS, WIDTH, small_weights, write_small

GOLDEN = ROOT / "tests" / "golden" / "huggingface"
UP, GATE = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj"
RECIPE = "stage:\n  modifiers:\n    {}:\n      targets: [Linear]\n"
Arrays = dict[str, Array]
Config = dict[str, Any]
Change = Callable[[Arrays, Config], object]


class Case:
    """A GGUF file, and the parts of a folder of the same model."""

    def __init__(self, home: Path, rng: np.random.Generator) -> None:
        self.home = home
        self.weights = small_weights(rng)
        self.gguf = write_small(home / "quantized.gguf", self.weights, "Q6_K")
        self.output = home / "merged" / "out.gguf"
        self.output.parent.mkdir()

    def parts(self, kind: str | None, weights: dict[str, F32Array] | None = None) -> Any:
        model = write_small(self.home / "whole.gguf", weights or self.weights, "F32")
        return folder_parts(model, kind)

    def write(self, kind: str | None, change: Change | None = None) -> Path:
        arrays, config = self.parts(kind)
        if change is not None:
            change(arrays, config)
        return write_parts(self.home / "folder", arrays, config)

    def merge(self, folder: Path, *options: str) -> int:
        return main(["merge", str(self.gguf), str(folder), "-o", str(self.output), *options])

    def check_refused(self, folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> None:
        assert self.merge(folder) not in (None, 0)
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert str(folder) in error
        for word in words:
            assert word in error
        assert not list(self.output.parent.iterdir())


@pytest.fixture
def case(tmp_path: Path, rng: np.random.Generator) -> Case:
    return Case(tmp_path, rng)


def error_of(path: Path, truth: dict[str, F32Array]) -> float:
    return squared_error(read_weights(path), truth)


@pytest.mark.parametrize("kind", ["fp8", "nf4", None])
def test_right_folders_merge(
    case: Case, kind: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without which the tests below would prove nothing."""
    assert case.merge(case.write(kind)) == 0, capsys.readouterr().err
    assert error_of(case.output, case.weights) < error_of(case.gguf, case.weights)


@pytest.mark.parametrize("kind", ["fp8", "nf4", None])
@pytest.mark.parametrize("share", [1.0, 0.2])
def test_another_revision(
    case: Case,
    kind: str | None,
    share: float,
    rng: np.random.Generator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Weights that were trained further, or others altogether."""
    other = small_weights(rng)
    for name, w in other.items():
        if w.ndim == 2:
            other[name] = np.float32(share) * w + np.float32(1 - share) * case.weights[name]
    arrays, config = case.parts(kind, other)
    folder = write_parts(case.home / "folder", arrays, config)
    case.check_refused(folder, capsys, str(case.gguf), "contradict")


def compensated(case: Case, rng: np.random.Generator, recipe: str) -> Path:
    """A folder of GPTQ's codes that compressed-tensors stores as it stores rounded ones."""
    inputs = rng.standard_normal((1024, WIDTH)) @ rng.standard_normal((WIDTH, WIDTH))

    def change(arrays: Arrays, config: Config) -> None:
        for module in (UP, GATE):
            w = arrays.pop(f"{module}.weight").astype(np.float32)
            found = gptq.quantize(w, inputs.astype(np.float32), symmetric=True)
            made = compressed_tensors.encode(w, 4, 128)
            made["weight_scale"] = found.scales.astype(made["weight_scale"].dtype)
            rounded = found.codes - found.zeros[:, found.groups]
            made["weight_packed"] = mlx.pack((rounded + 8).astype(np.uint8), 4).view(np.int32)
            arrays |= {f"{module}.{leaf}": array for leaf, array in made.items()}
        config["quantization_config"] = compressed_tensors.config()

    folder = case.write(None, change)
    if recipe:
        (folder / "recipe.yaml").write_text(RECIPE.format(recipe))
    return folder


def test_compensated_codes_without_a_recipe(
    case: Case, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are not taken for rounded ones."""
    assert case.merge(compensated(case, rng, "")) == 0, capsys.readouterr().err
    assert error_of(case.output, case.weights) < error_of(case.gguf, case.weights)


def test_compensated_codes_under_a_recipe_of_rounded_ones(
    case: Case, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = compensated(case, rng, "QuantizationModifier")
    case.check_refused(folder, capsys, "blk.0.ffn_", "contradict")


@pytest.mark.parametrize("is_told", [True, False])
def test_rotated_weights(
    case: Case, is_told: bool, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    rotation, _ = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))

    def change(arrays: Arrays, config: Config) -> None:
        w = arrays.pop(f"{UP}.weight").astype(np.float32)
        made = compressed_tensors.encode((w @ rotation).astype(np.float32))
        arrays |= {f"{UP}.{leaf}": array for leaf, array in made.items()}
        config["quantization_config"] = compressed_tensors.config()

    folder = case.write(None, change)
    recipe = "SpinQuantModifier" if is_told else "QuantizationModifier"
    (folder / "recipe.yaml").write_text(RECIPE.format(recipe))
    case.check_refused(folder, capsys, "rotated" if is_told else "contradict")


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
def test_rotated_weights_are_told_by_their_norms(
    case: Case, kind: str, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rotations go through norms once these are multiplied into the matrices behind them."""
    rotation, _ = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))
    weights = {}
    for name, w in case.weights.items():
        role = name.removesuffix(".weight").rpartition(".")[2]
        norm = {"output": "output_norm", "token_embd": ""}.get(
            role, "blk.0.attn_norm" if role.startswith("attn") else "blk.0.ffn_norm"
        )
        if w.ndim == 1:
            weights[name] = np.ones_like(w)
        elif role in ("attn_output", "ffn_down"):
            weights[name] = (rotation.T @ w).astype(np.float32)
        else:
            scale = case.weights[f"{norm}.weight"] if norm else 1
            weights[name] = ((w * scale) @ rotation).astype(np.float32)
    arrays, config = case.parts(kind, weights)
    folder = write_parts(case.home / "folder", arrays, config)
    case.check_refused(
        folder, capsys, "another model", "all norms of", "rotated (QuaRot, SpinQuant)"
    )


@pytest.mark.parametrize("name", [UP, "model.layers.0.self_attn.q_proj"])
def test_transposed_weights(case: Case, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Square ones have the right shape: their cells tell."""

    def change(arrays: Arrays, _: Config) -> None:
        key = f"{name}.weight"
        arrays[key] = np.ascontiguousarray(arrays[key].T)

    told = "config.json says" if name == UP else "'blk.0.attn_q.weight'"
    case.check_refused(case.write(None, change), capsys, told)


def test_pickles(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    folder = case.write("fp8")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    case.check_refused(folder, capsys, "pytorch_model.bin", "pickles")


@pytest.mark.parametrize("n_left", [0, 7, 100, -1])
def test_truncated_shard(case: Case, n_left: int, capsys: pytest.CaptureFixture[str]) -> None:
    folder = split_folder(case.write("fp8"))
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:n_left])
    case.check_refused(folder, capsys, shard.name)


def test_shards_merge(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert case.merge(split_folder(case.write("fp8"))) == 0, capsys.readouterr().err


def test_index_names_absent_files(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    folder = split_folder(case.write("fp8"))
    (folder / "model-00001-of-00002.safetensors").unlink()
    case.check_refused(folder, capsys, "model-00001-of-00002.safetensors")


def test_index_names_absent_tensors(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    folder = split_folder(case.write("fp8"))
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.absent.weight"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    case.check_refused(folder, capsys, "model.absent.weight")


def test_no_configuration(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    folder = case.write("fp8")
    (folder / "config.json").unlink()
    case.check_refused(folder, capsys, "config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 2 * WIDTH),
        ("intermediate_size", 96),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 1),
        ("vocab_size", N_TOKENS + 1),
        ("num_hidden_layers", 2),
        ("head_dim", 32),
    ],
)
def test_configuration_contradicts_the_shapes(
    case: Case, key: str, value: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = case.write("fp8", lambda _, config: config.update({key: value}))
    case.check_refused(folder, capsys, key, "config.json")


def test_a_size_is_missing(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    folder = case.write("fp8", lambda _, config: config.pop("num_hidden_layers"))
    case.check_refused(folder, capsys, "config.json: num_hidden_layers is missing")


def test_more_layers_than_the_configuration_says(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(arrays: Arrays, _: Config) -> None:
        arrays |= {name.replace(".0.", ".1."): array for name, array in arrays.items()}

    case.check_refused(case.write("fp8", change), capsys, "layers.1.", "num_hidden_layers")


@pytest.mark.parametrize("missing", [0, 1, 3])
def test_missing_expert(missing: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also the last one, which leaves no gap."""
    known = json.loads((GOLDEN / "mixtral.json").read_text())
    for name in list(known["arrays"]):
        if f"layers.1.block_sparse_moe.experts.{missing}." in name:
            del known["arrays"][name]
    folder = tmp_path / "folder"
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", known["arrays"])
    (folder / "config.json").write_text(json.dumps(known["config"]))
    output = tmp_path / "out.gguf"
    assert main(["merge", str(DATA / "tiny-llama-3m-Q4_K_M.gguf"), str(folder), "-o", str(output)])
    error = capsys.readouterr().err
    assert str(folder) in error
    assert "blk.1.ffn_" in error
    assert "expert" in error
    assert not output.exists()


@pytest.mark.parametrize("where", ["code", "scale", "scales", "infinite"])
def test_numbers_that_are_none(case: Case, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With --force the weights are taken from the other inputs, and the user is told."""

    def change(arrays: Arrays, _: Config) -> None:
        if where == "code":
            arrays[f"{UP}.weight"].view(np.uint8)[3, 5] = 0x7F
        else:
            scales = arrays[f"{UP}.weight_scale_inv"].reshape(-1)
            scales[: 1 if where != "scales" else None] = np.inf if where == "infinite" else np.nan

    folder = case.write("fp8", change)
    case.check_refused(folder, capsys, "'blk.0.ffn_up.weight' holds NaN or infinite", "--force")
    assert case.merge(folder, "--force") == 0
    said = capsys.readouterr().err
    assert f"tensor 'blk.0.ffn_up.weight' holds NaN or infinite weights in {folder}" in said
    written, alone = read_weights(case.output), read_weights(case.gguf)
    name = "blk.0.ffn_up.weight"
    assert np.all(np.isfinite(written[name]))
    first = slice(0, 128), slice(0, 128)
    if where != "code":
        np.testing.assert_allclose(written[name][first], alone[name][first], atol=3e-3)
    assert error_of(case.output, case.weights) < error_of(case.gguf, case.weights)

"""Folders whose files are not those of one whole model: refused by name, by every command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from recover.cli import main
from recover.containers.safetensors.folder import INDEX
from tests.support.foreign_modules import Array
from tests.support.gguf_files import read_weights
from tests.support.hf_folders import folder_parts, split_folder, write_arrays, write_parts
from tests.support.small_llama import small_weights, write_small

UP = "model.layers.0.mlp.up_proj"
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
Arrays = dict[str, Array]


class Home:
    """Files of one model, and where commands write."""

    def __init__(self, path: Path) -> None:
        weights = small_weights(np.random.default_rng(4))
        self.path = path
        self.gguf = write_small(path / "quantized.gguf", weights, "Q6_K")
        self.truth = write_small(path / "truth.gguf", weights, "F32")
        self.output = path / "output"
        self.output.mkdir()
        self.folder = path / "folder"

    def write(self, change: Callable[[Arrays, dict[str, Any]], object] | None = None) -> Path:
        arrays, config = folder_parts(self.truth, "fp8")
        if change is not None:
            change(arrays, config)
        return write_parts(self.folder, arrays, config)

    def write_split(self) -> Path:
        return split_folder(self.write())

    def commands(self, source: Path) -> list[list[str]]:
        gguf, truth, folder = str(self.gguf), str(self.truth), str(source)
        return [
            ["merge", gguf, folder, "-o", str(self.output / "merged.gguf")],
            ["merge", gguf, folder, "-o", str(self.output / "merged.gguf"), "--dry-run"],
            ["inspect", gguf, folder],
            ["inspect", folder],
            ["bounds", gguf, folder, "-o", str(self.output / "bounds.safetensors")],
            ["verify", gguf, folder],
            ["verify", folder, gguf],
            ["calibrate", gguf, folder, "--truth", truth, "-o", str(self.output / "c.json")],
            ["evaluate", folder, "--truth", truth],
            ["evaluate", gguf, "--truth", folder],
        ]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def shard_is_missing(home: Home) -> Path:
    folder = home.write_split()
    (folder / INDEX).unlink()
    (folder / SECOND).unlink()
    return folder


def first_shard_is_missing(home: Home) -> Path:
    folder = home.write_split()
    (folder / INDEX).unlink()
    (folder / FIRST).unlink()
    return folder


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> Path:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def index_lacks_a_tensor(home: Home) -> Path:
    return change_index(home.write_split(), lambda names: names.pop(f"{UP}.weight"))


def index_names_another_file(home: Home) -> Path:
    return change_index(home.write_split(), lambda names: names.update({f"{UP}.weight": FIRST}))


def index_lacks_a_file(home: Home) -> Path:
    folder = home.write_split()
    index = json.loads((folder / INDEX).read_text())
    kept = {name: file for name, file in index["weight_map"].items() if file == FIRST}
    (folder / INDEX).write_text(json.dumps({"weight_map": kept}))
    return folder


def twice(home: Home) -> Path:
    folder = home.write()
    stored = bytearray((folder / "model.safetensors").read_bytes())
    stored[-1] ^= 1  # what is the same in both is taken once
    (folder / "model.fp16.safetensors").write_bytes(stored)
    return folder


def begins_with(home: Home, start: bytes) -> Path:
    folder = home.write()
    (folder / "model.safetensors").write_bytes(start + bytes(1000))
    return folder


def adapter(home: Home) -> Path:
    home.folder.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    write_arrays(home.folder / "adapter_model.safetensors", {name: np.ones((4, 256), np.float32)})
    (home.folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return home.folder


def adapter_beside_a_configuration(home: Home) -> Path:
    folder = adapter(home)
    (folder / "config.json").write_text(json.dumps(folder_parts(home.truth, None)[1]))
    return folder


def other_names(home: Home) -> Path:
    def change(arrays: Arrays, _: object) -> None:
        for name in list(arrays):
            arrays[f"encoder.{name}"] = arrays.pop(name)

    return home.write(change)


def codes_of_no_format(home: Home) -> Path:
    def change(arrays: Arrays, config: dict[str, Any]) -> None:
        del arrays[f"{UP}.weight"], arrays[f"{UP}.weight_scale_inv"]
        arrays[f"{UP}.codes"] = np.zeros((512, 32, 1), np.int16)
        arrays[f"{UP}.codebooks"] = np.zeros((1, 256, 1, 8), np.float16)
        config["quantization_config"] = {"quant_method": "aqlm"}

    return home.write(change)


def gathered_nowhere(home: Home) -> Path:
    def change(arrays: Arrays, _: object) -> None:
        arrays[f"{UP}.weight"] = np.zeros((0,), ml_dtypes.bfloat16)
        del arrays[f"{UP}.weight_scale_inv"]

    return home.write(change)


def gguf_inside(home: Home) -> Path:
    home.folder.mkdir()
    shutil.copy(home.gguf, home.folder / "one.gguf")
    return home.folder


def deeper(home: Home) -> Path:
    folder = home.write()
    (home.path / "hub" / "snapshots").mkdir(parents=True)
    folder.rename(home.path / "hub" / "snapshots" / "abc")
    return home.path / "hub"


def loop(home: Home) -> Path:
    folder = home.write()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "model.safetensors")
    return folder


CASES: dict[Callable[[Home], Path], tuple[str, ...]] = {
    shard_is_missing: ("missing: 2",),
    first_shard_is_missing: ("missing: 1",),
    index_lacks_a_tensor: ("holds more than", f"{UP}.weight", "load both again"),
    index_names_another_file: (f"{UP}.weight", "load both again"),
    index_lacks_a_file: (INDEX, "not 2", "load both again"),
    twice: ("model.fp16.safetensors", "too; move one"),
    adapter: ("adapter (LoRA)", "merge it into its model"),
    adapter_beside_a_configuration: ("adapter (LoRA)", "merge it into its model"),
    other_names: ("encoder.model.embed_tokens.weight", "no tensor of the architecture"),
    codes_of_no_format: (f"{UP}.codes", "no known format", "aqlm", "leave this folder out"),
    gathered_nowhere: (f"{UP}.weight", "holds no numbers", "DeepSpeed"),
    gguf_inside: ("there is 'one.gguf' in it",),
    deeper: ("there is 'snapshots/abc' in it",),
    loop: ("model.safetensors", "symbolic links"),
    lambda home: begins_with(home, b"GGUF"): ("a GGUF file", ".gguf"),
    lambda home: begins_with(home, b"PK\x03\x04"): ("a pickle", "save it as safetensors"),
    lambda home: begins_with(home, b"version https://git-lfs.gi"): ("git lfs pull",),
    lambda home: begins_with(home, b"<!DOCTYPE html>"): ("web site", "load it again"),
}


@pytest.mark.parametrize(("make", "words"), CASES.items())
def test_refused_by_every_command(
    make: Callable[[Home], Path],
    words: tuple[str, ...],
    home: Home,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make(home)
    for command in home.commands(folder):
        assert main(command) == 1, command
        error = capsys.readouterr().err.splitlines()
        assert error[-1].startswith("recover: error: "), command
        assert str(folder) in error[-1]
        for word in words:
            assert word in error[-1], command
        assert not any("Traceback" in line for line in error)
        assert not list(home.output.iterdir())


def test_what_is_beside_a_model_is_no_matter(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without it the tests above would prove nothing."""
    folder = home.write_split()
    adapter = {"base_model.model.lora_A.weight": np.ones((4, 256), np.float32)}
    write_arrays(folder / "adapter_model.safetensors", adapter)
    (folder / "itself").symlink_to(folder)
    for command in home.commands(folder):
        assert main(command) == 0, capsys.readouterr().err


def test_rows_that_pad_the_vocabulary(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Embeddings of more rows than ``vocab_size`` are common; what all have is looked at."""

    def change(arrays: Arrays, _: object) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            padding = np.zeros((8, arrays[name].shape[1]), arrays[name].dtype)
            arrays[name] = np.concatenate([arrays[name], padding])

    folder, output = home.write(change), home.output / "merged.gguf"
    assert main(["merge", str(home.gguf), str(folder), "-o", str(output)]) == 0
    assert "has 72 rows, not 64" in capsys.readouterr().err
    truth = read_weights(home.truth)["token_embd.weight"]
    np.testing.assert_allclose(read_weights(output)["token_embd.weight"], truth, 2**-11, 2**-25)

    for pair in ([folder, home.gguf], [home.gguf, folder]):
        assert main(["verify", *map(str, pair)]) == 0
        assert (
            f"only {folder} has 'token_embd.weight[64:]', 'output.weight[64:]': not compared"
            in (capsys.readouterr().out)
        )
    report = str(home.output / "a.html")
    assert main(["evaluate", str(home.gguf), "--truth", str(folder), "--report", report]) == 0
    said = capsys.readouterr().err
    for name in ("token_embd.weight", "output.weight"):
        assert f"as many rows of {name!r}: the figures are of those that both have" in said


def test_plans_of_other_models_are_refused(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run says what the merge would."""
    other = write_small(home.path / "o.gguf", small_weights(np.random.default_rng(9)), "F32")
    folder = write_parts(home.folder, *folder_parts(other, "fp8"))
    command = ["merge", str(home.gguf), str(folder), "-o", str(home.output / "a.gguf"), "--dry-run"]
    assert main(command) == 1
    assert f"{folder} and {home.gguf} are not quantized from the same" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0


def test_calibrations_by_tensors_of_another_model_are_refused(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """A merged adapter changes some matrices only; so does a shard of another download."""

    def change(arrays: Arrays, _: object) -> None:
        one, two = UP, "model.layers.0.mlp.gate_proj"
        for leaf in ("weight", "weight_scale_inv"):
            names = f"{one}.{leaf}", f"{two}.{leaf}"
            arrays[names[0]], arrays[names[1]] = arrays[names[1]], arrays[names[0]]

    folder, output = home.write(change), home.output / "c.json"
    command = ["calibrate", str(home.gguf), str(folder), "--truth", str(home.truth)]
    assert main([*command, "-o", str(output)]) == 1
    error = capsys.readouterr().err
    assert f"{folder}: was not quantized from {home.truth}" in error
    assert "'blk.0.ffn_gate.weight', 'blk.0.ffn_up.weight'" in error
    assert "leave it out" in error
    assert not output.exists()


@pytest.mark.parametrize("is_truth", [True, False])
def test_another_architecture_is_no_truth(
    home: Home, is_truth: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = home.write(lambda _, config: config.update(model_type="qwen2"))
    pair = (home.gguf, folder) if is_truth else (folder, home.truth)
    assert main(["evaluate", str(pair[0]), "--truth", str(pair[1])]) == 1
    error = capsys.readouterr().err
    for word in (*map(str, pair), "'qwen2'", "'llama'"):
        assert word in error


def test_texts_are_read_through_gguf_files(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    text = home.path / "text"
    text.write_text("hello")
    folder = home.write()
    command = ["evaluate", str(folder), "--truth", str(home.truth), "--text", str(text)]
    assert main(command) == 1
    assert f"{folder}: is no GGUF file" in capsys.readouterr().err

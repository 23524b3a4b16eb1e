"""Files that a command reads beside its inputs are not written over; nor are unreadable names."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from recover.cli import main
from tests.support.gguf_files import write_out
from tests.support.models import DATA, TINY

Q5, Q4 = (DATA / f"tiny-llama-3m-{kind}.gguf" for kind in ("Q5_K_M", "Q4_K_M"))
PART = "out-00001-of-00002.gguf"


def run(*words: str | Path) -> int:
    return main([*map(str, words), "--quiet"])


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "cal.json"
    assert run("calibrate", Q5, Q4, "--truth", TINY, "-o", path) == 0
    return path


@pytest.mark.parametrize("option", ["-o", "--uncertainty"])
def test_a_calibration(
    calibration: Path, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, link = calibration.read_bytes(), tmp_path / "link.gguf"
    os.link(calibration, link)
    others: list[str | Path] = [] if option == "-o" else ["-o", tmp_path / "out.gguf"]
    assert run("merge", Q5, Q4, "--calibration", calibration, *others, option, link) == 1
    assert "is one of the inputs" in capsys.readouterr().err
    assert calibration.read_bytes() == link.read_bytes() == before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model"
    assert run("export", Q5, "-o", path) == 0
    return path


@pytest.mark.parametrize("command", [["merge", Q5, Q4], ["export", Q5]])
def test_the_folder_of_a_configuration(
    command: list[str | Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "model"
    shutil.copytree(folder, here)
    before = {each.name: each.read_bytes() for each in here.iterdir()}
    assert run(*command, "-o", f"{here}/", "--config", here, "--force") == 1
    assert "holds one of the inputs" in capsys.readouterr().err
    assert {each.name: each.read_bytes() for each in here.iterdir()} == before


@pytest.mark.parametrize("command", [["merge", Q5, Q4], ["export", Q5]])
def test_a_configuration_that_ties_other_matrices(
    command: list[str | Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who loads the folder would take the embedding for the last matrix."""
    config = tmp_path / "config"
    config.mkdir()
    told = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (config / "config.json").write_text(json.dumps(told))
    assert run(*command, "-o", f"{tmp_path / 'out'}/", "--config", config) == 1
    assert "tie_word_embeddings" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["merge", Q5, Q4, "-o"],
        ["merge", Q5, Q4, "-o", "{}/out.gguf", "--uncertainty"],
        ["quantize", TINY, "Q4_K", "-o"],
    ],
    ids=lambda words: words[0],
)
def test_whole_files_have_no_names_of_parts(
    command: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(word).format(tmp_path) for word in command]
    assert run(*words, tmp_path / PART) == 1
    assert "is the name of a part of a split file" in capsys.readouterr().err
    assert not (tmp_path / PART).exists()


def test_an_importance_matrix_of_another_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Codes would be those without a matrix, and the metadata would say otherwise."""
    writer = GGUFWriter(tmp_path / "imatrix.gguf", "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name in ("encoder.layer.0.query.weight", "encoder.layer.0.key.weight"):
        writer.add_tensor(f"{name}.in_sum2", np.ones((1, 256), np.float32))
        writer.add_tensor(f"{name}.counts", np.ones((1, 1), np.float32))
    write_out(writer)
    out = tmp_path / "out.gguf"
    assert run("quantize", TINY, "Q4_K", "-o", out, "--imatrix", tmp_path / "imatrix.gguf") == 1
    assert "it is of another model" in capsys.readouterr().err
    assert not out.exists()

"""Whatever is at a path: pipes are not waited for, and descriptors are not used up."""

import gc
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from recover._files import UnreadableError, map_opened, opened, read_bytes
from recover.cli import main
from recover.containers.gguf.reader import open_gguf
from recover.errors import OutputError, ReblockError
from recover.evaluate.pictures import Picture, save_pictures
from recover.reblock.sentencepiece import parse_vocabulary
from tests.hostile import safetensors_files
from tests.hostile.checks import check_line
from tests.support.gguf_files import stored, write_gguf
from tests.support.models import DATA, TINY


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


ODD: dict[str, Callable[[Path], Path]] = {
    "a pipe": pipe,
    "a folder": folder,
    "a device": lambda _path: Path("/dev/zero"),
}
FINE = DATA / "tiny-llama-3m-Q5_K_M.gguf"
COMMANDS = (
    "inspect {}",
    "merge {} -o {out}",
    "merge {fine} -o {out} --calibration {}",
    "bounds {} --summary",
    "verify {} {fine}",
    "verify {fine} {}",
    "quantize {} Q8_0 -o {out}",
    "quantize {fine} Q8_0 -o {out} --imatrix {}",
    "evaluate {} --truth {fine}",
    "evaluate {fine} --truth {}",
    "calibrate {} {fine} --truth {fine} -o {out}",
    "calibrate {fine} {fine} --truth {} -o {out}",
    "reblock {} -o {out}",
    "reblock {} -o {out} --second-hand",
)
OUTPUTS = (
    "merge {fine} -o {}",
    "merge {fine} -o {out} --uncertainty {}",
    "quantize {fine} Q8_0 -o {}",
    "bounds {fine} -o {}",
    "reblock {fine} -o {}",
    "calibrate {fine} {fine} --truth {fine} -o {}",
    "evaluate {fine} --truth {fine} --report {}",
)


# A folder may be the output of a merge.
CASES = [
    (what, command)
    for what, command in product(ODD, COMMANDS + OUTPUTS)
    if (what, command) != ("a folder", "merge {fine} -o {}")
]


@pytest.mark.parametrize(("what", "command"), CASES)
def test_odd_paths(
    what: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = ODD[what](tmp_path / "odd")
    words = [word.format(odd, fine=FINE, out=tmp_path / "out.gguf") for word in command.split()]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"recover: error: {odd}: ")
    assert "unexpected" not in error


def test_pictures_go_to_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(FINE), "--truth", str(TINY), "--plot", str(pipe(tmp_path / "odd"))]
    assert main(words) == 1
    assert "is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer.model"])
def test_pipes_in_a_model_folder(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = {"model.norm.weight": safetensors_files.entry("F32", [2], [0, 8])}
    (tmp_path / "model.safetensors").write_bytes(safetensors_files.file(header))
    (tmp_path / "config.json").write_text(
        '{"hidden_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 4,'
        ' "quantization_config": {"quant_method": "gptq"}}'
    )
    (tmp_path / name).unlink(missing_ok=True)
    pipe(tmp_path / name)
    words = ["reblock", str(tmp_path), "-o", str(tmp_path / "o.gguf"), "--arch", "llama"]
    assert main(words) == 1
    assert "is no regular file" in capsys.readouterr().err


def test_small_files(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert read_bytes(path, 3) == b"abc"
    with pytest.raises(UnreadableError, match="has 3 bytes; more than 2 are not read"):
        read_bytes(path, 2)
    with opened(path) as file:
        data = map_opened(file)
    path.unlink()
    assert data.tobytes() == b"abc"
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1


def test_files_are_closed_when_they_are_mapped(tmp_path: Path) -> None:
    gc.collect()  # files of other tests that nothing refers to any more
    with FINE.open("rb") as file:
        before = file.fileno()
    models = [open_gguf(FINE) for _ in range(20)]
    with FINE.open("rb") as file:  # the lowest number that is free
        assert file.fileno() == before
    assert len({model.tensors["output.weight"].raw.tobytes() for model in models}) == 1


def run(most: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command that may have so many files open."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    command = [sys.executable, "-m", "recover", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)


def test_more_inputs_than_descriptors(tmp_path: Path, real_rows: NDArray[np.float32]) -> None:
    rng = np.random.default_rng(7)
    inputs = []
    for i in range(70):
        noisy = real_rows[:2, :256] * rng.uniform(1, 1 + 1e-6, (2, 256)).astype(np.float32)
        tensors = {"blk.0.ffn_up.weight": stored("Q4_K" if i % 2 else "Q5_K", noisy)}
        inputs.append(write_gguf(tmp_path / f"{i}.gguf", tensors))
    truth = {"blk.0.ffn_up.weight": stored("F32", real_rows[:2, :256])}
    path = write_gguf(tmp_path / "truth.gguf", truth)
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("merge", *inputs, "-o", tmp_path / "o.gguf", "--method", "linear", "--force"),
        ("inspect", *inputs),
        ("evaluate", *inputs, "--truth", path),
    )
    for arguments in commands:
        done = run(64, *arguments)
        assert done.returncode == 0, done.stderr


def test_more_parts_than_descriptors(tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    done = run(24, "merge", FINE, "-o", out, "--split-max-size", "1K")
    assert done.returncode == 1
    assert "raise the limit (ulimit -n)" in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "score", [b"\x11" + np.float64(1e300).tobytes(), b"\x15" + np.float32(np.nan).tobytes()]
)
def test_scores_that_are_no_float32_numbers(score: bytes) -> None:
    piece = b"\x0a\x01a" + score
    with pytest.raises(ReblockError, match="a token with the score") as caught:
        parse_vocabulary(b"\x0a" + bytes([len(piece)]) + piece)
    check_line(str(caught.value))


def test_no_folder_is_left_where_pictures_fail(tmp_path: Path) -> None:
    class Broken(Figure):
        def savefig(self, fname: Any, **_options: Any) -> None:
            raise MemoryError

    class Fine(Figure):
        def savefig(self, fname: Any, **_options: Any) -> None:
            fname.write(b"png")

    pictures = [Picture("a", "a", "a", Fine()), Picture("b", "b", "b", Broken())]
    with pytest.raises(MemoryError):
        save_pictures(pictures, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    old = tmp_path / "old"
    old.mkdir()
    (old / "mine.png").write_bytes(b"mine")
    with pytest.raises(MemoryError):
        save_pictures(pictures, old)
    assert (old / "mine.png").read_bytes() == b"mine"
    with pytest.raises(OutputError):
        save_pictures(pictures, tmp_path / "missing" / "new")

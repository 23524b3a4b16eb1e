"""Names, keys, values and paths reach the terminal as one harmless line each."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from numpy.typing import NDArray

from recover._text import escaped, shortened
from recover.cli import _console, main
from tests.hostile.builder import gguf, tensor
from tests.hostile.kinds import F32
from tests.support.gguf_files import stored, write_gguf

FORGED = "recover: all is well"
HOSTILE = (
    f"\x1b[2J\x1b]0;title\x07\r\n{FORGED}\n\u202egnp.\u2066\u2028\u0085\x9b31m\x00e\u0301\ud7ff"
)


def test_escaped() -> None:
    assert escaped("blk.0.attn_q.weight") == "blk.0.attn_q.weight"
    assert escaped("Größe 模型 🦙") == "Größe 模型 🦙"
    assert escaped("a\nb\x1b[31m\u202e\\") == "a\\nb\\x1b[31m\\u202e\\"
    assert escaped(HOSTILE).isprintable()
    assert shortened("x" * 9, 9) == "x" * 9
    assert shortened("x" * 10, 9) == "x" * 9 + "... (10 characters)"


def hostile_model(path: Path, kind: str, rows: NDArray[np.float32]) -> Path:
    def add(writer: GGUFWriter) -> None:
        writer.add_string("general.name", HOSTILE)
        writer.add_string("general.quantized_by", HOSTILE)
        writer.add_string("quantize.imatrix.file", HOSTILE)
        writer.add_string("quantize.imatrix.dataset", HOSTILE * 500)

    names = [f"blk.0.{HOSTILE}.weight", "x" * 20_000 + ".weight"]
    tensors = {name: stored(kind, rows[:4, :256]) for name in names}
    return write_gguf(path, tensors, architecture=HOSTILE, add=add)


@pytest.mark.parametrize("where", ["plain", "named"])
def test_every_command(
    where: str, tmp_path: Path, real_rows: NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ("plain" if where == "plain" else HOSTILE.replace("\0", ""))
    folder.mkdir()
    fine, coarse, truth = (
        hostile_model(folder / f"{kind}.gguf", kind, real_rows) for kind in ("Q8_0", "Q4_K", "F32")
    )
    out = folder / "out.gguf"
    commands: list[list[str | Path]] = [
        ["inspect", fine],
        ["inspect", fine, coarse, "-v"],
        ["merge", fine, coarse, "-o", out, "-v"],
        ["merge", fine, coarse, "-o", out, "--dry-run"],
        ["merge", fine, coarse, "-o", out, "--tensors", HOSTILE],
        ["bounds", fine, coarse, "--summary"],
        ["verify", truth, fine, "-v"],
        ["quantize", fine, "Q4_K", "-o", out, "--allow-requantize", "-v"],
        ["quantize", fine, "Q4_K", "-o", out],
        ["quantize", truth, "Q4_K", "-o", out, "--imatrix", fine],
        ["quantize", truth, "Q4_K", "-o", out, "--tensor-type", f"{HOSTILE}=Q4_K"],
        ["evaluate", fine, coarse, "--truth", truth, "--by", "tensor"],
        ["evaluate", fine, coarse, "--truth", truth, "--by", "role"],
        ["evaluate", fine, "--truth", truth, "--plot", folder / "plots"],
        ["evaluate", fine, "--truth", truth, "--report", folder / "report.html"],
        ["calibrate", fine, coarse, "--truth", truth, "-o", folder / "c.json"],
        ["reblock", fine, "-o", out, "-v"],
        ["inspect", fine, folder / "missing.gguf"],
        ["merge", fine, "-o", folder / "missing" / "out.gguf"],
    ]
    for command in commands:
        with np.errstate(all="ignore"):
            main(list(map(str, command)))
        streams = capsys.readouterr()
        for printed in (streams.out, streams.err):
            for line in printed.split("\n"):
                assert line.isprintable(), command
                assert not line.startswith(FORGED), command
                assert len(line) < 6000, command
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not set("\x1b\x07\0\u202e\u2066\x9b") & set(page)


def test_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    odd = HOSTILE.replace("\0", "")
    for arguments in (
        ["inspect", "x", "--" + odd.replace(" ", "\n")],
        ["quantize", "a", odd, "-o", "b"],
        ["merge", "a", "-o", "b", "--method", odd],
        ["merge", "a", "-o", "b", "--split-max-size", odd],
        [odd],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert all(line.isprintable() for line in error.split("\n"))
        assert FORGED not in [line[: len(FORGED)] for line in error.split("\n")]


def test_tracebacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf([], [tensor(HOSTILE, (8,), F32, 7)], bytes(64)))
    assert main(["inspect", str(path), "--debug"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert all(line.isprintable() for line in error.split("\n"))


def test_tables_fold_and_align(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("a" * 300, "模型", "1"), ("b", "c\x1b[31m", "22,222")]
    _console.print_table("title\n", ("name:", "what:", "n"), rows)
    title, head, *lines = capsys.readouterr().out.split("\n")
    assert title == "title\\n"
    assert head.endswith("n")
    assert max(map(len, lines)) <= 200
    assert sum(line.count("a") for line in lines) == 300
    assert "c\\x1b[31m" in lines[-2]
    assert len(lines[-2]) == len(head)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_streams_that_lack_characters(
    encoding: str, tmp_path: Path, real_rows: NDArray[np.float32]
) -> None:
    path = tmp_path / "Größe 模型.gguf"
    write_gguf(path, {"blk.0.漢字.weight": stored("Q8_0", real_rows[:2, :256])})
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    for command in (["inspect", str(path)], ["merge", str(path), "-o", str(path), "--dry-run"]):
        done = subprocess.run(
            [sys.executable, "-m", "recover", *command, "-v"],
            capture_output=True,
            env=environment,
            check=False,
        )
        assert b"unexpected" not in done.stderr
        printed = (done.stdout + done.stderr).decode(encoding)
        wanted = "Größe 模型".encode(encoding, "backslashreplace").decode(encoding)
        assert wanted in printed

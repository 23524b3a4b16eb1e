"""Settings of numba, and folders for machine code, that are of no use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.models import ROOT, TINY

pytestmark = pytest.mark.long

# A kernel that takes little time to compile.
SCRIPT = """
import sys
from recover._compiled import jit as _jit
from recover._compiled import float16 as _float16
@_jit.kernel
def double(x):
    return 2 * x
assert double(21) == 42
"""


@pytest.fixture(autouse=True)
def _deadline() -> None:
    """Processes that compile take longer than a reader may."""


def check_works(folder: Path, **environment: str) -> str:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("value", ["0", "-1", "", "many", "1.5", "2"])
def test_numbers_of_threads(tmp_path: Path, value: str) -> None:
    assert check_works(tmp_path, NUMBA_NUM_THREADS=value) == ""


@pytest.mark.parametrize("name", ["NUMBA_DISABLE_JIT", "NUMBA_CACHE_LOCATOR_CLASSES"])
def test_settings_that_kernels_cannot_have(tmp_path: Path, name: str) -> None:
    assert check_works(tmp_path, **{name: "1"}) == ""


@pytest.mark.parametrize("kind", ["file", "link to nowhere", "link to a file", "in a file"])
@pytest.mark.parametrize("variable", ["NUMBA_CACHE_DIR", "XDG_CACHE_HOME"])
def test_a_file_where_the_folder_should_be(tmp_path: Path, variable: str, kind: str) -> None:
    path, file = tmp_path / "cache", tmp_path / "file"
    file.write_bytes(b"untouched")
    if kind == "file":
        path = file
    elif kind == "in a file":
        path = file / "cache"
    else:
        path.symlink_to(tmp_path / "nowhere" / "x" if kind == "link to nowhere" else file)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    settings = {variable: str(path), "TMPDIR": str(temporary)}
    if variable != "NUMBA_CACHE_DIR":
        settings["NUMBA_CACHE_DIR"] = ""
    assert check_works(tmp_path, **settings) == ""
    assert file.read_bytes() == b"untouched"
    assert list(temporary.iterdir())  # the code is kept there instead


def test_a_file_where_the_private_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / f"recover-{os.getuid()}").write_bytes(b"untouched")
    (tmp_path / "file").write_bytes(b"")
    settings = {"NUMBA_CACHE_DIR": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    assert check_works(tmp_path, **settings) == ""


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_damaged_machine_code(tmp_path: Path, damage: bytes | None) -> None:
    """None: a folder bears the file's name."""
    cache = tmp_path / "cache"
    check_works(tmp_path, NUMBA_CACHE_DIR=str(cache))
    kept = [path for path in cache.rglob("*.nb*") if "double" in path.name]
    assert len(kept) == 2
    for path in kept:
        path.unlink()
        path.mkdir() if damage is None else path.write_bytes(damage)
        assert check_works(tmp_path, NUMBA_CACHE_DIR=str(cache)) == ""


def test_the_command_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "recover", "inspect", str(TINY)],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "NUMBA_NUM_THREADS": "0"},
    )
    assert (done.returncode, done.stderr) == (0, b"")

"""What a command loads before it begins: no more than it needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOADED = """
import sys
from recover.cli import main
assert main(sys.argv[1:]) == 0
print("loaded", *sorted(sys.modules))
"""


def loaded(*arguments: object) -> set[str]:
    """Modules that a process has loaded when a command is done."""
    command = [sys.executable, "-c", LOADED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("method", ["posterior", "linear"])
def test_machine_code_is_loaded_without_what_compiles(
    method: str, tiny: list[Path], tmp_path: Path
) -> None:
    arguments = "merge", *tiny, "-o", tmp_path / "out.gguf", "--method", method
    loaded(*arguments)  # compiles, perhaps
    modules = loaded(*arguments)
    assert "numba" in modules
    assert modules.isdisjoint({"scipy", "yaml", "numba.np.linalg", "numba.np.arraymath"})


def test_process_ends_with_all_printed_and_its_status(tiny: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recover", "merge", *map(str, tiny), "--json", "-o"]
    done = subprocess.run([*command, str(tmp_path / "out.gguf")], capture_output=True, check=False)
    assert done.returncode == 0
    assert done.stdout.endswith(b"}\n")
    done = subprocess.run([*command, str(tiny[0])], capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith(b"\n")
    read, write = os.pipe()
    os.close(read)  # nobody reads
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [*command, str(tmp_path / "out.gguf")],
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")  # who closes a pipe has read enough

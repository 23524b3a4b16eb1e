"""The cache of machine code: where it is, and that nothing of no use stays in it."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recover._compiled import kept

CODE = """
import numpy as np
from kernels.doubling import double
print(double(np.ones(3))[0])
"""
KERNEL = """
import numpy as np
from recover._compiled.jit import kernel

@kernel
def double(x):
    return {factor} * x
"""


@pytest.fixture(autouse=True)
def _forget() -> None:
    kept._remove_gone.cache_clear()


def new_folder(root: Path, path: Path, digest: str) -> Path:
    """A folder of machine code as a process leaves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    folder = kept.folder_for(root, path, digest)
    kept.prepare(folder, path)
    (folder / "machine.nbc").write_bytes(b"code")
    return folder


def test_earlier_sources_of_a_file_leave_nothing(tmp_path: Path) -> None:
    root, sources = tmp_path / "cache", tmp_path / "sources"
    old = new_folder(root, sources / "one.py", "0" * 16)
    other = new_folder(root, sources / "one_more.py", "1" * 16)
    elsewhere = new_folder(root, tmp_path / "elsewhere" / "one.py", "0" * 16)
    new = new_folder(root, sources / "one.py", "2" * 16)
    assert not old.exists()
    assert all((each / "machine.nbc").exists() for each in (new, other, elsewhere))


def test_files_that_are_gone_leave_nothing(tmp_path: Path) -> None:
    root, gone = tmp_path / "cache", tmp_path / "sources" / "gone.py"
    old = new_folder(root, gone, "0" * 16)
    gone.unlink()
    new = new_folder(root, gone.with_name("here.py"), "1" * 16)
    assert not old.exists()
    assert new.exists()


def test_folders_of_sources_that_are_gone_leave_nothing(tmp_path: Path) -> None:
    root, gone = tmp_path / "cache", tmp_path / "gone" / "one.py"
    old = new_folder(root, gone, "0" * 16)
    gone.unlink()
    gone.parent.rmdir()
    kept._remove_gone.cache_clear()
    new_folder(root, tmp_path / "here" / "one.py", "0" * 16)
    assert not old.parent.exists()


@pytest.mark.parametrize("name", ["numba-0123456789abcdef", "kernels-0123456789abcdef"])
def test_folders_that_tell_no_sources_stay_for_a_week(tmp_path: Path, name: str) -> None:
    root = tmp_path / "cache"
    young, old = root / name, root / name.replace("f", "0")
    for folder, days in ((young, 6), (old, 8)):
        folder.mkdir(parents=True)
        then = time.time() - days * 86_400
        os.utime(folder, (then, then))
    new_folder(root, tmp_path / "here" / "one.py", "0" * 16)
    assert young.exists()
    assert not old.exists()


def test_only_so_many_are_removed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_REMOVED", 3)
    root = tmp_path / "cache"
    for i in range(5):
        folder = root / f"numba-{i:016}"
        folder.mkdir(parents=True)
        os.utime(folder, (0, 0))
    new_folder(root, tmp_path / "here" / "one.py", "0" * 16)
    assert len(list(root.glob("numba-*"))) == 2


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    root, other = tmp_path / "cache", tmp_path / "other"
    other.mkdir()
    names = "numba-0123", "kernels", "recover_0123456789abcdef"
    for name in names:
        (root / name).mkdir(parents=True)
    (root / "numba-0123456789abcdef").symlink_to(other)
    for each in root.iterdir():
        os.utime(each, (0, 0))
    new_folder(root, tmp_path / "here" / "one.py", "0" * 16)
    assert all((root / name).exists() for name in (*names, "numba-0123456789abcdef"))


def test_a_damaged_word_of_the_sources_removes_nothing(tmp_path: Path) -> None:
    root, sources = tmp_path / "cache", tmp_path / "sources"
    one = new_folder(root, sources / "one.py", "0" * 16)
    (one.parent / kept.SOURCES).write_bytes(b"")
    new_folder(root, sources / "two.py", "1" * 16)
    assert one.exists()
    assert (one.parent / kept.SOURCES).read_text() == str(sources)


def test_many_at_once(tmp_path: Path) -> None:
    root, sources = tmp_path / "cache", tmp_path / "sources"
    with ThreadPoolExecutor(8) as pool:
        made = [
            pool.submit(new_folder, root, sources / f"file{i % 4}.py", f"{i:016x}")
            for i in range(200)
        ]
    # Another one may have removed a folder before there was anything in it, as a process finds it.
    errors = [each.exception() for each in made]
    assert all(error is None or isinstance(error, OSError) for error in errors)
    for i in range(4):
        new_folder(root, sources / f"file{i}.py", "f" * 16)
    left = sorted(each.name for each in root.glob("kernels-*/*-*"))
    assert left == [f"file{i}-{'f' * 16}" for i in range(4)]


def test_edited_kernels_are_compiled_again_and_the_old_ones_removed(tmp_path: Path) -> None:
    """Runs of a program whose kernel is edited in between."""
    package, cache = tmp_path / "kernels", tmp_path / "cache"
    package.mkdir()
    (package / "__init__.py").touch()
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(tmp_path)}
    folders = []
    for factor in (2, 3, 3):
        (package / "doubling.py").write_text(KERNEL.format(factor=factor))
        done = subprocess.run(
            [sys.executable, "-B", "-c", CODE], env=environment, capture_output=True, check=True
        )
        assert float(done.stdout) == factor
        folders.append([each.name for each in cache.glob("kernels-*/doubling-*")])
    assert all(len(each) == 1 for each in folders)
    assert folders[0] != folders[1] == folders[2]

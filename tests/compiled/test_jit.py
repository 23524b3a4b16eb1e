"""Compiled functions: which of them Python may call."""

import ast
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba.core.caching import NullCache
from numpy.typing import NDArray

import recover
from recover._compiled.jit import inner, kernel, sized
from recover._compiled.sources import imported
from recover.quants._k_scales import unpack_scales
from recover.quants.q4_k import Q4_K


def test_what_only_kernels_call_says_so() -> None:
    codes, scale, offset = np.empty(256, np.uint8), *np.empty((2, 16), np.float32)
    for _ in range(2):  # the second time it is compiled
        with pytest.raises(TypeError, match="unpack_scales is for kernels only"):
            unpack_scales(np.zeros(16, np.uint8), scale, offset)
        Q4_K.unpack(np.zeros(144, np.uint8), codes, scale, offset)


def imported_files(path: Path) -> Iterator[Path]:
    """What Python's own parser finds."""
    package = Path(recover.__file__).parent
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            room, *within = node.module.split(".")
            base = package.joinpath(*within)
            names = [base / f"{each.name}.py" for each in node.names]
            for file in (base.with_suffix(".py"), base / "__init__.py", *names):
                if room == "recover" and file.is_file():
                    yield file


def test_machine_code_depends_on_all_files_that_its_file_imports() -> None:
    files = sorted(Path(recover.__file__).parent.rglob("*.py"))
    assert len(files) > 100
    n_found = 0
    for path in files:
        found = {Path(each) for each in imported(str(path))}
        assert found == set(imported_files(path)), path
        n_found += len(found)
    assert n_found > 500


def test_kernels_are_pickled_by_name() -> None:
    assert pickle.loads(pickle.dumps(Q4_K.unpack)) is Q4_K.unpack


_SUMS = """
import sys
import numpy as np
from recover.estimators._variances import add_variance, sum_variance
numbers, sums = np.arange(6, dtype=np.float32), np.zeros((2, 1))
if "sum" in sys.argv:
    print(sum_variance(numbers))
if "add" in sys.argv:
    add_variance(numbers, sums, 0)
    print(*sums[:, 0])
"""


def test_machine_code_of_other_processes_is_taken_and_called_by_new(tmp_path: Path) -> None:
    def run(*what: str) -> bytes:
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", _SUMS, *what]
        done = subprocess.run(command, env=environment, check=True, capture_output=True)
        return done.stdout

    assert run("sum").split() == [b"240.0"]
    assert run("add").split() == [b"48.0", b"192.0"]  # it calls the other one, which is loaded
    (runtime,) = tmp_path.glob("runtime-*")
    for content in (b"", runtime.read_bytes()[:-9]):
        runtime.write_bytes(content)
        before = sorted(tmp_path.rglob("*.nbc"))
        assert run("sum", "add").split() == [b"240.0", b"48.0", b"192.0"]
        assert sorted(tmp_path.rglob("*.nbc")) == before  # nothing was compiled
    assert len(runtime.read_bytes()) > len(content)  # it was made anew


@inner
def _sum_of(x: NDArray[np.float32], n: int) -> np.float32:
    total = np.float32(0)
    for i in range(n):
        total += x[i]
    return total


@sized
def _sum_of_known(x: NDArray[np.float32], n: int) -> np.float32:
    return _sum_of(x, n)


@kernel
def _sums(x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    out[0], out[1] = _sum_of(x, 2), _sum_of(x, n=3)
    out[2], out[3] = _sum_of_known(x, 4), _sum_of_known(x, 5)


def test_inner_functions_are_compiled_once_and_have_no_machine_code() -> None:
    kernels: list[Any] = [_sums, _sum_of, _sum_of_known]
    for each in kernels:
        each.dispatcher._cache = NullCache()
    out = np.empty(4, np.float32)
    _sums(np.arange(6, dtype=np.float32), out)
    assert out.tolist() == [1, 3, 6, 10]
    libraries = [
        [compiled.library for compiled in each.dispatcher.overloads.values()] for each in kernels
    ]
    assert [len(each) for each in libraries] == [1, 1, 2]  # the last knows the numbers
    assert [bool(each[0]._get_compiled_object()) for each in libraries] == [True, False, True]

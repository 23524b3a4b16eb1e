"""Compiled functions: which of them Python may call."""

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import recover
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

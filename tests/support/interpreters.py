"""Interpreters with packages that neither `recover` nor its other tests need."""

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

VARIABLE = "RECOVER_TEST_PYTHONS"
"""Environment variable: interpreters to look in, separated as in ``PATH``."""

_FIND = "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"


@cache
def _has(python: str, packages: tuple[str, ...]) -> bool:
    command = [python, "-c", _FIND, *packages]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def interpreter_with(packages: Sequence[str]) -> str:
    """An interpreter that finds these packages.

    The test is skipped if none is named, and fails if none of those that are has them.
    """
    named = [each for each in os.environ.get(VARIABLE, "").split(os.pathsep) if each]
    for python in (sys.executable, *named):
        if _has(python, tuple(packages)):
            return python
    missing = f"no interpreter of {VARIABLE} has {', '.join(packages)}"
    if named:
        pytest.fail(missing)
    pytest.skip(missing)


def run_script(python: str, script: Path, *arguments: str | Path) -> None:
    """Run a script there; its messages are shown if it fails."""
    command = [python, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]

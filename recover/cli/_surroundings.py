"""What a report of a bug should tell: versions, the machine, and where things are kept."""

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import recover
from recover._compiled.jit import _cache_root as cache_folder
from recover.execution.tiles import available_cores

_PACKAGES = (
    "numpy",
    "numba",
    "llvmlite",
    "scipy",
    "gguf",
    "rich",
    "cvxpy",
    "matplotlib",
    "tokenizers",
    "xllamacpp",
)


def surroundings() -> Iterator[str]:
    """Lines of a name and a value."""
    python = f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})"
    yield f"python: {python}"
    yield f"system: {platform.platform()}"
    yield f"cpu: {_cpu()}, {available_cores()} of {os.cpu_count()} cores"
    yield f"package: {Path(recover.__file__).parent}"
    yield f"compiled code: {cache_folder()}"
    for name in _PACKAGES:
        try:
            yield f"{name}: {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            yield f"{name}: not installed"


def _cpu() -> str:
    """The processor's name, as Linux or the platform tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

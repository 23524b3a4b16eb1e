"""What machine code depends on: a file, and all files of the package that it imports."""

import hashlib
import os
import re
from functools import cache
from pathlib import Path

_ROOT = str(Path(__file__).parents[1])
_IMPORT = re.compile(r"^from recover([\w.]*) import (?:\(([^)]*)\)|(.*))", re.MULTILINE)
_NAME = re.compile(r"\w+")


@cache
def _files() -> frozenset[str]:
    """All files of the package."""
    found: list[str] = []
    for folder, folders, names in os.walk(_ROOT):
        folders[:] = [each for each in folders if each != "__pycache__"]
        found += [f"{folder}{os.sep}{name}" for name in names if name.endswith(".py")]
    return frozenset(found)


@cache
def _source(path: str) -> bytes:
    return Path(path).read_bytes()


@cache
def imported(path: str) -> tuple[str, ...]:
    """Files of the package that a file of it imports at its top level."""
    found = []
    for module, names, more in _IMPORT.findall(_source(path).decode()):
        base = _ROOT + module.replace(".", os.sep)
        candidates = [f"{base}.py", f"{base}{os.sep}__init__.py"]
        candidates += [f"{base}{os.sep}{name}.py" for name in _NAME.findall(names or more)]
        found += [each for each in candidates if each in _files()]
    return tuple(found)


@cache
def _digest(path: str) -> bytes:
    return hashlib.sha256(_source(path)).digest()


@cache
def sources_digest(path: str) -> str:
    """Hash of a file and of all files of the package that it imports, however indirectly.

    numba checks only the file of the compiled function, so that an edit in a function that it
    calls from another file would leave stale machine code; a folder per state of the sources
    cannot be stale.
    """
    sources, new = _machinery(), {path}
    while new:
        sources |= new
        new = {each for source in new for each in imported(source)} - sources
    digest = hashlib.sha256()
    for source in sorted(sources):
        digest.update(source.encode())
        digest.update(_digest(source))
    return digest.hexdigest()[:16]


def _machinery() -> set[str]:
    """How kernels are compiled."""
    folder = Path(__file__).parent
    return {str(folder / f"{name}.py") for name in ("jit", "linked", "loading")}

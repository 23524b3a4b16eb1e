"""Folders of machine code in the user's cache: one for each state of the sources of a file.

The cache has a location for each folder of sources: ``kernels-HASH``, by the folder's path, which
is told by a file `SOURCES` in it. A location has a folder ``NAME-DIGEST`` for each file ``NAME.py``
with kernels, by a digest of the file and of all that it imports.

Whoever makes a new folder removes what is of no use any more: machine code of earlier sources of
that file, of files that are gone, and of folders of sources that are gone. Several processes may do
so at once, and while others read. One that misses its machine code compiles again.
"""

import hashlib
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path

SOURCES = "sources.txt"
"""Name of the file that tells which folder's sources a location is for."""

MOST_REMOVED = 200
"""Locations that a process removes at most, so that its work does not wait for long."""

_LOCATION = re.compile(r"kernels-[0-9a-f]{16}")
_EARLIER = re.compile(r"numba-[0-9a-f]{16}")  # as earlier versions named them
_UNUSED_SECONDS = 7 * 86_400  # after which what does not tell its sources is of no use


def folder_for(root: Path, path: Path, digest: str) -> Path:
    """Where machine code is kept.

    Parameters
    ----------
    root : Path
        The cache.
    path : Path
        The file of the kernels.
    digest : str
        Of its sources.
    """
    location = hashlib.sha256(str(path.parent.absolute()).encode()).hexdigest()[:16]
    return root / f"kernels-{location}" / f"{path.stem}-{digest}"


def prepare(folder: Path, path: Path) -> None:
    """Make the folder that `folder_for` names, unless it is there, and remove what is of no use.

    What cannot be removed stays, without an error.

    Raises
    ------
    OSError
        If the folder cannot be made.
    """
    if folder.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    location = folder.parent
    if _sources_of(location) is None:
        (location / SOURCES).write_text(str(path.parent.absolute()), encoding="utf-8")
    for each in _outdated(folder):
        shutil.rmtree(each, ignore_errors=True)
    _remove_gone(location.parent)


def _outdated(folder: Path) -> Iterator[Path]:
    """Folders beside this one of earlier sources of the same file, or of a file that is gone."""
    name = _name_of(folder)
    sources = _sources_of(folder.parent)
    for each in _folders(folder.parent):
        other = _name_of(each)
        is_gone = sources is not None and not (sources / f"{other}.py").exists()
        if each != folder and (other == name or is_gone):
            yield each


@cache
def _remove_gone(root: Path) -> None:
    """Remove locations of sources that are gone, and old ones that tell none; once a process."""
    for each in islice(filter(_is_gone, _folders(root)), MOST_REMOVED):
        shutil.rmtree(each, ignore_errors=True)


def _is_gone(location: Path) -> bool:
    if _LOCATION.fullmatch(location.name):
        sources = _sources_of(location)
        return _is_old(location) if sources is None else not sources.is_dir()
    return bool(_EARLIER.fullmatch(location.name)) and _is_old(location)


def _name_of(folder: Path) -> str:
    return folder.name.rpartition("-")[0]


def _sources_of(location: Path) -> Path | None:
    """The folder of sources; None if nothing tells it, or another process is about to."""
    with suppress(OSError, UnicodeDecodeError):
        told = Path((location / SOURCES).read_text(encoding="utf-8"))
        return told if told.is_absolute() else None
    return None


def _is_old(folder: Path) -> bool:
    with suppress(OSError):
        return time.time() - folder.stat().st_mtime > _UNUSED_SECONDS
    return False


def _folders(parent: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(each for each in parent.iterdir() if each.is_dir() and not each.is_symlink())
    return []

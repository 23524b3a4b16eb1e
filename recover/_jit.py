"""The decorator of every compiled function, and the folder where its machine code is kept."""

import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from llvmlite.binding import get_host_cpu_features

from recover.errors import RecoverError

_F = TypeVar("_F", bound=Callable[..., Any])


def _user_cache_folder() -> Path:
    """Where this platform keeps files that may be deleted at any time."""
    if folder := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(folder)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "recover"
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "recover"
    return Path.home() / ".cache" / "recover"


def _sources_digest() -> str:
    """Hash of all the package's sources.

    numba checks only the file of the compiled function, so that an edit in a function that it
    calls from another file would leave stale machine code; a folder per state of the sources
    cannot be stale.
    """
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _cache_folder() -> str:
    """The user's cache folder or, where that cannot be written, a private temporary one."""
    name = f"numba-{_sources_digest()}"
    try:
        folder = _user_cache_folder() / name
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return str(folder)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        pass
    shared = Path(tempfile.gettempdir()) / f"recover-{os.getuid()}"
    shared.mkdir(mode=0o700, exist_ok=True)
    owned = shared.stat().st_uid == os.getuid() and not shared.is_symlink()
    # Machine code is loaded from here: a folder that somebody else made is not trusted.
    return str(shared / name) if owned else tempfile.mkdtemp(prefix="recover-")


def _check_cpu() -> None:
    """Refuse CPUs on which LLVM would abort the process for want of float16 conversions."""
    if platform.machine() in ("x86_64", "AMD64") and not get_host_cpu_features().get("f16c"):
        raise RecoverError(
            "this CPU lacks the F16C instructions (x86-64 CPUs have them since 2012)"
        )


_check_cpu()
_CACHE_FOLDER = _cache_folder()


def kernel(function: _F) -> _F:
    """Compile `function` on its first call: without the GIL, cached on disk, IEEE arithmetic.

    There is no `fastmath` and no contraction to fused multiply-add, so that results match ggml's
    bit for bit.
    """
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = _CACHE_FOLDER  # read when a function is decorated
    try:
        compiled: _F = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = before
    return compiled

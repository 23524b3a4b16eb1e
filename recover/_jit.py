"""The decorator of every compiled function, and the folder where its machine code is kept."""

import hashlib
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numba
from llvmlite.binding import get_host_cpu_features
from numba.core.registry import CPUDispatcher

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


_ROOT = Path(__file__).parent
_IMPORT = re.compile(r"^from recover([\w.]*) import \(?([\w\s,]*)", re.MULTILINE)


@cache
def _imported(path: Path) -> tuple[Path, ...]:
    """Files of the package that a file of it imports at its top level."""
    found = []
    for module, names in _IMPORT.findall(path.read_text(encoding="utf-8")):
        base = _ROOT.joinpath(*module.split("."))
        candidates = [base.with_suffix(".py"), base / "__init__.py"]
        candidates += [base / f"{name.strip()}.py" for name in names.split(",") if name.strip()]
        found += [each for each in candidates if each.is_file()]
    return tuple(found)


@cache
def _sources_digest(path: Path) -> str:
    """Hash of a file and of all files of the package that it imports, however indirectly.

    numba checks only the file of the compiled function, so that an edit in a function that it
    calls from another file would leave stale machine code; a folder per state of the sources
    cannot be stale.
    """
    sources, new = {Path(__file__)}, {path}
    while new:
        sources |= new
        new = {each for source in new for each in _imported(source)} - sources
    digest = hashlib.sha256()
    for source in sorted(sources):
        digest.update(str(source).encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _cache_root() -> Path:
    """The user's cache folder or, where that cannot be written, a private temporary one."""
    try:
        folder = _user_cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        pass
    shared = Path(tempfile.gettempdir()) / f"recover-{os.getuid()}"
    shared.mkdir(mode=0o700, exist_ok=True)
    owned = shared.stat().st_uid == os.getuid() and not shared.is_symlink()
    # Machine code is loaded from here: a folder that somebody else made is not trusted.
    return shared if owned else Path(tempfile.mkdtemp(prefix="recover-"))


def _check_cpu() -> None:
    """Refuse CPUs on which LLVM would abort the process for want of float16 conversions."""
    if platform.machine() in ("x86_64", "AMD64") and not get_host_cpu_features().get("f16c"):
        raise RecoverError(
            "this CPU lacks the F16C instructions (x86-64 CPUs have them since 2012)"
        )


def _load_arraymath() -> None:
    """Load a module of numba that every kernel needs, but not SciPy's linear algebra with it.

    numba looks whether there is a BLAS, which takes a third of a second and concerns `np.cov` and
    `np.corrcoef` alone; those find it still, as they ask again when they are compiled.
    """
    blas = "scipy.linalg.cython_blas"
    if blas in sys.modules:
        return
    sys.modules[blas] = None  # type: ignore[assignment]
    try:
        arraymath: Any = import_module("numba.np.arraymath")
    finally:
        del sys.modules[blas]
    arraymath._HAVE_BLAS = find_spec("scipy") is not None


_check_cpu()
_load_arraymath()
_folders: set[Path] = set()


def is_first_run() -> bool:
    """Whether there is no machine code of any kernel that has been imported."""
    return not any(any(folder.rglob("*.nbi")) for folder in _folders)


def kernel(function: _F) -> _F:
    """Compile `function` on its first call: without the GIL, cached on disk, IEEE arithmetic.

    There is no `fastmath` and no contraction to fused multiply-add, so that results match ggml's
    bit for bit.
    """
    return _compiled(function)


def inner(function: _F) -> _F:
    """As `kernel`, for functions that only kernels call.

    What takes arguments from Python often takes longer to compile than the function itself.
    """
    return _compiled(function, is_inner=True)


def inlined(function: _F) -> _F:
    """As `inner`, for small functions that must become part of the kernels that call them."""
    return _compiled(function, is_inner=True, forceinline=True)


def bare_kernel(function: _F) -> _F:
    """As `kernel`, but references to arrays are not counted, and no array may be made.

    Where structures of many arrays are passed on, counting takes longer than the work.
    """
    return _compiled(function, _nrt=False)


def bare_inner(function: _F) -> _F:
    """As `inner`, for what bare kernels call."""
    return _compiled(function, is_inner=True, _nrt=False)


def bare_inlined(function: _F) -> _F:
    """As `inlined`, for what bare kernels call."""
    return _compiled(function, is_inner=True, forceinline=True, _nrt=False)


class _Inner(CPUDispatcher):  # type: ignore[misc]
    def __call__(self, *_args: Any, **_keywords: Any) -> NoReturn:
        """There is no machine code for that; numba would jump to nowhere."""
        raise TypeError(f"{self.py_func.__qualname__} is for kernels only")


def _compiled(function: _F, *, is_inner: bool = False, **options: bool) -> _F:
    before = numba.config.CACHE_DIR
    folder = _cache_root() / f"numba-{_sources_digest(Path(function.__code__.co_filename))}"
    _folders.add(folder)
    try:
        numba.config.CACHE_DIR = str(folder)  # read when a function is decorated
        compile_ = numba.njit(
            nogil=True,
            cache=True,
            error_model="numpy",
            no_cpython_wrapper=is_inner,
            no_cfunc_wrapper=True,
            **options,
        )
        compiled: _F = compile_(function)
    finally:
        numba.config.CACHE_DIR = before
    if is_inner:
        compiled.__class__ = _Inner
    return compiled

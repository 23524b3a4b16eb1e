"""The decorator of every compiled function, and the folder where its machine code is kept."""

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, cached_property, update_wrapper
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import numpy as np

from recover._compiled.kept import folder_for, prepare
from recover.errors import RecoverError


def _drop_unusable_settings() -> None:
    """Take variables out of the environment with which numba could not be imported, or be of use.

    We start no threads of numba's, and kernels are not meant to be interpreted.
    """
    n_threads = os.environ.get("NUMBA_NUM_THREADS", "1")
    if not n_threads.strip().isdecimal() or int(n_threads) < 1:
        del os.environ["NUMBA_NUM_THREADS"]
    for name in ("NUMBA_DISABLE_JIT", "NUMBA_CACHE_LOCATOR_CLASSES"):
        os.environ.pop(name, None)


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Let modules seem not to be installed, unless they are loaded already."""
    missing = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(missing))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in missing:
            sys.modules.pop(name, None)


_drop_unusable_settings()

with _without("yaml", "scipy"):  # for a file of settings, and to see whether it is not too old
    import numba
from llvmlite.binding import get_host_cpu_features  # noqa: E402
from numba.core import types  # noqa: E402
from numba.core.caching import FunctionCache, NullCache  # noqa: E402
from numba.core.codegen import JITCodeLibrary  # noqa: E402
from numba.core.registry import CPUDispatcher  # noqa: E402
from numba.core.types import Dispatcher  # noqa: E402
from numba.core.types.misc import unliteral  # noqa: E402
from numba.core.typing.typeof import typeof_impl  # noqa: E402
from numba.np.numpy_support import from_dtype, map_layout  # noqa: E402

from recover._compiled.linked import Linked, making  # noqa: E402
from recover._compiled.loading import Kept, initialize_runtime, lightly  # noqa: E402
from recover._compiled.sources import sources_digest  # noqa: E402

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


@cache
def _cache_root() -> Path:
    """The user's cache folder or, where that cannot be written, a private temporary one."""
    shared = Path(tempfile.gettempdir()) / f"recover-{os.getuid()}"
    with suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder
        folder = _user_cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    with suppress(OSError):
        shared.mkdir(mode=0o700, exist_ok=True)
        # Machine code is loaded from here: a folder that somebody else made is not trusted.
        if shared.stat().st_uid == os.getuid() and not shared.is_symlink():
            return shared
    return Path(tempfile.mkdtemp(prefix="recover-"))


def _check_cpu() -> None:
    """Refuse CPUs on which LLVM would abort the process for want of float16 conversions."""
    if platform.machine() in ("x86_64", "AMD64") and not get_host_cpu_features().get("f16c"):
        raise RecoverError(
            "this CPU lacks the F16C instructions (x86-64 CPUs have them since 2012)"
        )


@contextmanager
def _without_blas() -> Iterator[None]:
    """Let numba load what it knows of arrays, but not SciPy's linear algebra with it.

    numba looks whether there is a BLAS, which takes a third of a second and concerns `np.cov` and
    `np.corrcoef` alone; those find it still, as they ask again when they are compiled.
    """
    name = "numba.np.arraymath"
    if name in sys.modules:
        yield
        return
    with _without("scipy.linalg.cython_blas"):
        yield
    if arraymath := sys.modules.get(name):
        vars(arraymath)["_HAVE_BLAS"] = find_spec("scipy") is not None


_check_cpu()
_files: dict[Path, None] = {}
"""Files of kernels that have been imported, in that order."""


def _folder(path: Path) -> Path:
    """Where machine code of a file's kernels is kept."""
    return folder_for(_cache_root(), path, sources_digest(str(path)))


def is_first_run() -> bool:
    """Whether there is no machine code of any kernel that has been imported."""
    return not any(any(_folder(path).rglob("*.nbi")) for path in _files)


def kernel(function: _F) -> _F:
    """Compile `function` on its first call: without the GIL, cached on disk, IEEE arithmetic.

    There is no `fastmath` and no contraction to fused multiply-add, so that results match ggml's
    bit for bit.
    """
    return _compiled(function, _Outer)


def inner(function: _F) -> _F:
    """As `kernel`, for functions that only kernels call.

    What takes arguments from Python often takes longer to compile than the function itself.
    """
    return _compiled(function, _Inner)


def sized(function: _F) -> _F:
    """As `inner`, but for hot loops: compiled anew for each number that stands in a call.

    Loops whose length is such a number may take half of the time. It is made machine code of as
    well, for which LLVM prepares the code that kernels take over: worth a fifth in some loops.
    """
    return _compiled(function, _Sized)


def inlined(function: _F) -> _F:
    """As `inner`, for small functions that must become part of the kernels that call them."""
    return _compiled(function, _Inner, forceinline=True)


def bare_kernel(function: _F) -> _F:
    """As `kernel`, but references to arrays are not counted, and no array may be made.

    Where structures of many arrays are passed on, counting takes longer than the work.
    """
    return _compiled(function, _Outer, _nrt=False)


def bare_inner(function: _F) -> _F:
    """As `inner`, for what bare kernels call."""
    return _compiled(function, _Inner, _nrt=False)


def bare_sized(function: _F) -> _F:
    """As `sized`, for what bare kernels call."""
    return _compiled(function, _Sized, _nrt=False)


def bare_inlined(function: _F) -> _F:
    """As `inlined`, for what bare kernels call."""
    return _compiled(function, _Inner, forceinline=True, _nrt=False)


class _Files(FunctionCache):  # type: ignore[misc]
    """Machine code on the disk, which is of use if it is there: no error of a file matters."""

    _impl_class = Kept

    def __init__(self, function: Callable[..., Any]) -> None:
        path = Path(function.__code__.co_filename)
        folder = _folder(path)
        prepare(folder, path)
        before = numba.config.CACHE_DIR
        try:
            numba.config.CACHE_DIR = str(folder)
            super().__init__(function)
        finally:
            numba.config.CACHE_DIR = before

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was kept; None if nothing was, or it cannot be read.

        Unlike numba's own, it does not load before all that numba knows of Python and NumPy:
        machine code needs the functions that count references alone.
        """
        try:
            initialize_runtime(target_context, _cache_root)
            with _without_blas(), lightly(target_context):
                return self._load_overload(sig, target_context)
        except Exception:
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled, if there is space."""
        with suppress(Exception):  # whatever unpickling a damaged index raises
            super().save_overload(sig, data)


class _Cache(NullCache):  # type: ignore[misc]
    """`_Files` of one function, looked for when it is first called.

    There are hundreds of kernels, of which a command needs a few.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @cached_property
    def _kept(self) -> Any:
        try:
            return _Files(self._function)
        except (OSError, RuntimeError):  # RuntimeError: no folder is of use
            return NullCache()

    @property
    def cache_path(self) -> Any:
        """Where it is, for numba's statistics."""
        return self._kept.cache_path

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was kept; None if it is to be compiled now."""
        found = self._kept.load_overload(sig, target_context)
        if found is None:
            with _without_blas():
                import_module("numba.np.arraymath")
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled."""
        self._kept.save_overload(sig, data)


class _Outer(CPUDispatcher):  # type: ignore[misc]
    """numba's part of a function that is called from Python."""

    def compile(self, sig: Any) -> Any:
        """Compile it, or load it; what it calls may come first."""
        with making(JITCodeLibrary, self.targetctx):
            return super().compile(sig)


class _Sized(_Outer):
    """numba's part of a function that only kernels call."""

    def __call__(self, *_args: Any, **_keywords: Any) -> NoReturn:
        """There is no machine code for that; numba would jump to nowhere."""
        raise TypeError(f"{self.py_func.__qualname__} is for kernels only")


class _Inner(_Sized):
    """As `_Sized`, but one for all numbers that stand in calls, and without machine code."""

    def compile(self, sig: Any) -> Any:
        """Compile it as a part of kernels, or load it."""
        with making(Linked, self.targetctx):
            return CPUDispatcher.compile(self, sig)

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """What numba calls; its own has a type for each number."""
        known = {name: unliteral(each) for name, each in kws.items()}
        return super().get_call_template(tuple(map(unliteral, args)), known)


class _Kernel:
    """A compiled function; numba's part of it is made when somebody calls or compiles it.

    There are hundreds, of which a command needs a few.
    """

    def __init__(
        self, function: Callable[..., Any], kind: type[CPUDispatcher], options: dict[str, bool]
    ) -> None:
        update_wrapper(self, function)
        self._function = function
        self._kind = kind
        self._options = options

    @cached_property
    def dispatcher(self) -> Any:
        """What numba knows of it."""
        compile_ = numba.njit(
            nogil=True,
            error_model="numpy",
            no_cpython_wrapper=self._kind is not _Outer,
            no_cfunc_wrapper=True,
            **self._options,
        )
        found: Any = compile_(self._function)
        found._cache = _Cache(self._function)
        found.__class__ = self._kind
        return found

    def __reduce__(self) -> str:
        return self._function.__qualname__

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Compile or load it for such arguments, if need be, and call it."""
        return self.dispatcher(*args, **keywords)


@typeof_impl.register(_Kernel)  # type: ignore[untyped-decorator]
def _type_of_kernel(kernel: _Kernel, _context: Any) -> Dispatcher:
    return Dispatcher(kernel.dispatcher)


_type_of_any_array = typeof_impl.dispatch(np.ndarray)


@typeof_impl.register(np.ndarray)  # type: ignore[untyped-decorator]
def _type_of_array(array: Any, context: Any) -> Any:
    """As numba's own, which first loads `numpy.ma` to see that it is no masked array."""
    if type(array) is not np.ndarray:
        return _type_of_any_array(array, context)
    readonly = not array.flags.writeable
    return types.Array(from_dtype(array.dtype), array.ndim, map_layout(array), readonly=readonly)


def _compiled(function: _F, kind: type[CPUDispatcher], **options: bool) -> _F:
    _files[Path(function.__code__.co_filename)] = None
    return cast(_F, _Kernel(function, kind, options))

"""How machine code comes from the disk: less is loaded than numba does.

numba makes what is needed to compile other functions, too: the intermediate code of each function
that is loaded, the modules of all functions that it calls, and the functions that count references
anew for each process. A command that compiles nothing needs none of these.
"""

import hashlib
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numba
from numba.core import environment
from numba.core.caching import CompileResultCacheImpl
from numba.core.compiler_lock import global_compiler_lock
from numba.core.environment import Environment
from numba.core.runtime import nrtdynmod, rtsys

from recover._compiled.linked import Library, Linked


class _Library(Library):
    """Machine code, and what others are compiled with."""

    @classmethod
    def _unserialize(cls, codegen: Any, state: Any) -> Any:
        name, _, (object_code, bitcode) = state
        library = (cls if object_code else Linked)(codegen, name)
        library.bitcode = bitcode
        library.enable_object_caching()
        library._set_compiled_object(object_code)
        library._finalize_final_module()
        return library


class Kept(CompileResultCacheImpl):  # type: ignore[misc]
    """What is written of a compiled function: as numba's own, and the names that it defines."""

    def reduce(self, data: Any) -> Any:
        """What is pickled."""
        return _names(data.library), super().reduce(data)

    def rebuild(self, target_context: Any, payload: Any) -> Any:
        """The compiled function."""
        names, kept = payload
        target_context.codegen()._engine._defined_symbols.update(names)
        return super().rebuild(target_context, kept)


def _names(library: Any) -> list[str]:
    if isinstance(library, Linked):
        return []
    module = library._get_module_for_linking()
    return [
        each.name
        for symbols in (module.functions, module.global_variables)
        for each in symbols
        if not each.is_declaration
    ]


def _environment(module: str, constants: list[Any], name: str) -> Environment:
    """As numba's own, but the module is not imported: no machine code asks for its globals."""
    found = environment.lookup_environment(name)
    if found is None:
        known = sys.modules.get(module)
        found = Environment({"__name__": module} if known is None else vars(known))
        found.consts[:] = constants
        found.env_name = name
        Environment._memo[name] = found
    return found


@contextmanager
def lightly(context: Any) -> Iterator[None]:
    """Load no more than what runs."""
    codegen = context.codegen()
    with global_compiler_lock:
        before = codegen._library_class, environment._rebuild_env
        codegen._library_class, environment._rebuild_env = _Library, _environment
        try:
            yield
        finally:
            codegen._library_class, environment._rebuild_env = before


def initialize_runtime(context: Any, folder: Callable[[], Path]) -> None:
    """Have the functions that count references; what was compiled once is kept in a folder."""
    with global_compiler_lock:
        before = nrtdynmod.compile_nrt_functions
        nrtdynmod.compile_nrt_functions = partial(_runtime, folder)
        try:
            rtsys.initialize(context)
        finally:
            nrtdynmod.compile_nrt_functions = before


def _runtime(folder: Callable[[], Path], context: Any) -> Any:
    """The library of these functions."""
    codegen = context.codegen()
    key = repr((numba.__version__, sys.version, codegen.magic_tuple()))
    path = folder() / f"runtime-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    with suppress(Exception):  # it is not there, or damaged
        names, state = pickle.loads(path.read_bytes())
        codegen._engine._defined_symbols.update(names)
        return _Library._unserialize(codegen, state)
    module, library = nrtdynmod.create_nrt_module(context)
    library.enable_object_caching()
    library.add_ir_module(module)
    library.finalize()
    with suppress(Exception):  # there is no space, or no permission
        _keep(path, pickle.dumps((_names(library), library.serialize_using_object_code())))
    return library


def _keep(path: Path, data: bytes) -> None:
    """Write a file as a whole, or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(data)
            file.close()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise

"""Code of functions that only kernels call: it becomes part of theirs, and runs nowhere else.

numba makes machine code of every function that it compiles, which takes a fifth of the time. That
of such functions would never be called: kernels take over their intermediate code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite.binding import parse_bitcode
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock


class _Nothing:
    """As much of numba's code generator as is asked of a library."""

    def set_env(self, _name: str, _environment: Any) -> None:
        """Nothing runs that could ask for the globals of a module."""


class Library(JITCodeLibrary):  # type: ignore[misc]
    """A library whose intermediate code is read when others are compiled with it."""

    bitcode: bytes | None = None
    _shared_module: Any

    def _get_module_for_linking(self) -> Any:
        if self._shared_module is None and self.bitcode is not None:
            self._shared_module = parse_bitcode(self.bitcode)
        return super()._get_module_for_linking()


class Linked(Library):
    """Intermediate code alone."""

    @property
    def codegen(self) -> _Nothing:
        """What gets told of globals."""
        return _Nothing()

    def get_pointer_to_function(self, _name: str) -> int:
        """None."""
        return 0

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True

    def _get_compiled_object(self) -> bytes:
        return b""


@contextmanager
def making(library: type[JITCodeLibrary], context: Any) -> Iterator[None]:
    """Compile functions into libraries of this kind."""
    codegen = context.codegen()
    with global_compiler_lock:
        before = codegen._library_class
        codegen._library_class = library
        try:
            yield
        finally:
            codegen._library_class = before

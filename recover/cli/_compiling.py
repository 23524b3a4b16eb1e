"""People are told of compilations, which take most of the time of a first run."""

import sys
from functools import cache

from recover._compiled.jit import is_first_run  # it imports numba in its way, so it comes first

# isort: split
from numba.core import event

from recover.cli._streams import complain, is_quiet


class Compilations(event.Listener):  # type: ignore[misc]
    """Tells people at a terminal, once, that kernels are being compiled, when that begins."""

    def __init__(self) -> None:
        self._is_told = False

    def on_start(self, event: event.Event) -> None:
        """Tell of it, before the first kernel that no earlier run has left on the disk."""
        if self._is_told or is_quiet() or not sys.stderr.isatty():
            return
        self._is_told = True
        if is_first_run():
            text = "compiling for this CPU first, which takes half a minute or more once"
        else:
            text = "compiling for this CPU what no run has needed before"
        complain(f"recover: {text}")

    def on_end(self, event: event.Event) -> None:
        """Nothing is told of the end."""


@cache
def tell_of_compilation() -> None:
    """Listen for compilations from now on, until the process ends."""
    event.register("numba:compile", Compilations())

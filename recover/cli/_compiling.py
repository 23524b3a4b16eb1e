"""People are told of compilations, which take most of the time of a first run."""

import sys
from functools import cache

from recover._compiled.jit import is_first_run  # it imports numba in its way, so it comes first

# isort: split
from numba.core import event

from recover.cli._streams import complain, is_quiet


class Compilations(event.Listener):  # type: ignore[misc]
    """Tells people, once, that kernels are being compiled, when that begins.

    At a terminal always. In a log only of a first run, which would look as if it hung: one line.
    """

    def __init__(self) -> None:
        self._is_told = False

    def on_start(self, event: event.Event) -> None:
        """Tell of it, before the first kernel that no earlier run has left on the disk."""
        if self._is_told or is_quiet():
            return
        self._is_told = True
        if is_first_run():
            complain(
                "recover: compiling for this CPU first, which takes half a minute or more once"
            )
        elif sys.stderr.isatty():
            complain("recover: compiling for this CPU what no run has needed before")

    def on_end(self, event: event.Event) -> None:
        """Nothing is told of the end."""


@cache
def tell_of_compilation() -> None:
    """Listen for compilations from now on, until the process ends."""
    event.register("numba:compile", Compilations())

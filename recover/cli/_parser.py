"""Command lines: errors repeat what was given, so they are escaped like all that is printed."""

import sys
from argparse import ArgumentParser
from typing import Any, NoReturn

from recover._text import escaped, shortened
from recover.cli._streams import drop

_LONGEST = 1000


class Parser(ArgumentParser):
    """A parser whose errors take one line each."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error on stderr, and leave with status 2."""
        try:
            super().error(shortened(escaped(message), _LONGEST))
        except OSError:  # of stderr
            drop(sys.stderr)
            sys.exit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print; newer versions of `argparse` hide that it cannot be done."""
        if message:
            (file or sys.stderr).write(message)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Leave once all that was printed (the help, the version) is out.

        Raises
        ------
        OSError
            If it cannot be printed.
        """
        sys.stdout.flush()
        super().exit(status, message)

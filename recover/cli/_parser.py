"""Command lines: errors repeat what was given, so they are escaped like all that is printed."""

from argparse import ArgumentParser
from typing import NoReturn

from recover._text import escaped, shortened

_LONGEST = 1000


class Parser(ArgumentParser):
    """A parser whose errors take one line each."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error on stderr, and leave with status 2."""
        super().error(shortened(escaped(message), _LONGEST))

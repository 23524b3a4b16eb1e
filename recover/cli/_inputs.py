"""Whether the files that a command has read are still what they were."""

import sys


def forget_inputs() -> None:
    """Watch no file that was read before."""
    _mapping("forget")


def check_inputs() -> None:
    """Make sure of it before anything that was made of them is printed.

    Pages of a file that was truncated read as zeros, of which warnings would be wrong.

    Raises
    ------
    InputError
        If a file was changed or truncated, or could not be read.
    """
    _mapping("check_unchanged")


def _mapping(function: str) -> None:
    """Call a function of `recover.containers.mapping`, slow to import, if that was used."""
    if (mapping := sys.modules.get("recover.containers.mapping")) is not None:
        getattr(mapping, function)()

"""Temporary siblings of outputs: whose they are, and the removal of those of dead processes.

A temporary file (`.NAME.xxxxxxxxxxxx.xxxxxxxx.tmp`) is locked as long as the process lives that
writes it. One that is not locked belongs to a process that was killed, and the next one that writes
the same output removes it. The first digits stand for the whole name of the output, the others are
random.
"""

import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from recover._text import printable
from recover.execution.locks import is_locked_by_another, lock
from recover.execution.publish import hidden

_RANDOM = re.compile(r"[0-9a-f]{8}\.tmp")

_listeners: list[Callable[[str], None]] = []


def tell_of_removals(listener: Callable[[str], None] | None) -> None:
    """Tell a callable of every file that is removed; None: nobody."""
    _listeners[:] = [] if listener is None else [listener]


def create(target: Path) -> tuple[Path, int]:
    """A new temporary sibling of a file, locked; its path and descriptor.

    Raises
    ------
    OSError
        If it cannot be created.
    """
    while True:
        path = hidden(target, f"{secrets.token_hex(4)}.tmp")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        # Somebody may have taken it for a dead process's before it was locked.
        with suppress(FileNotFoundError):
            if lock(descriptor) and os.path.samestat(os.fstat(descriptor), path.stat()):
                return path, descriptor
        os.close(descriptor)


def remove_stale(target: Path) -> None:
    """Remove what dead processes left behind that were writing a file."""
    start = hidden(target, "").name
    try:
        with os.scandir(target.parent) as entries:
            found = [
                Path(entry.path)
                for entry in entries
                if entry.name.startswith(start) and _RANDOM.fullmatch(entry.name[len(start) :])
            ]
    except OSError:
        return
    for path in found:
        with suppress(OSError):
            _remove_if_stale(path, target)


def _remove_if_stale(path: Path, target: Path) -> None:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags)
    try:
        if is_locked_by_another(descriptor):
            return
        path.unlink()
    finally:
        os.close(descriptor)
    for listener in _listeners:
        listener(
            f"removed {printable(path)}, which a process left behind that was killed while it"
            f" wrote {printable(target.name)}"
        )

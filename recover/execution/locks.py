"""Locks on open files (`flock`): they end with the process that holds them, however it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

try:
    import fcntl
except ImportError:  # not on every platform
    fcntl = None  # type: ignore[assignment]


def lock(descriptor: int, *, waits: bool = False) -> bool:
    """Lock an open file; whether nobody else has it. Where there are no locks, all goes well."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # not on every file system
        return True
    return True


def is_locked_by_another(descriptor: int) -> bool:
    """Whether somebody else has a lock on an open file, or may have; if not, we have it now."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return os.fstat(descriptor).st_nlink == 0


@contextmanager
def locked_range(descriptor: int, position: int, n_bytes: int) -> Iterator[None]:
    """Have bytes of a file to oneself among processes that ask for them; where there are locks.

    These locks are of a process, on network file systems as well: its threads do not wait.
    """
    is_locked = False
    if fcntl is not None:
        with suppress(OSError):
            fcntl.lockf(descriptor, fcntl.LOCK_EX, n_bytes, position)
            is_locked = True
    try:
        yield
    finally:
        if is_locked:
            fcntl.lockf(descriptor, fcntl.LOCK_UN, n_bytes, position)


def lock_byte(descriptor: int, position: int) -> None:
    """Have one byte of a file to oneself until it is closed, where there are such locks."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, position)

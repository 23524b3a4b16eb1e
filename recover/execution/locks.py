"""Locks on open files (`flock`): they end with the process that holds them, however it ends."""

import os

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

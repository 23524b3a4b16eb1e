"""Space of an output file: reserved before the work, or at least asked for."""

import ctypes
import errno
import os
import sys

_IN_MEMORY = 0x01021994, 0x858458F6  # tmpfs, ramfs (linux/magic.h)


def make_room(descriptor: int, n_bytes: int) -> None:
    """Make a file as large as it becomes; its space is reserved where that costs nothing.

    A file system in memory would make all pages, one after the other, while everything else waits:
    that takes longer than to write them. There it is only looked whether there is space.

    Parameters
    ----------
    descriptor : int
        The file, open for writing.
    n_bytes : int
        The size that it gets.

    Raises
    ------
    OSError
        If there is no space for it.
    """
    if _is_in_memory(descriptor):
        _check_space(descriptor, n_bytes)
    elif n_bytes and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, n_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.ftruncate(descriptor, n_bytes)


def _is_in_memory(descriptor: int) -> bool:
    """Whether a file lies in memory; False where the system does not tell."""
    if sys.platform != "linux":
        return False
    told = ctypes.create_string_buffer(512)  # struct statfs, which begins with the kind
    if ctypes.CDLL(None, use_errno=True).fstatfs(descriptor, told):
        return False
    kind = ctypes.c_long.from_buffer(told).value
    return kind & 0xFFFFFFFF in _IN_MEMORY


def _check_space(descriptor: int, n_bytes: int) -> None:
    system, n_there = os.fstatvfs(descriptor), 512 * os.fstat(descriptor).st_blocks
    # One without a limit has no blocks.
    if system.f_blocks and system.f_bfree * system.f_frsize < n_bytes - n_there:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

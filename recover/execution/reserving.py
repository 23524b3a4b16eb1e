"""Space of an output file: reserved before the work, or at least asked for."""

import ctypes
import errno
import os
import sys

_IN_MEMORY = 0x01021994, 0x858458F6  # tmpfs, ramfs (linux/magic.h)
_CANNOT = errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ENODEV, errno.EPERM


def make_room(descriptor: int, n_bytes: int) -> None:
    """Make a file as large as it becomes; its space is reserved where that costs nothing.

    A file system in memory would make all pages, one after the other, while everything else waits:
    that takes longer than to write them. There, and where nothing can be reserved, it is only
    looked whether there is space. Nothing of the file is written, unlike by `os.posix_fallocate` on
    some file systems: other processes may be at it.

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
    if n_bytes and (_is_in_memory(descriptor) or not _allocate(descriptor, n_bytes)):
        _check_space(descriptor, n_bytes)
    os.ftruncate(descriptor, n_bytes)


def _allocate(descriptor: int, n_bytes: int) -> bool:
    """Reserve space; whether the system can."""
    try:
        _fallocate(descriptor, n_bytes)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def _fallocate(descriptor: int, n_bytes: int) -> None:
    """The system's call of that name, which Python does not have; `OSError` if it fails."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while call(descriptor, 0, 0, n_bytes):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


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

"""Opening what is to be read: regular files alone, mapped without a descriptor that stays open."""

import ctypes
import errno
import mmap
import os
import stat
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class UnreadableError(Exception):
    """A path cannot be read; the text, for people, leaves out the path."""


class MissingError(UnreadableError):
    """There is no such file."""


class Opened(NamedTuple):
    """A regular file."""

    descriptor: int
    status: os.stat_result

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return self.status.st_size


@contextmanager
def opened(path: Path, what: str = "file") -> Iterator[Opened]:
    """Open a regular file for reading; the descriptor is closed behind the block.

    Parameters
    ----------
    path : Path
        A pipe is never waited for, and nothing is done to a device.
    what : str
        What should be named instead of a folder.

    Raises
    ------
    UnreadableError
        If it is no regular file, or cannot be opened or read.
    """
    try:
        _check(path.stat(), what)  # before opening it: opening a device may do something
        flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags)
        try:
            status = os.fstat(descriptor)
            _check(status, what)
            yield Opened(descriptor, status)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise MissingError("there is no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        raise UnreadableError(f"cannot be read: {_reason(error)}") from None


def _check(status: os.stat_result, what: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise UnreadableError(f"is a folder; name a {what}")
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError("is no regular file, so that it cannot be mapped")


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many files are open at once; raise the limit (ulimit -n)"
    return getattr(error, "strerror", None) or str(error)


def read_bytes(path: Path, most: int) -> bytes:
    """All of a small file.

    Parameters
    ----------
    path : Path
        A regular file.
    most : int
        Bytes that are read; files that are larger are refused.

    Raises
    ------
    UnreadableError
        If it is larger, or no regular file, or cannot be read.
    """
    with opened(path) as file:
        if file.n_bytes > most:
            raise UnreadableError(f"has {file.n_bytes:,} bytes; more than {most:,} are not read")
        parts, n_left = [], most
        while n_left and (part := os.read(file.descriptor, min(n_left, file.n_bytes + 1))):
            parts.append(part)
            n_left -= len(part)
        return b"".join(parts)


def map_opened(file: Opened, before_end: Iterable[Callable[[], object]] = ()) -> NDArray[np.uint8]:
    """A file's bytes (n,), read-only; pages are loaded when touched.

    Unlike `mmap.mmap` this keeps no copy of the descriptor, so that there may be many more files
    than a process may have open.

    Parameters
    ----------
    file : Opened
        From `opened`.
    before_end : iterable of callable
        Called when the array and all its views are gone, before the bytes are.

    Raises
    ------
    UnreadableError
        If it is empty.
    OSError
        If it cannot be mapped (`opened` turns that into `UnreadableError`).
    """
    if not file.n_bytes:
        raise UnreadableError("the file is empty")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_int64),
    )
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    address = libc.mmap(None, file.n_bytes, mmap.PROT_READ, mmap.MAP_SHARED, file.descriptor, 0)
    if address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

    def end() -> None:
        for call in before_end:
            call()
        libc.munmap(address, file.n_bytes)

    block = (ctypes.c_ubyte * file.n_bytes).from_address(address)
    weakref.finalize(block, end).atexit = False
    return np.frombuffer(memoryview(block).toreadonly(), np.uint8)


def write_all(descriptor: int, data: bytes | memoryview, position: int) -> int:
    """Write bytes at a position of an open file; where they end. `OSError` as of `os.pwrite`."""
    view = memoryview(data).cast("B")
    while view:
        n_written = os.pwrite(descriptor, view, position)
        view, position = view[n_written:], position + n_written
    return position


def read_all(descriptor: int, position: int, n_bytes: int) -> bytes:
    """Bytes of an open file, fewer at its end; `OSError` as of `os.pread`."""
    data = bytearray()
    while more := os.pread(descriptor, n_bytes - len(data), position + len(data)):
        data += more
    return bytes(data)

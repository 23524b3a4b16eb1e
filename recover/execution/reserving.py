"""Space of an output file, reserved while the work goes on.

File systems in memory make every page of what is reserved, which takes longer than to write it, and
one thread alone can do so. So only a beginning is reserved at once, and the rest step by step.
"""

import ctypes
import errno
import os
import threading

_STEP = 1 << 26
_NO_SPACE = errno.ENOSPC, errno.EDQUOT, errno.EFBIG


class Reservation:
    """Makes a file as large as it becomes, and reserves space for it where the system can.

    Parameters
    ----------
    descriptor : int
        The file, open for writing.
    n_bytes : int
        The size that it gets.

    Raises
    ------
    OSError
        If there is no space for it, as far as that shows at once.
    """

    def __init__(self, descriptor: int, n_bytes: int) -> None:
        self._descriptor, self._n_bytes = descriptor, n_bytes
        self._ends = threading.Event()
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None
        if n_bytes > _STEP:
            _check_space(descriptor, n_bytes)
        if n_bytes and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(descriptor, 0, min(n_bytes, _STEP))
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        os.ftruncate(descriptor, n_bytes)
        if n_bytes > _STEP:
            self._thread = threading.Thread(target=self._go_on, name="recover-space", daemon=True)
            self._thread.start()

    def _go_on(self) -> None:
        # `posix_fallocate` may write to the file, where a file system can reserve nothing.
        for start in range(_STEP, self._n_bytes, _STEP):
            if self._ends.is_set():
                return
            number = _allocate(self._descriptor, start, min(_STEP, self._n_bytes - start))
            if number in _NO_SPACE:
                self._error = OSError(number, os.strerror(number))
            if number:
                return

    def wait(self) -> None:
        """Return when all is reserved.

        Raises
        ------
        OSError
            If there is no space for it.
        """
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Reserve no more; the file may be closed."""
        self._ends.set()
        if self._thread is not None:
            self._thread.join()


def _check_space(descriptor: int, n_bytes: int) -> None:
    """A quick look at what the file system has left, before any work."""
    system, n_there = os.fstatvfs(descriptor), 512 * os.fstat(descriptor).st_blocks
    if system.f_blocks and system.f_bfree * system.f_frsize < n_bytes - n_there:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _allocate(descriptor: int, start: int, n_bytes: int) -> int:
    """Reserve bytes of a file and write none; 0, or the number of an error."""
    allocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if allocate is None:
        return errno.EOPNOTSUPP
    allocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return ctypes.get_errno() if allocate(descriptor, 0, start, n_bytes) else 0

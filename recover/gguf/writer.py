"""Output files: laid out first, written at known positions, visible only when complete."""

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from recover.errors import OutputError
from recover.gguf.text import printable


class OutputFile:
    """A file that appears under its name only when all of it is on the disk.

    Bytes go to a temporary sibling, from any thread; leaving the context without an error flushes
    and renames it, leaving it with one removes it.

    Parameters
    ----------
    path : Path
        Where the file is to appear; a file that is there already is replaced in that instant.
    n_bytes : int
        Its size. The space is reserved at once, so that a full disk shows before the work.
    inputs : iterable of Path
        Files that must not be overwritten.

    Raises
    ------
    OutputError
        If `path` is one of the inputs or no regular file, or cannot be written.
    """

    def __init__(self, path: Path, n_bytes: int, inputs: Iterable[Path] = ()) -> None:
        self.path = path
        self.n_bytes = n_bytes
        check_output_path(path, inputs)
        self._target = path.resolve()  # a symbolic link stays a link
        self._temporary = self._target.with_name(
            f".{self._target.name[:50]}.{secrets.token_hex(4)}.tmp"
        )
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Create the temporary file and reserve its space."""
        try:
            self._descriptor = os.open(
                self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666
            )
        except OSError as error:
            raise self._error(error) from None
        try:
            self._reserve()
        except BaseException as error:
            self._remove()
            if isinstance(error, OSError):
                raise self._error(error) from None
            raise
        return self

    def _reserve(self) -> None:
        if hasattr(os, "posix_fallocate") and self.n_bytes:
            try:
                os.posix_fallocate(self._descriptor, 0, self.n_bytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        os.ftruncate(self._descriptor, self.n_bytes)

    def write_at(self, position: int, data: bytes | memoryview) -> None:
        """Write `data` at a byte position; callable from several threads at once."""
        view, start = memoryview(data).cast("B"), position
        try:
            while view:
                n_written = os.pwrite(self._descriptor, view, position)
                view, position = view[n_written:], position + n_written
        except OSError as error:
            raise self._error(error) from None
        if hasattr(os, "posix_fadvise"):
            # Linux begins to write these pages to the disk, while the work goes on, and keeps them
            # meanwhile: less is left to flush at the end.
            with suppress(OSError):
                advice = os.POSIX_FADV_DONTNEED
                os.posix_fadvise(self._descriptor, start, position - start, advice)

    def read_at(self, position: int, n_bytes: int) -> bytes:
        """What stands at a byte position now; callable from several threads at once."""
        data = bytearray()
        try:
            while len(data) < n_bytes:
                more = os.pread(self._descriptor, n_bytes - len(data), position + len(data))
                if not more:
                    raise OutputError(f"{printable(self.path)}: is shorter than what was written")
                data += more
        except OSError as error:
            raise self._error(error) from None
        return bytes(data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Flush and rename, or remove if there was an error."""
        try:
            if kind is None:
                os.fsync(self._descriptor)
                self._close()
                os.replace(self._temporary, self._target)
                _sync_folder(self._target.parent)
        except OSError as error:
            raise self._error(error) from None
        finally:
            self._remove()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _remove(self) -> None:
        """Drop the temporary file, if it is still there; an error on the way here matters more."""
        with suppress(OSError):
            self._close()
        with suppress(OSError):
            self._temporary.unlink()

    def _error(self, error: OSError) -> OutputError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return OutputError(
                f"{printable(self.path)}: no space left for its {self.n_bytes:,} bytes"
                f" ({error.strerror}); free some space or choose another folder"
            )
        return OutputError(f"{printable(self.path)}: cannot be written: {error.strerror}")


def check_output_path(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse a path whose file is an input, or is no regular file, or has no folder.

    Parameters
    ----------
    path : Path
        Where a file is to be written.
    inputs : iterable of Path
        Files that must not be overwritten, under whatever name: links are followed.

    Raises
    ------
    OutputError
        If nothing may be written there.
    """
    shown = printable(path)
    found = None
    try:
        has_folder = path.resolve().parent.is_dir()
        with suppress(FileNotFoundError):
            found = path.stat()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL character
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{shown}: cannot be written: {reason}") from None
    if not has_folder:
        raise OutputError(f"{shown}: its folder does not exist")
    if found is None:
        return
    if not stat.S_ISREG(found.st_mode):
        raise OutputError(f"{shown}: is no regular file; name a file to be written")
    for other in inputs:
        with suppress(OSError):
            if os.path.samestat(found, other.stat()):
                raise OutputError(f"{shown}: is one of the inputs, which are never overwritten")


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the file system lets us."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

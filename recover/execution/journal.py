"""A file of records that survives the process that writes it: append-only, checked, locked."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from recover._text import printable
from recover.errors import OutputError
from recover.execution.output import check_output_path
from recover.execution.publish import sync_folder

try:
    import fcntl
except ImportError:  # not on every platform
    fcntl = None  # type: ignore[assignment]

_LONGEST = 1 << 26  # bytes of a line; a record of 2^18 tensors has fewer
_MOST = 1 << 28  # bytes of all
_DIGEST = 16  # hexadecimal digits


class Journal:
    """Records, each on the disk before `append` returns, in a file that one process has at a time.

    A line is a digest of all records so far and the record as JSON. What is torn or damaged, and
    all that follows it, counts as not written. Leaving the context without an error removes the
    file, leaving it with one keeps it if there is more in it than the first record.

    Parameters
    ----------
    path : Path
        The file; created if it is not there.
    purpose : Path
        What the records are about, for messages.
    who : str
        What another process that has it was called with, for messages.
    insists : bool
        Whether it is an error where files cannot be locked.

    Attributes
    ----------
    records : list of object
        Plain data, in the order in which they were written.
    is_damaged : bool
        Whether there was anything in the file that is no record.

    Raises
    ------
    OutputError
        If another process has it, or it cannot be locked, read or written.
    """

    def __init__(
        self, path: Path, purpose: Path, who: str = "--resume", *, insists: bool = True
    ) -> None:
        self.records: list[Any] = []
        self.is_damaged = False
        self._path = path
        self._purpose = purpose
        self._who = who
        self._insists = insists
        self._descriptor = -1
        self._end = 0
        self._digest = ""

    def __enter__(self) -> Self:
        """Lock the file and read what is in it."""
        check_output_path(self._path, ())
        try:
            self._open()
            self._read()
        except BaseException as error:
            self._close()
            if isinstance(error, OSError):
                raise self._error(error) from None
            raise
        return self

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        while True:
            self._descriptor = os.open(self._path, flags, 0o666)
            self._lock()
            # A process that was done with the file may have removed it in between.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._descriptor), self._path.stat()):
                    return
            self._close()

    def _lock(self) -> None:
        shown = printable(self._purpose)
        if fcntl is None:
            if not self._insists:
                return
            raise OutputError(f"{shown}: files cannot be locked here; go without --resume")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"{shown}: another process is writing it with {self._who}; wait for its end, or"
                " stop it first"
            ) from None
        except OSError as error:
            if not self._insists:
                return
            raise OutputError(
                f"{shown}: {printable(self._path)} cannot be locked ({error.strerror}); choose"
                " another folder, or go without --resume"
            ) from None

    def _read(self) -> None:
        with open(self._descriptor, "rb", closefd=False) as file:
            while line := file.readline(_LONGEST):
                if self._end > _MOST:
                    self.is_damaged = True
                    break
                digest, _, text = line.partition(b" ")
                expected = self._digest_with(text)
                if not line.endswith(b"\n") or digest != expected.encode():
                    self.is_damaged = True
                    break
                try:
                    self.records.append(json.loads(text))
                except (ValueError, RecursionError):
                    self.is_damaged = True
                    break
                self._digest = expected
                self._end += len(line)

    def _digest_with(self, text: bytes) -> str:
        return hashlib.sha256(self._digest.encode() + text).hexdigest()[:_DIGEST]

    def restart(self, first: Any) -> None:
        """Forget all records but a new first one."""
        self.records.clear()
        self._end, self._digest = 0, ""
        try:
            os.ftruncate(self._descriptor, 0)
        except OSError as error:
            raise self._error(error) from None
        self.append(first)
        sync_folder(self._path.parent)

    def append(self, record: Any) -> None:
        """Write a record; it is on the disk when this returns."""
        text = json.dumps(record).encode() + b"\n"
        digest = self._digest_with(text)
        line = f"{digest} ".encode() + text
        try:
            os.ftruncate(self._descriptor, self._end)  # what is torn
            position, view = self._end, memoryview(line)
            while view:
                n_written = os.pwrite(self._descriptor, view, position)
                view, position = view[n_written:], position + n_written
            getattr(os, "fdatasync", os.fsync)(self._descriptor)
        except OSError as error:
            raise self._error(error) from None
        self.records.append(record)
        self._end, self._digest = position, digest

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        """Remove the file, or keep it if there was an error."""
        if kind is None or len(self.records) < 2:
            with suppress(OSError):
                self._path.unlink()
        self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)

    def _error(self, error: OSError) -> OutputError:
        return OutputError(
            f"{printable(self._purpose)}: its journal {printable(self._path)} cannot be read or"
            f" written: {error.strerror}"
        )

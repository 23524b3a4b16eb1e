"""Output files: laid out first, written at known positions, visible only when complete."""

import errno
import hashlib
import os
import stat
import zlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Lock
from typing import Self

from recover import _stopping as stopping
from recover._files import read_all, write_all
from recover._text import printable
from recover.containers.mapping import check_unchanged
from recover.errors import InputError, OutputError, RecoverError
from recover.execution.locks import lock_byte
from recover.execution.pieces import checksums, weave
from recover.execution.publish import (
    Move,
    UnfinishedMovesError,
    finish_earlier,
    put_in_place,
    sync_folder,
)
from recover.execution.reserving import make_room
from recover.execution.temporary import create, remove_stale

_FLAGS = os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
_WORTH_ADVICE = 1 << 16  # bytes at once: of fewer, advice takes longer than writing


class OutputFile:
    """A file that appears under its name only when all of it is on the disk.

    Bytes go to a temporary sibling, from any thread; leaving the context without an error flushes
    and renames it, leaving it with one removes it. Once it has its name, it stays.

    Parameters
    ----------
    path : Path
        Where the file is to appear; a file that is there already is replaced in that instant.
    n_bytes : int
        Its size. The space is reserved at once, so that a full disk shows before the work.
    inputs : iterable of Path
        Files that must not be overwritten, nor have changed since they were mapped.
    partial : Path, optional
        The temporary sibling, if a later process is to go on with it (see `partial_path`): one
        that is there already is opened, and with `keeps` it stays after an error.
    within : Path, optional
        A hidden folder that it is written into, under its own name: the folder gets its name when
        all of its files are complete (see `recover.execution.folder`).
    takes_notes : bool, optional
        Whether `digests` are kept; default: if there is a `partial`.
    share : int, optional
        Of `partial`, that other processes write other parts of it: the number of this one. The
        file is there already (see `create_shared`).

    Attributes
    ----------
    keeps : bool
        Whether what was written to `partial` is worth keeping after an error.
    digests : dict of int to tuple of (int, int)
        Of what was written, by position: number of bytes, and CRC-32.

    Raises
    ------
    OutputError
        If `path` is one of the inputs or no regular file, or cannot be written.
    InputError
        If an input was changed before the file is complete.
    """

    def __init__(
        self,
        path: Path,
        n_bytes: int,
        inputs: Iterable[Path] = (),
        *,
        partial: Path | None = None,
        within: Path | None = None,
        takes_notes: bool | None = None,
        share: int | None = None,
    ) -> None:
        self.path = path
        self.n_bytes = n_bytes
        self.keeps = False
        self.digests: dict[int, tuple[int, int]] = {}
        self._inputs = tuple(inputs)
        self._within = within
        if within is None:
            check_output_path(path, self._inputs)
            self._target = path.resolve()  # a symbolic link stays a link
        else:
            self._target = partial = within / path.name
        self._partial = partial
        if partial is not None and within is None:
            check_output_path(partial, self._inputs)
        self._takes_notes = partial is not None if takes_notes is None else takes_notes
        self._share = share
        self._weaving = Lock()
        self._temporary = partial
        self._descriptor = -1
        self._is_in_place = False
        self._registered = ExitStack()

    def __enter__(self) -> Self:
        """Begin, as `open` does."""
        self.open()
        return self

    def open(self) -> None:
        """Create the temporary file and reserve its space, or open what is there of it."""
        is_new = self._partial is None or not self._partial.exists()
        try:
            if self._within is None:
                finish_earlier(self._target)
                remove_stale(self._target)
            if self._partial is None:
                self._temporary, self._descriptor = create(self._target)
            else:
                flags = _FLAGS | (os.O_CREAT if self._share is None else 0)
                self._descriptor = os.open(self._partial, flags, 0o666)
        except OSError as error:
            raise self._error(error) from None
        try:
            self._registered.enter_context(stopping.leaves_behind(self._remove))
            if self._share is None:
                make_room(self._descriptor, self.n_bytes)
            else:
                self._join(self._share)
            if self._partial is not None and self._within is None:
                sync_folder(self._partial.parent)
        except BaseException as error:
            self.keeps = self.keeps and not is_new
            self.leave()
            if isinstance(error, OSError):
                raise self._error(error) from None
            raise

    @property
    def place(self) -> Path:
        """Where the bytes are written, until the file has its name; absolute."""
        assert self._temporary is not None
        return self._temporary

    def _join(self, share: int) -> None:
        """Look whether the file is what the others write, too.

        A lock on a byte behind the end keeps clients of network file systems from writing more
        than was changed: whole pages, which parts of other processes may share.
        """
        n_bytes = os.fstat(self._descriptor).st_size
        if n_bytes != self.n_bytes:
            raise OutputError(
                f"{printable(self.path)}: {printable(self.place)} has {n_bytes:,} instead of"
                f" {self.n_bytes:,} bytes"
            )
        lock_byte(self._descriptor, self.n_bytes + share)

    def create_shared(self) -> None:
        """Create the partial file that several processes write, if it is not there yet.

        Raises
        ------
        OutputError
            If there is no space for it.
        """
        assert self._partial is not None
        is_new = not self._partial.exists()
        try:
            descriptor = os.open(self._partial, _FLAGS | os.O_CREAT, 0o666)
            try:
                make_room(descriptor, self.n_bytes)
                os.fsync(descriptor)
            except BaseException:
                if is_new:
                    self._partial.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._error(error) from None

    def write_at(self, position: int, data: bytes | memoryview, n_pieces: int = 1) -> None:
        """Write `data` at a byte position; callable from several threads at once.

        Each of so many pieces of one size has a checksum of its own.
        """
        try:
            n_bytes = write_all(self._descriptor, data, position) - position
        except OSError as error:
            raise self._error(error) from None
        if self._takes_notes:
            for piece in checksums(position, data, n_pieces):
                self.take_note(*piece)
        if n_bytes >= _WORTH_ADVICE and hasattr(os, "posix_fadvise"):
            # Linux begins to write these pages to the disk, while the work goes on, and keeps them
            # meanwhile: less is left to flush at the end.
            with suppress(OSError):
                advice = os.POSIX_FADV_DONTNEED
                os.posix_fadvise(self._descriptor, position, n_bytes, advice)

    def weave_at(self, position: int, data: memoryview, size: int, step: int) -> None:
        """Write `size` bytes at a byte position, the next `step` bytes behind it, and so on.

        What is between stays as it is. Callable from several threads at once.
        """
        try:
            with self._weaving:
                weave(self._descriptor, position, data, size, step)
        except OSError as error:
            raise self._error(error) from None
        if self._takes_notes:
            self.take_note(position, data.nbytes, zlib.crc32(data))

    def take_note(self, position: int, n_bytes: int, checksum: int) -> None:
        """Take note of what was written at a byte position, perhaps by another process."""
        self.digests[position] = n_bytes, checksum

    def read_at(self, position: int, n_bytes: int) -> bytes:
        """What stands at a byte position now; callable from several threads at once."""
        try:
            data = read_all(self._descriptor, position, n_bytes)
        except OSError as error:
            raise self._error(error) from None
        if len(data) < n_bytes:
            raise OutputError(f"{printable(self.path)}: is shorter than what was written")
        return data

    def sync(self) -> None:
        """Return when all that was written is on the disk, the size of the file included."""
        try:
            getattr(os, "fdatasync", os.fsync)(self._descriptor)
        except OSError as error:
            raise self._error(error) from None

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        """Flush and rename, or leave nothing (or what is kept) if there was an error."""
        try:
            if kind is None:
                self.flush()
                publish([self], 1)
        finally:
            self.leave()

    def flush(self) -> None:
        """Bring the whole file to the disk; nothing can be written any more."""
        try:
            os.fsync(self._descriptor)
            # What closing it says is heard, but the lock is kept with another descriptor.
            kept = os.dup(self._descriptor)
            written, self._descriptor = self._descriptor, kept
            os.close(written)
        except OSError as error:
            raise self._error(error) from None

    def move(self) -> Move:
        """From where to where it goes."""
        return Move(self.place, self._target)

    def arrive(self) -> None:
        """Take note that it has its name."""
        self._is_in_place = True
        if self._within is None:
            stopping.note(self.path, "is complete")

    def check_inputs(self) -> None:
        """Make sure that what it was made from is what it was.

        Raises
        ------
        InputError
            If an input was changed since it was mapped.
        """
        check_unchanged(self._inputs)

    def leave(self) -> None:
        """Drop the temporary file, if it is still there; an error on the way here matters more."""
        if self._descriptor < 0:
            return
        if self.keeps and not self._is_in_place and self._within is None:
            whom = "--resume" if self._share is None else "the same command"
            stopping.note(self.path, f"is kept as far as it is complete, for {whom}")
        self._remove()
        self._registered.close()
        with suppress(OSError):
            self._close()

    def _remove(self) -> None:
        if self.keeps or self._is_in_place or self._temporary is None:
            return
        try:
            self._temporary.unlink(missing_ok=True)
        except OSError:
            stopping.note(self.path, f"is left behind as {printable(self._temporary)}")

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _error(self, error: OSError) -> RecoverError:
        if error.errno == errno.EFAULT:  # a mapped input that is shorter now
            try:
                self.check_inputs()
            except InputError as input_error:
                return input_error
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return OutputError(
                f"{printable(self.path)}: no space left for its {self.n_bytes:,} bytes"
                f" ({error.strerror}); free some space or choose another folder"
            )
        if error.errno == errno.EMFILE:
            return OutputError(
                f"{printable(self.path)}: too many files are open at once; raise the limit (ulimit"
                " -n), or write fewer parts"
            )
        return OutputError(f"{printable(self.path)}: cannot be written: {error.strerror}")


class OutputFiles:
    """Several files that appear together, when all of them are on the disk, or not at all.

    Parameters
    ----------
    files : sequence of OutputFile
        The first is what people open: it appears last.
    n_parts : int
        So many of them, from the first on, are parts of one file. Older parts of these names are
        never seen together with newer ones: the older first part goes before any is replaced.

    Attributes
    ----------
    are_in_place : bool
        Whether the files have their names.
    """

    def __init__(self, files: Sequence[OutputFile], n_parts: int = 1) -> None:
        self.files = tuple(files)
        self.are_in_place = False
        self._n_parts = n_parts
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        """Create all temporary files, or open what is there of them."""
        with ExitStack() as stack:
            for file in self.files:
                file.open()
                stack.callback(file.leave)
            self._opened = stack.pop_all()
        return self

    def keep(self) -> None:
        """Leave what was written where it is, if there is an error from now on."""
        for file in self.files:
            file.keeps = True

    def sync(self) -> None:
        """Return when all that was written is on the disk."""
        for file in self.files:
            file.sync()

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        """Flush and rename all, or leave nothing (or what is kept) if there was an error."""
        with self._opened:
            if kind is None:
                for file in self.files:
                    file.flush()
                self._publish()
                self.are_in_place = True

    def _publish(self) -> None:
        """Give the flushed files their names."""
        publish(self.files, self._n_parts)


def publish(files: Sequence[OutputFile], n_parts: int) -> None:
    """Give flushed files their names; from the first rename on nothing takes them away again."""
    for file in files:
        file.check_inputs()
    stopping.check()

    def put() -> None:
        before = [file.keeps for file in files]
        for file in files:  # even if the process ends now: the next one goes on from there
            file.keeps |= len(files) > 1
        try:
            put_in_place([file.move() for file in files], n_parts)
        except UnfinishedMovesError:
            raise
        except BaseException:
            for file, keeps in zip(files, before, strict=True):
                file.keeps = keeps
            raise
        for file in files:
            file.arrive()

    try:
        stopping.undivided(put)
    except UnfinishedMovesError as error:
        raise OutputError(
            f"{printable(files[0].path)}: some of its files cannot be renamed ({error.strerror}),"
            " and the older ones cannot be put back: all are there under hidden names, and the next"
            " command that writes it puts the new ones in place"
        ) from None
    except OSError as error:
        raise files[0]._error(error) from None


def partial_path(path: Path, key: str) -> Path:
    """The hidden sibling that holds what was written of a file so far; it is always the same.

    Parameters
    ----------
    path : Path
        Where the file is to appear.
    key : str
        Tells apart who writes it.
    """
    target = path.resolve()
    digest = hashlib.sha256(f"{key}\0{target.name}".encode(errors="surrogatepass"))
    return target.with_name(f".{target.name[:50]}.{digest.hexdigest()[:12]}.partial")


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

"""Files mapped into memory, and watched: what is read must stay as it is until the end.

A file that becomes shorter while it is mapped makes the process die of SIGBUS where a page is
touched that is gone. So that a message can name the file, a handler puts zeros in place of such
pages and writes down that it did; whoever reads asks `check_faults` before what was made of them
leaves the process, and `check_unchanged` whether size and time of change are as they were.
"""

import ctypes
import mmap
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from recover import _stopping as stopping
from recover._files import MissingError, UnreadableError, map_opened, opened
from recover._text import printable, quoted
from recover.containers._faults import Guard
from recover.errors import GGUFError, InputError
from recover.quants import U8Array

Places = Sequence[tuple[int, str]]
"""Of the tensors of a file, one past the last byte of each, and its name; by position."""


class _Watched:
    """A file as it was when it was mapped."""

    def __init__(self, path: Path, status: os.stat_result) -> None:
        self.path = path
        self.status = status
        self.places: Places = ()

    def change(self) -> InputError | None:
        """What is wrong with it now, if anything is.

        A file that another one has replaced is as it was for those who mapped it.
        """
        try:
            now = self.path.stat()
        except OSError:
            return None
        if not os.path.samestat(now, self.status):
            return None
        before = self.status
        if now.st_size < before.st_size:
            what = f"truncated from {before.st_size:,} to {now.st_size:,} bytes"
            return self.error(f"was {what} while it was read", now.st_size)
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            return self.error("was changed while it was read")
        return None

    def error(self, what: str, position: int | None = None) -> InputError:
        where = ""
        if position is not None and self.places and position < self.places[-1][0]:
            place = bisect_right(self.places, position, key=lambda each: each[0])
            where = f", in tensor {quoted(self.places[place][1])}"
        return InputError(f"{printable(self.path)}: {what}{where}; start again when it is complete")


_lock = threading.Lock()
_watched: dict[str, _Watched] = {}
_guard = Guard()
_known: frozenset[int] = frozenset()
_mapped: dict[int, int] = {}
"""Bytes that are mapped, by their address."""
_n_sampling = 0
_libc = ctypes.CDLL(None)


def map_file(path: Path, *, is_part: bool = False, is_watched: bool = True) -> U8Array:
    """The file's bytes, read-only; pages are loaded when touched.

    Parameters
    ----------
    path : Path
        A regular file.
    is_part : bool
        Whether it is one of several, for the message if it is missing.
    is_watched : bool
        Whether `check_unchanged` compares the file with what it is now.

    Raises
    ------
    GGUFError
        If it is no regular file, or empty, or cannot be read; the message leaves out the path.
    """
    stopping.check()
    if is_watched:
        with _lock:  # what was mapped earlier under this name is no matter from now on
            _watched.pop(str(path.absolute()), None)
    before_end: list[Callable[[], object]] = []
    try:
        with opened(path, "GGUF file") as file:
            data, status = map_opened(file, before_end), file.status
    except MissingError as error:
        what = "this part of the split file is missing" if is_part else str(error)
        raise GGUFError(what) from None
    except UnreadableError as error:
        raise GGUFError(str(error)) from None
    watched = _Watched(path.absolute(), status)
    slot = _guard.add(data.ctypes.data, data.size, watched)
    before_end.append(partial(_guard.remove, slot))
    address = data.ctypes.data
    _mapped[address] = data.size
    before_end.append(partial(_mapped.pop, address, None))
    if is_watched:
        with _lock:
            _watched[str(watched.path)] = watched
    return data


@contextmanager
def sampled() -> Iterator[None]:
    """While samples are taken from all over mapped files, load what is touched and no more.

    Otherwise the system reads megabytes around each, which costs far more than the samples where
    files do not fit into memory.
    """
    global _n_sampling
    with _lock:
        _n_sampling += 1
        if _n_sampling == 1:
            _advise("MADV_RANDOM")
    try:
        yield
    finally:
        with _lock:
            _n_sampling -= 1
            if _n_sampling == 0:
                _advise("MADV_NORMAL")


def _advise(name: str) -> None:
    """Tell the system how mapped files are read from now on, where it wants to know."""
    advice = getattr(mmap, name, None)
    if advice is None:
        return
    # To list pairs makes objects, so that garbage may be collected and files unmapped meanwhile.
    for address in list(_mapped):
        n_bytes = _mapped.get(address, 0)
        _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(n_bytes), advice)


def name_tensors(path: Path, places: Places) -> None:
    """Let messages on a mapped file name its tensors."""
    with _lock:
        watched = _watched.get(str(path.absolute()))
    if watched is not None:
        watched.places = places


def faults() -> frozenset[int]:
    """The mapped files of which pages could not be loaded until now, as `check_faults` takes."""
    return frozenset(_guard.faults())


def check_faults(before: frozenset[int] = frozenset(), paths: Iterable[Path] | None = None) -> None:
    """Make sure that every byte that was read was there; costs next to nothing.

    Parameters
    ----------
    before : frozenset of int
        What `faults` gave before anything was read, which is no concern of the caller.
    paths : iterable of Path, optional
        The files that were read; default: all that are mapped.

    Raises
    ------
    InputError
        If a page of a mapped file could not be loaded.
    """
    found = _guard.faults()
    wanted = None if paths is None or not found else {path.absolute() for path in paths}
    for slot, (watched, position) in found.items():
        if slot not in before and (wanted is None or watched.path in wanted):
            raise watched.change() or watched.error("could not be read (a disk error?)", position)


def check_unchanged(paths: Iterable[Path] | None = None) -> None:
    """Make sure that mapped files are still what they were when they were mapped.

    Parameters
    ----------
    paths : iterable of Path, optional
        Which; default: all that were mapped since `forget`.

    Raises
    ------
    InputError
        If one is shorter, or was written to.
    """
    paths = None if paths is None else list(paths)
    with _lock:
        if paths is None:
            found = list(_watched.values())
        else:
            found = [w for p in paths if (w := _watched.get(str(p.absolute()))) is not None]
    for watched in found:
        if (error := watched.change()) is not None:
            raise error
    check_faults(_known if paths is None else frozenset(), paths)


def forget() -> None:
    """Watch nothing that was mapped before."""
    global _known
    with _lock:
        _watched.clear()
    _known = faults()

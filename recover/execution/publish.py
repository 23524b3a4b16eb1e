"""Giving complete files their names: all of them or none, whatever happens on the way.

One file is renamed over the older one, which no interruption divides. Of several, a hidden record
(`.NAME.xxxxxxxxxxxx.moves`) says first what goes where; older files are set aside under hidden
names, the new ones take their places, and only then the older ones and the record go. An error
puts the older files back. A process that dies on the way leaves the record: the next one that
writes the same output ends what it began (see `finish_earlier`), as all new files were complete.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from recover.execution.locks import is_locked_by_another, lock

_LARGEST_RECORD = 1 << 24
_HIDDEN = re.compile(r"\.(?P<name>.{0,50})\.[0-9a-f]{12}\.([0-9a-f]{8}\.tmp|partial)", re.DOTALL)
_SHARED = re.compile(r"\..{0,50}\.[0-9a-f]{12}\.shards", re.DOTALL)


class Move(NamedTuple):
    """A complete file and its name."""

    temporary: Path
    target: Path

    @property
    def aside(self) -> Path:
        """Where the older file waits."""
        return hidden(self.target, "older")


def hidden(target: Path, suffix: str) -> Path:
    """The hidden sibling of a file that is for one purpose; it is always the same."""
    digest = hashlib.sha256(target.name.encode(errors="surrogatepass")).hexdigest()[:12]
    return target.with_name(f".{target.name[:50]}.{digest}.{suffix}")


def put_in_place(moves: Sequence[Move], n_parts: int = 1) -> None:
    """Give files their names, or leave everything as it was.

    Parameters
    ----------
    moves : sequence of Move
        The files, which are on the disk; the first is what people open.
    n_parts : int
        So many of them, from the first on, are parts of one file: its older first part goes before
        any other is replaced, and the new one comes last, so that no reader takes older and newer
        parts for one file.

    Raises
    ------
    OSError
        If one cannot be renamed; the older files are where they were.
    UnfinishedMovesError
        If those cannot be put back either; the next run goes on from there.
    """
    if len(moves) == 1:
        os.replace(*moves[0])
        _sync_folders(moves)
        return
    record = hidden(moves[0].target, "moves")
    descriptor = _write_record(record, moves)
    try:
        try:
            _set_aside(moves, n_parts)
            for move in reversed(moves):
                os.replace(move.temporary, move.target)
            _sync_folders(moves)
        except OSError as error:
            try:
                _put_back(moves)
            except OSError:
                raise UnfinishedMovesError(error.errno, error.strerror) from None
            _remove(record)
            raise
        for move in moves:
            _remove(move.aside)
        _remove(record)
    finally:
        os.close(descriptor)


class UnfinishedMovesError(OSError):
    """Some files have their new names, others do not, and the next run has to go on."""


def _write_record(record: Path, moves: Sequence[Move]) -> int:
    """The record, on the disk; locked as long as its descriptor is open."""
    descriptor = _take_record(record)
    try:
        _finish(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    try:
        text = json.dumps([[str(move.temporary), str(move.target)] for move in moves])
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        os.fsync(descriptor)
        sync_folder(record.parent)
    except BaseException:
        os.close(descriptor)
        _remove(record)
        raise
    return descriptor


def _take_record(record: Path) -> int:
    """Open and lock it; who else is about to give these files their names comes later."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(record, flags, 0o666)
        lock(descriptor, waits=True)
        with suppress(FileNotFoundError):  # another process may have been done with it meanwhile
            if os.path.samestat(os.fstat(descriptor), record.stat()):
                return descriptor
        os.close(descriptor)


def _set_aside(moves: Sequence[Move], n_parts: int) -> None:
    for number, move in enumerate(moves):
        if not os.path.lexists(move.target):
            continue
        with suppress(FileNotFoundError):
            move.aside.unlink()
        if n_parts > 1 and number == 0:
            move.target.rename(move.aside)
        else:  # a second name, so that the first one is there all the time
            try:
                move.aside.hardlink_to(move.target)
            except OSError:  # not on every file system
                move.target.rename(move.aside)
    _sync_folders(moves)


def _put_back(moves: Sequence[Move]) -> None:
    for move in reversed(moves):
        is_moved = not os.path.lexists(move.temporary)
        if is_moved:
            os.replace(move.target, move.temporary)
        if os.path.lexists(move.aside):
            if is_moved or not os.path.lexists(move.target):
                os.replace(move.aside, move.target)
            else:
                move.aside.unlink()
    _sync_folders(moves)


def finish_earlier(target: Path) -> bool:
    """End what a process began that died while it gave files their names.

    Parameters
    ----------
    target : Path
        The first of the files.

    Returns
    -------
    bool
        Whether there was anything to end.

    Raises
    ------
    OSError
        If a file cannot be renamed.
    """
    record = hidden(target, "moves")
    try:
        descriptor = os.open(record, os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return False
    try:
        if is_locked_by_another(descriptor):
            return False
        is_found = _finish(descriptor)
        _remove(record)
        return is_found
    finally:
        os.close(descriptor)


def _finish(descriptor: int) -> bool:
    """Go forward to the newer files that a record names; whether it names any."""
    moves = _read_record(descriptor)
    for move in reversed(moves):
        if os.path.lexists(move.temporary):
            os.replace(move.temporary, move.target)
    for move in reversed(moves):  # of one whose newer file somebody has removed
        if os.path.lexists(move.aside) and not os.path.lexists(move.target):
            os.replace(move.aside, move.target)
    _sync_folders(moves)
    for move in moves:
        _remove(move.aside)
    return bool(moves)


def _read_record(descriptor: int) -> list[Move]:
    """What a record says; nothing if it is torn or speaks of files that are none of ours."""
    try:
        document = json.loads(os.pread(descriptor, _LARGEST_RECORD, 0))
        moves = [Move(Path(temporary), Path(target)) for temporary, target in document]
    except (ValueError, TypeError, RecursionError):
        return []
    return moves if all(map(_is_ours, moves)) else []


def _is_ours(move: Move) -> bool:
    folder = move.temporary.parent
    if _SHARED.fullmatch(folder.name):  # of several processes
        is_beside = folder.parent == move.target.parent and not folder.is_symlink()
    else:
        found = _HIDDEN.fullmatch(move.temporary.name)
        is_own = found is not None and found["name"] == move.target.name[:50]
        is_beside = is_own and folder == move.target.parent
    return (
        is_beside
        and move.target.is_absolute()
        and ".." not in move.target.parts
        and not move.temporary.is_symlink()
    )


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _sync_folders(moves: Sequence[Move]) -> None:
    for folder in sorted({move.target.parent for move in moves}):
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the file system lets us."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

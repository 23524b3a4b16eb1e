"""The bytes of a file on a server as an array whose parts are fetched when they are asked for.

A part that is asked for alone is fetched as it is, in whole pages: samples from all over a file
cost little. One that goes on where an earlier one ended is fetched with what follows it, twice as
much each time, as systems read files ahead. What was fetched stays until there is too much of it.
"""

import os
import threading
from bisect import bisect_right, insort
from concurrent.futures import Future

import numpy as np

from recover import _stopping as stopping
from recover.containers.remote.fetching import RemoteFile
from recover.quants import U8Array

_PAGE = 1 << 12
_MOST_AHEAD = 1 << 22
# Threads are at different tiles, of 2 MiB at most.
_MOST_KEPT = max(16 << 20, (os.cpu_count() or 1) << 21)


class _Stretch:
    """A range of bytes that is there, or on its way."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.ahead = 2 * (end - start)  # bytes to fetch where somebody reads on behind it
        self.data: Future[bytes] = Future()


class Cache:
    """Reads a file through what was fetched of it; threads may share it.

    Parameters
    ----------
    file : RemoteFile
        Of which `RemoteFile.start` was called.
    n_bytes : int
        Its size.
    first : bytes
        Those at its beginning that are there.
    """

    def __init__(self, file: RemoteFile, n_bytes: int, first: bytes = b"") -> None:
        self._file = file
        self._n_bytes = n_bytes
        self._lock = threading.Lock()
        self._starts: list[int] = []
        self._stretches: dict[int, _Stretch] = {}  # by start; in order of use
        self._n_kept = 0
        if first:
            stretch = self._add(0, len(first), len(first), None)
            stretch.ahead = 2 * _PAGE
            stretch.data.set_result(first)

    def read(self, start: int, end: int) -> U8Array:
        """Bytes `start` to `end`, read-only.

        Raises
        ------
        InputError
            As `RemoteFile.fetch` does.
        """
        end = min(end, self._n_bytes)
        if start >= end:
            return np.frombuffer(b"", np.uint8)
        with self._lock:
            found, missing = self._find(start, end)
        for stretch in missing:
            self._load(stretch)
        pieces = []
        for stretch in found:
            data = np.frombuffer(stopping.wait_for(stretch.data), np.uint8)
            first, last = max(start, stretch.start), min(end, stretch.end)
            pieces.append(data[first - stretch.start : last - stretch.start])
        if len(pieces) == 1:
            return pieces[0]
        joined = np.concatenate(pieces)
        joined.flags.writeable = False  # as the bytes of mapped files are
        return joined

    def _find(self, start: int, end: int) -> tuple[list[_Stretch], list[_Stretch]]:
        """The stretches that have a range, and those of them that nobody has asked for yet."""
        found, missing = [], []
        while start < end:
            i = bisect_right(self._starts, start)
            before = self._stretches[self._starts[i - 1]] if i else None
            if before is None or before.end <= start:
                limit = self._starts[i] if i < len(self._starts) else self._n_bytes
                before = self._add(start, end, limit, before)
                missing.append(before)
            else:
                self._stretches[before.start] = self._stretches.pop(before.start)
            found.append(before)
            start = before.end
        self._drop(found)
        return found, missing

    def _add(self, start: int, end: int, limit: int, before: _Stretch | None) -> _Stretch:
        """A stretch for a range of which nothing is there; it ends at `limit` at the latest."""
        first, last = start // _PAGE * _PAGE, -(-end // _PAGE) * _PAGE
        if before is not None and before.end >= first:
            first = before.end
            last = max(last, first + min(before.ahead, _MOST_AHEAD))
        stretch = _Stretch(first, min(last, limit))
        self._stretches[stretch.start] = stretch
        insort(self._starts, stretch.start)
        self._n_kept += stretch.end - stretch.start
        return stretch

    def _drop(self, used: list[_Stretch]) -> None:
        """Forget what was used longest ago, until the rest is not too much."""
        for stretch in list(self._stretches.values()) if self._n_kept > _MOST_KEPT else ():
            if self._n_kept <= _MOST_KEPT:
                break
            if stretch.data.done() and stretch not in used:
                self._forget(stretch)

    def _forget(self, stretch: _Stretch) -> None:
        if self._stretches.get(stretch.start) is stretch:
            del self._stretches[stretch.start]
            self._starts.remove(stretch.start)
            self._n_kept -= stretch.end - stretch.start

    def _load(self, stretch: _Stretch) -> None:
        """Fetch a stretch; whoever waits for it learns of a failure, too."""
        try:
            stretch.data.set_result(self._file.fetch(stretch.start, stretch.end))
        except BaseException as error:
            with self._lock:
                self._forget(stretch)
            stretch.data.set_exception(error)


class RemoteBytes:
    """A range of a file on a server; what is cut out of it, with a step of 1, is an array.

    Parameters
    ----------
    cache : Cache
        Of the file.
    start, end : int
        The range.

    Attributes
    ----------
    size : int
        Number of bytes.
    is_on_a_server : bool
        True, for those who have other bytes as well.
    """

    is_on_a_server = True

    def __init__(self, cache: Cache, start: int, end: int) -> None:
        self._cache = cache
        self._start = start
        self.size = end - start

    def __getitem__(self, part: slice) -> U8Array:
        """The bytes of a slice, read-only."""
        first, last, _ = part.indices(self.size)
        return self._cache.read(self._start + first, self._start + max(first, last))

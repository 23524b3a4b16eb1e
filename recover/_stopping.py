"""Ending before the work is done: a flag that the work looks at, and what must not stay behind.

Nothing here catches signals. Whoever does calls `request`; work that takes long calls `check` where
it can end. Files that are to vanish with the process are told of by `leaves_behind`.
"""

import contextlib
import itertools
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")
_POLL_SECONDS = 0.1
_DEFERRED = (
    signal.SIGALRM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGHUP,
    signal.SIGTERM,
    signal.SIGINT,
)


class Stopped(BaseException):
    """Somebody asked for the end; not an `Exception`, so that nothing takes it for an error.

    Attributes
    ----------
    number : int
        Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.number = number


class _State:
    def __init__(self) -> None:
        self.number: int | None = None
        self.is_seen = False
        self.n_undivided = 0
        self.keys = itertools.count()
        self.removals: dict[int, Callable[[], None]] = {}
        self.facts: dict[Path, str] = {}


_state = _State()


def request(number: int) -> None:
    """Ask all work to end, because of a signal."""
    if _state.number is None:
        _state.number = number


def reset() -> None:
    """Forget an earlier request, and what was noted until then."""
    _state.number, _state.is_seen = None, False
    _state.facts.clear()


def is_requested() -> bool:
    """Whether somebody asked for the end."""
    return _state.number is not None


def number() -> int:
    """Of the signal that asked for the end; 0 if none did."""
    return _state.number or 0


def is_under_way() -> bool:
    """Whether the end cannot be hurried: `check` has raised, or files get their names."""
    return _state.is_seen or _state.n_undivided > 0


def check() -> None:
    """Go on, or end where the caller can.

    Raises
    ------
    Stopped
        If somebody asked for the end.
    """
    if _state.number is not None:
        _state.is_seen = True
        raise Stopped(_state.number)


def wait_for(future: Future[_T]) -> _T:
    """The result of a future; the wait for it ends when somebody asks for the end.

    Raises
    ------
    Stopped
        If somebody asked for the end.
    """
    while True:
        try:
            return future.result(_POLL_SECONDS)
        except FutureTimeoutError:
            if future.done():
                return future.result()
            check()


def undivided(work: Callable[[], _T]) -> _T:
    """Do something that no exception out of a signal's handler (as Ctrl-C raises) may divide.

    Such signals are delivered again when it is done.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()  # handlers run in the main thread alone
    late: list[int] = []
    before = {number: signal.getsignal(number) for number in _DEFERRED}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    _state.n_undivided += 1
    try:
        for number in before:
            signal.signal(number, lambda number, _frame: late.append(number))
        return work()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _state.n_undivided -= 1
        for each in dict.fromkeys(late):
            signal.raise_signal(each)


@contextlib.contextmanager
def leaves_behind(remove: Callable[[], None]) -> Iterator[None]:
    """Name what removes the context's files, should the process end inside it at once."""
    key = next(_state.keys)
    _state.removals[key] = remove
    try:
        yield
    finally:
        del _state.removals[key]


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder that is gone after the context, also if the process ends inside it at once."""
    with (
        tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder,
        leaves_behind(lambda: _remove_folder(Path(folder))),
    ):
        yield Path(folder)


def _remove_folder(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def remove_what_is_left() -> None:
    """Remove all that must not outlive the process; it ends with that."""
    for remove in list(_state.removals.values()):
        with contextlib.suppress(Exception):
            remove()


def note(path: Path, fact: str) -> None:
    """Say what became of an output, for the last message."""
    _state.facts[path] = fact


def facts() -> dict[Path, str]:
    """By output, what `note` was told last."""
    return dict(_state.facts)

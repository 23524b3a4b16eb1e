"""Signals that ask for the end.

The handler sets a flag (`recover._stopping`), nothing else: an exception out of it would be lost
where a library calls Python from C, and could divide what belongs together. Work that sees the flag
ends, and temporary files go on the way. What does not look at it for a while (a compilation, say)
does not hold up the process: a thread that reads the signals' numbers from a pipe ends it then, and
at the second signal at once.
"""

import os
import select
import signal
import threading
import time
from types import FrameType
from typing import Any, NoReturn, Self

from recover import _stopping as stopping
from recover.cli._streams import say_now

_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 1.5  # seconds for those who do not look at the flag
_POLL_SECONDS = 0.05


class Signals:
    """Catches signals inside its context, if this is the main thread."""

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._numbers: set[int] = set()
        self._ends: tuple[int, int] | None = None
        self._wakeup_before = -1

    def __enter__(self) -> Self:
        """Catch those that are not ignored, as nohup does."""
        stopping.reset()
        if threading.current_thread() is not threading.main_thread():
            return self
        self._ends = reader, writer = os.pipe()
        os.set_blocking(writer, False)
        self._numbers = {
            int(each) for each in _CAUGHT if signal.getsignal(each) is not signal.SIG_IGN
        }
        threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True).start()
        self._wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in self._numbers:
            self._before[signal.Signals(number)] = signal.signal(number, _ask_for_the_end)
        return self

    def __exit__(self, *_error: object) -> None:
        """Leave everything as it was."""
        if self._ends is None:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._ends[1])  # which ends the thread

    def _watch(self, reader: int) -> None:
        n_signals, since = 0, 0.0
        ends = select.poll()  # takes descriptors of any number, which `select` does not
        ends.register(reader, select.POLLIN)
        while True:
            if ends.poll(1000 * _POLL_SECONDS if n_signals else None):
                numbers = os.read(reader, 1024)
                if not numbers:
                    os.close(reader)
                    return
                for number in self._numbers.intersection(numbers):
                    stopping.request(number)
                n_signals += sum(number in self._numbers for number in numbers)
                since = since or (time.monotonic() if n_signals else 0.0)
            is_late = time.monotonic() - since > _PATIENCE and not stopping.is_under_way()
            if n_signals > 1 or (n_signals and is_late):
                self._end()

    def _end(self) -> NoReturn:
        stopping.remove_what_is_left()
        number = stopping.number()
        say_now(last_line(number))
        os._exit(128 + number)


def _ask_for_the_end(number: int, _frame: FrameType | None) -> None:
    stopping.request(number)


def last_line(number: int) -> str:
    """What is said of a signal, and of what it left."""
    from recover._text import printable

    left = [f"{printable(path)} {fact}" for path, fact in stopping.facts().items()]
    kept = ", ".join(left) or "nothing new was left behind"
    return f"stopped ({signal.strsignal(number)}); {kept}"

"""A limit on the time of what hostile input may make hang."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StillBusyError(BaseException):
    """No `Exception`: nothing that is tested may catch it and go on."""


_WAITING = 12
"""How many times as much by the clock: the machine may be busy with other things."""


def limit(seconds: float) -> None:
    """Give up after so many seconds of the processor, from now on; 0 for never."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, _WAITING * seconds)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise `StillBusyError` at the last `limit` that was set, at first that of these seconds."""

    def give_up(number: int, _frame: FrameType | None) -> None:
        kind = "of the processor" if number == signal.SIGPROF else "by the clock"
        raise StillBusyError(f"still busy at the limit {kind}")

    signals = signal.SIGPROF, signal.SIGALRM
    previous = [signal.signal(each, give_up) for each in signals]
    limit(seconds)
    try:
        yield
    finally:
        limit(0)
        for each, handler in zip(signals, previous, strict=True):
            signal.signal(each, handler)

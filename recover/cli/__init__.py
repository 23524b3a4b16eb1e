"""The command line: one file per command; heavy imports stay inside the commands' bodies.

This file imports next to nothing, so that Ctrl-C is caught while the rest is loaded.
"""

import gc
import os
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status (0 done, 1 failed, 2 wrong usage, 128 + n signal n)."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        if is_default:
            signal.signal(signal.SIGINT, _end)
    except ValueError:  # only the main thread may
        is_default = False
    try:
        from recover.cli._commands import run

        return run(argv)
    finally:
        if is_default:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def main_of_process() -> None:
    """Run the command line that this process was started with, and end it.

    To free object by object what is known of types and machine code takes longer than many a
    command; the system frees it anyway. There is next to no garbage in circles, but modules and
    headers are many objects to look through for it: that is done seldom. (What is in no circle goes
    at once, as always.) Threads of NumPy's BLAS would look for work for 2^26 cycles, 0.03 s, when
    they are made and after each product, and keep a core busy: they are to sleep.
    """
    gc.set_threshold(200_000, 20, 100)
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # 2^4 cycles: the least
    status = main()
    import atexit
    import threading
    from contextlib import suppress

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # what could not be printed was told of
            stream.flush()
    os._exit(status)


def _end(number: int, _frame: object) -> None:
    """End at once: nothing was begun. A `KeyboardInterrupt` would show where imports stood."""
    from contextlib import suppress

    with suppress(OSError):
        os.write(2, b"recover: stopped (Interrupt); nothing new was left behind\n")
    os._exit(128 + number)

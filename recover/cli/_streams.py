"""Standard streams that are closed, full, or that nobody reads."""

import os
import select
import sys
from contextlib import suppress
from typing import TextIO, TypeGuard

from recover._text import escaped, shortened

LONGEST_LINE = 4000
_SHOW_CURSOR = "\r\x1b[K\x1b[?25h"  # a progress bar hides it


def open_closed_streams() -> None:
    """Put the null device where a standard stream is closed.

    Otherwise the next file that is opened takes its number, and what libraries print goes there.
    On a closed stdout it can only be read: results that nobody can have are an error when they are
    printed, as on a full device. Nobody wants the messages of a closed stderr.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_RDWR)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115


_quiet = False


def be_quiet(is_quiet: bool) -> None:
    """Let `say` and tables print nothing from now on, or print again."""
    global _quiet
    _quiet = is_quiet


def is_quiet() -> bool:
    """Whether nothing is printed for people."""
    return _quiet


def say(text: str = "") -> None:
    """A line on stdout; what comes from files is escaped, and shortened."""
    if not _quiet:
        write(sys.stdout, shortened(escaped(text), LONGEST_LINE))


def complain(text: str) -> None:
    """The same on stderr, if that is possible, whatever people asked for."""
    try:
        write(sys.stderr, shortened(escaped(text), LONGEST_LINE))
        sys.stderr.flush()
    except (OSError, ValueError):
        drop(sys.stderr)


def write(stream: TextIO, line: str) -> None:
    """Print a line that is escaped; characters that the stream lacks are escaped as well.

    Whoever closes the pipe of the results (``| head``) has read enough: the rest goes nowhere, and
    the command ends as it would have.
    """
    encoding = stream.encoding or "utf-8"
    try:
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream)
    except BrokenPipeError:
        if stream is not sys.stdout:
            raise
        drop(stream)


def say_now(line: str) -> None:
    """As `complain`, from any thread and whatever the others do: nothing is waited for."""
    with suppress(OSError, ValueError):
        if select.select([], [2], [], 0.1)[1]:
            cursor = _SHOW_CURSOR if os.isatty(2) else ""
            os.write(2, f"{cursor}recover: {line}\n".encode(errors="backslashreplace"))


def is_of_a_stream(error: Exception) -> TypeGuard[OSError]:
    """Whether it was raised by printing: errors of files have their names, or are others."""
    return isinstance(error, OSError) and bool(error.strerror) and error.filename is None


def drop(stream: TextIO) -> None:
    """Let what is still to be written to a stream go nowhere."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)

"""What people see: tables on stdout, progress and messages on stderr.

Nothing else here or in the commands prints. Whatever is printed may come from a file or a path, so
all of it is escaped here: a call prints one line, without codes for the terminal, and in characters
that the stream has.
"""

import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import Any

from recover._json import to_text
from recover._text import escaped, shortened
from recover.cli._compiling import tell_of_compilation
from recover.cli._inputs import check_inputs
from recover.cli._streams import LONGEST_LINE, complain, is_quiet, say, write
from recover.execution import tiles

_PIPE_WIDTH = 200
_LOG_SECONDS = 60.0
_ROOM_FOR_SPEED = 56  # columns, below which a bar has the time left alone
_NARROWEST = 12
_LONGEST_CELL = 500
_GAP = "  "

tell_of_compilation()


@contextmanager
def progress_bar(
    args: Namespace, what: str, unit: str = "weights"
) -> Iterator[tiles.Progress | None]:
    """A callback that draws a bar with the time left, or tells a log of it once a minute.

    None if nobody wants to know.
    """
    if args.quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield _Log(args, what, unit)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, highlight=False)
    passed = [TextColumn("{task.fields[speed]}"), TimeElapsedColumn()]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        *(passed if console.width >= _ROOM_FOR_SPEED else []),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None, speed="")

        def report(n_done: int, n_all: int) -> None:
            if progress.tasks[task].total is None:  # work may begin in the middle
                progress.reset(task, total=n_all, completed=n_done)
            speed = progress.tasks[task].speed
            text = f"{count(speed)} {unit}/s" if speed else ""
            progress.update(task, completed=n_done, total=n_all, speed=text)

        yield report


class _Log:
    """Tells of progress in lines, for logs: one a minute."""

    def __init__(self, args: Namespace, what: str, unit: str) -> None:
        self._args = args
        self._what = what
        self._unit = unit
        self._last = time.monotonic()
        self._first: tuple[float, int] | None = None

    def __call__(self, n_done: int, n_all: int) -> None:
        """Tell of it, if it is time."""
        now = time.monotonic()
        if self._first is None:  # work may begin in the middle
            self._first = now, n_done
        if now - self._last < _LOG_SECONDS or not n_all:
            return
        self._last = now
        start, before = self._first
        text = f"{self._what}: {n_done / n_all:.1%} of {count(n_all)} {self._unit}"
        if n_done > before:
            speed = (n_done - before) / (now - start)
            left = duration((n_all - n_done) / speed)
            text += f", {count(speed)} {self._unit}/s, {left} left"
        message(self._args, text)


def message(args: Namespace, text: str) -> None:
    """A line for people on stderr, unless they asked for quiet."""
    if not args.quiet:
        complain(f"recover: {text}")


def warn(args: Namespace, warnings: Iterable[str]) -> None:
    """Warnings on stderr, a line each, unless the files that they are built on were changed."""
    check_inputs()
    for warning in warnings:
        message(args, f"warning: {warning}")


def print_json(document: Any) -> None:
    """One JSON document on stdout; numbers that JSON does not have become null."""
    check_inputs()
    write(sys.stdout, to_text(document))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; columns whose name ends with a colon are text, the others figures."""
    check_inputs()
    if is_quiet():
        return
    if title:
        bold = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        line = shortened(escaped(title), LONGEST_LINE)
        write(sys.stdout, f"\x1b[1m{line}\x1b[0m" if bold else line)
    is_text = [column.endswith(":") for column in columns]
    cells = [[column.rstrip(":") for column in columns]]
    cells += [[shortened(escaped(cell), _LONGEST_CELL) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    _narrow(widths, is_text, _width_of_stdout() - len(_GAP) * (len(widths) - 1))
    for row in cells:
        for line in _lines(row, widths, is_text):
            write(sys.stdout, line)


def _width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _width_of_stdout() -> int:
    if not sys.stdout.isatty():
        return _PIPE_WIDTH
    from rich.console import Console

    return Console(highlight=False).width


def _narrow(widths: list[int], is_text: Sequence[bool], wanted: int) -> None:
    """Take the room that is missing from the widest columns of text."""
    while sum(widths) > wanted:
        wide = [i for i, width in enumerate(widths) if is_text[i] and width > _NARROWEST]
        if not wide:
            return
        widest = max(wide, key=lambda i: widths[i])
        others = [widths[i] for i in wide if widths[i] < widths[widest]]
        step = max(1, widths[widest] - max([_NARROWEST, *others]))
        widths[widest] -= min(step, sum(widths) - wanted)


def _lines(row: Sequence[str], widths: Sequence[int], is_text: Sequence[bool]) -> Iterator[str]:
    """A row of a table: several lines where a cell is folded."""
    if all(len(cell) <= width and cell.isascii() for cell, width in zip(row, widths, strict=True)):
        padded = [
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, is_text, strict=True)
        ]
        yield _GAP.join(padded).rstrip()
        return
    folded = [_folded(cell, width) for cell, width in zip(row, widths, strict=True)]
    for parts in zip_longest(*folded, fillvalue=""):
        padded = []
        for part, width, left in zip(parts, widths, is_text, strict=True):
            space = " " * (width - _width(part))
            padded.append(part + space if left else space + part)
        yield _GAP.join(padded).rstrip()


def _folded(cell: str, width: int) -> list[str]:
    if _width(cell) <= width:
        return [cell]
    if cell.isascii():
        return wrap(cell, width, break_on_hyphens=False)
    from rich.cells import chop_cells

    return chop_cells(cell, width)


def print_written(
    path: Path, n_bytes: int, n_weights: int, seconds: float, n_parts: int = 1
) -> None:
    """The last line of a command that wrote a file, or several parts from that one on."""
    speed = count(n_weights / seconds)
    parts = f" in {n_parts} parts" if n_parts > 1 else ""
    say(
        f"wrote {path} ({size(n_bytes)}{parts}, {count(n_weights)} weights)"
        f" in {seconds:.2f} s ({speed} weights/s)"
    )


def count(number: float) -> str:
    """A number for people: ``29.4M``."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"


def size(n_bytes: float) -> str:
    """A number of bytes for people: ``56.1 MiB``."""
    for limit, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n_bytes >= limit:
            return f"{n_bytes / limit:.1f} {unit}"
    return f"{n_bytes:.0f} B"


def duration(seconds: float) -> str:
    """A time for people: ``3 h 20 min``."""
    if seconds < 0.05:
        return "less than 0.1 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours / 24:.1f} days"


def optional(value: float | None, layout: str = ".4g") -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else format(value, layout)

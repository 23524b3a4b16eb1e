"""What people see: tables on stdout, progress and messages on stderr."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from recover import tiles
from recover._jit import is_first_run
from recover._json import finite
from recover.cli._streams import say

_PIPE_WIDTH = 200


def _console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False)


@contextmanager
def progress_bar(
    args: Namespace, what: str, unit: str = "weights"
) -> Iterator[tiles.Progress | None]:
    """A callback that draws a bar with the time left; None if there is nobody to look at it."""
    if args.quiet or not sys.stderr.isatty():
        yield None
        return
    if is_first_run():
        message(args, "compiling for this CPU first, which takes half a minute or more once")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None, speed="")

        def report(n_done: int, n_all: int) -> None:
            if progress.tasks[task].total is None:  # work may begin in the middle
                progress.reset(task, total=n_all, completed=n_done)
            speed = progress.tasks[task].speed
            text = f"{count(speed)} {unit}/s" if speed else ""
            progress.update(task, completed=n_done, total=n_all, speed=text)

        yield report


def message(args: Namespace, text: str) -> None:
    """A line for people on stderr, unless they asked for quiet."""
    if not args.quiet:
        say(text)


def print_json(document: Any) -> None:
    """One JSON document on stdout; numbers that JSON does not have become null."""
    print(json.dumps(finite(document), indent=2))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; columns whose name ends with a colon are text, the others figures."""
    console = _console()
    if title:
        console.print(Text(title, style="bold"))
    table = Table(box=None, pad_edge=False)
    for column in columns:
        text = column.endswith(":")
        table.add_column(column.rstrip(":"), justify="left" if text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        print(line.rstrip())


def print_written(
    path: Path, n_bytes: int, n_weights: int, seconds: float, n_parts: int = 1
) -> None:
    """The last line of a command that wrote a file, or several parts from that one on."""
    speed = count(n_weights / seconds)
    parts = f" in {n_parts} parts" if n_parts > 1 else ""
    print(
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


def optional(value: float | None, layout: str = ".4g") -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else format(value, layout)

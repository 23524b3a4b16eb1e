"""A work from the first task to the names of its files: in one process, or its part of it."""

import time
from collections.abc import Callable
from typing import NamedTuple

from recover.execution.gathering import Gathering, Totals, do_tasks
from recover.execution.homes import outputs_of, write_headers
from recover.execution.kept import clear_gaps
from recover.execution.output import OutputFiles
from recover.execution.shares import Shard
from recover.execution.sharing import PartResult, Sharing, Tell
from recover.execution.work import HowToWork, Work

Conclude = Callable[[OutputFiles, Totals], None]
"""Writes what the sums of all tensors decide on, before the files get their names."""


class Finished(NamedTuple):
    """All of a work."""

    totals: Totals
    """The sums of all tensors."""
    seconds: float
    """What all processes took together."""


def execute(
    work: Work, how: HowToWork, *, replaces: bool = False, conclude: Conclude | None = None
) -> Finished:
    """Do all of a work; its files appear when they are complete.

    Raises
    ------
    RecoverError
        As of the tasks; also if the files cannot be written.
    """
    start = time.perf_counter()
    gathering = Gathering(work, {})
    with outputs_of(work, replaces=replaces) as outputs:
        write_headers(work, outputs)
        do_tasks(work, range(len(work.units)), outputs.files, gathering, how)
        if conclude is not None:
            conclude(outputs, gathering.totals)
    return Finished(gathering.totals, time.perf_counter() - start)


def execute_part(
    work: Work,
    shard: Shard,
    how: HowToWork,
    tell: Tell | None = None,
    *,
    replaces: bool = False,
    conclude: Conclude | None = None,
) -> Finished | PartResult:
    """Do a part of a work, and finish all of it if it is the last one; errors as of `execute`."""
    with Sharing(work, shard, tell, replaces=replaces) as sharing:
        if not sharing.is_complete:
            if (part := sharing.carry_out(how)) is not None:
                return part
            with outputs_of(work, sharing, replaces=replaces) as outputs:
                clear_gaps(work.units, work.files, outputs.files)
                write_headers(work, outputs)
                if conclude is not None:
                    conclude(outputs, sharing.totals)
                sharing.announce(outputs.files)
    return Finished(sharing.totals, sharing.seconds)

"""Options of commands whose work several processes share."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from recover.execution.shares import Shard
    from recover.execution.sharing import PartResult
    from recover.execution.tiles import Progress

_R = TypeVar("_R")


def add_sharing_arguments(parser: ArgumentParser) -> None:
    """Declare how the work is shared."""
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=_shard,
        help="do part I of N: N processes, on machines with a common file system, write one"
        " output; the last one gives it its name; a part that was killed can be repeated",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="let a Dask cluster do the work: tcp://HOST:PORT or the file of its scheduler, or"
        " 'local' for a cluster on this machine; needs the extra 'distributed'",
    )


def _shard(text: str) -> "Shard":
    from recover.errors import UsageError
    from recover.execution.shares import Shard

    try:
        return Shard.parse(text)
    except UsageError as error:
        raise ArgumentTypeError(str(error)) from None


@contextmanager
def means_of(
    args: Namespace, progress: "Progress | None", **others: Any
) -> Iterator[dict[str, Any]]:
    """What executes a plan, or a part of it, is told: who does the tasks, and who hears of it."""
    from recover.cli._console import message

    tell = partial(message, args)
    told = {"n_threads": args.threads, "progress": progress, **others}
    if args.shard is not None:
        told |= {"shard": args.shard, "tell": tell}
    if args.scheduler is None:
        yield told
        return
    from recover.execution.dask import cluster

    with cluster(args.scheduler, args.threads, tell) as executor:
        yield told | {"executor": executor}


def carry_out(
    args: Namespace,
    doing: str,
    plan: Any,
    whole: Callable[..., _R],
    part: "Callable[..., _R | PartResult]",
    **others: Any,
) -> _R | None:
    """What a plan gives that is carried out, by this process or by as many as share it.

    None of a part, which is told of, if it is not the last one.

    Parameters
    ----------
    doing : str
        What the bar of progress says.
    whole, part : callable
        ``whole(plan, **others)`` and ``part(plan, shard=..., **others)``.
    """
    from recover.cli._console import progress_bar
    from recover.execution.sharing import PartResult

    with progress_bar(args, doing) as progress, means_of(args, progress, **others) as told:
        done = whole(plan, **told) if args.shard is None else part(plan, **told)
    if isinstance(done, PartResult):
        _print_part(args, done)
        return None
    return done


def _print_part(args: Namespace, part: "PartResult") -> None:
    """What a process has done that was not the last one."""
    from recover.cli._console import count, print_json
    from recover.cli._streams import say

    if args.json:
        print_json(part.to_json())
        return
    say(
        f"part {part.shard} of {part.output} is done: {count(part.n_weights)} weights in"
        f" {part.seconds:.2f} s"
    )
    if part.missing:
        shown = ", ".join(map(str, part.missing[:20])) + (", ..." if part.missing[20:] else "")
        noun = "part" if len(part.missing) == 1 else "parts"
        say(f"not done yet: {noun} {shown} of {part.shard.n}")
    else:
        say(f"all parts are done; the process of part {part.finished_by} finishes")
